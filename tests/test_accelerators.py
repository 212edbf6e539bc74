"""The programs for an H100 and a TPU v5e: how they are read, their bounds, what was found."""

import functools
import json
import sys

import pytest
import scripts

MODULE = scripts.module("studies.accelerators")
READER = scripts.module("studies._lib.programs")
CARDS = ("H100", "TPU v5e")
BEGIN, END = f"<!-- {MODULE.PART} -->", f"<!-- /{MODULE.PART} -->"
# Bytes per float32 parameter: gradient, parameter and state are read, the last two are written.
FLOORS = {"float32": 28, "16 bits": 20, "8 bits": 16}
ON_H100 = {"float32": 28.1, "16 bits": 20.1, "8 bits": 16.5}

GPU = """HloModule jit_step, is_scheduled=true

%fused_add (param_0: f32[8,500], param_1: f32[8,500]) -> (f32[8,500], f32[8,500]) {
  %param_0 = f32[8,500]{1,0} parameter(0)
  %param_1 = f32[8,500]{1,0} parameter(1)
  %copy.9 = f32[8,500]{1,0} copy(%param_1)
  %add.1 = f32[8,500]{1,0} add(%param_0, %copy.9)
  ROOT %tuple = (f32[8,500]{1,0}, f32[8,500]{1,0}) tuple(%add.1, %param_0)
}

%command_buffer (p: f32[8,500], q: f32[8,500]) -> f32[8,500] {
  %p = f32[8,500]{1,0} parameter(0)
  %q = f32[8,500]{1,0} parameter(1)
  %fusion = (f32[8,500]{1,0}, /*index=1*/f32[8,500]{1,0}) fusion(%p, %q), kind=kLoop, calls=%fused_add
  ROOT %get-tuple-element.1 = f32[8,500]{1,0} get-tuple-element(%fusion), index=0
}

ENTRY %main.5 (params: f32[8,500], count: s32[], grads: f32[8,500]) -> (f32[8,500], s32[]) {
  %params = f32[8,500]{1,0} parameter(0), metadata={op_name="params[\\'w\\']"}
  %count = s32[] parameter(1)
  %grads = f32[8,500]{1,0} parameter(2)
  %call = f32[8,500]{1,0} call(%params, %grads), to_apply=%command_buffer
  %all-reduce-start = f32[] all-reduce-start(%count), replica_groups={}, to_apply=%sum
  %transpose.1 = f32[500,8]{1,0} transpose(%call), dimensions={1,0}
  %loop_fusion = s32[] fusion(%count), kind=kLoop, calls=%fused_select
  ROOT %tuple.8 = (f32[8,500]{1,0}, s32[]) tuple(%call, %loop_fusion)
}
"""  # noqa: E501

TPU = """HloModule jit_step, is_scheduled=true

%async (p: f32[64,128]) -> f32[8,128] {
  %p = f32[64,128]{1,0:T(8,128)} parameter(0)
  ROOT %slice = f32[8,128]{1,0:T(8,128)S(1)} slice(%p), slice={[0:8], [0:128]}
}

ENTRY %main.6 (g: f32[8192], e: u16[8192], count: s32[]) -> (u16[8192], s32[]) {
  %g = f32[8192]{0:T(1024)} parameter(0)
  %e = u16[8192]{0:T(1024)(128)(2,1)} parameter(1)
  %count = s32[]{:T(128)} parameter(2)
  %w = f32[64,128]{1,0:T(8,128)} parameter(3)
  %copy.1 = s32[]{:T(128)S(6)} copy(%count)
  %add.1 = s32[]{:T(128)} add(%copy.1, %copy.1)
  %copy-start = (u16[8192]{0:T(1024)(128)(2,1)S(1)}, u16[8192]{0:T(1024)(128)(2,1)}, u32[]{:S(2)}) copy-start(%e)
  %copy-done = u16[8192]{0:T(1024)(128)(2,1)S(1)} copy-done(%copy-start)
  %slice-start = ((f32[64,128]{1,0:T(8,128)}), f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) async-start(%w), calls=%async
  %slice-done = f32[8,128]{1,0:T(8,128)S(1)} async-done(%slice-start)
  %slice-start.1 = (f32[64,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%w), slice={[8:16], [0:128]}
  %slice-done.1 = f32[8,128]{1,0:T(8,128)S(1)} slice-done(%slice-start.1)
  %custom-call = f32[16,128]{1,0:T(8,128)S(1)} custom-call(%slice-done, %slice-done.1), custom_call_target="ConcatBitcast"
  %dither = u32[8192]{0:T(1024)S(1)} fusion(%count), kind=kLoop, calls=%fused_dither
  %fusion.3 = u16[8192]{0:T(1024)(128)(2,1)S(1)} fusion(%g, %copy-done, %dither), kind=kLoop, calls=%fused
  %copy-start.1 = (u16[8192]{0:T(1024)(128)(2,1)}, u16[8192]{0:T(1024)(128)(2,1)S(1)}, u32[]{:S(2)}) copy-start(%fusion.3)
  %copy-done.1 = u16[8192]{0:T(1024)(128)(2,1)} copy-done(%copy-start.1)
  ROOT %tuple = (u16[8192]{0:T(1024)(128)(2,1)}, s32[]{:T(128)}) tuple(%copy-done.1, %add.1)
}
"""  # noqa: E501


def test_a_gpu_program_is_read():
    # A kernel inside a call reads and writes two arrays each. The transpose is a kernel and a copy.
    assert READER.read_program(GPU, [4000]) == {
        "kernels": 3,
        "kernels on leaves": 2,
        "bytes": 4 * 16_000 + 2 * 16_000 + 2 * 4,
        "copies": 1,
        "collectives": 1,
    }


def test_a_tpu_program_is_read():
    # In main memory: the gradient, both ends of what is prefetched once, both slices, the count.
    assert READER.read_program(TPU, [8192]) == {
        "kernels": 2,
        "kernels on leaves": 1,
        "bytes": 4 * 8192 + 2 * 2 * 8192 + 2 * 4 * 8 * 128 + 512,
        "copies": 0,
        "collectives": 0,
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("f32[784,500]{1,0}", 4 * 784 * 500),
        ("f32[784,500]{1,0:T(8,128)}", 4 * 784 * 512),
        ("u8[784,500]{1,0:T(32,128)(4,1)}", 800 * 512),
        ("f32[1000000,1]{0,1:T(1,128)}", 4 * 1_000_064),
        ("u16[1,1000000]{1,0:T(2,128)(2,1)}", 2 * 2 * 1_000_064),
        ("f32[3,5,9]{2,1,0:T(8,128)}", 4 * 3 * 8 * 128),
        ("f32[]{:T(128)}", 512),
        ("f32[0,3]{1,0:T(8,128)}", 0),
        ("(bf16[6]{0}, /*index=1*/c64[]{}, pred[3]{0})", 12 + 8 + 3),
    ],
)
def test_bytes_include_the_padding_of_tiles(text, expected):
    assert sum(array.bytes for array in READER.arrays(text)) == expected


@pytest.mark.parametrize(
    ("layout", "main"), [("1,0", True), ("0:T(128)S(0)", True), ("0:T(128)S(1)", False)]
)
def test_fast_memory_is_told_from_main_memory(layout, main):
    assert READER.Array("f32", (8,), layout).in_main_memory == main


def test_text_that_is_cut_off_is_refused():
    with pytest.raises(ValueError, match="not closed"):
        READER.instruction("  %tuple = (f32[8]{0}, f32[8]")


WORKER = """
import json, os, signal, sys, time
for number, what in enumerate(json.load(sys.stdin)):
    if what == "abort":
        print("F0101 file.cc:1] Check failed: a == b", file=sys.stderr, flush=True)
        os.abort()
    if what == "stall":
        signal.alarm(1)
        time.sleep(60)
    if what == "exit":
        sys.exit("no such thing")
    print("noise")
    print(json.dumps({"first in its process": number == 0}), flush=True)
"""


@pytest.mark.scripts
@pytest.mark.parametrize("together", [False, True])
def test_a_case_that_ends_its_process_is_a_failure_and_the_rest_goes_on(
    together, tmp_path, monkeypatch
):
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER, encoding="utf-8")
    monkeypatch.setattr(MODULE, "WORKER", [sys.executable, str(worker)])
    cases = ["good", "good", "abort", "stall", "exit", "good"]
    first, second, aborted, stalled, ended, last = MODULE.compiled(cases, together)
    assert first == last == {"first in its process": True}
    assert second == {"first in its process": not together}
    assert aborted == {"failed": "SIGABRT: Check failed: a == b"}
    assert stalled == {"failed": f"no program after {MODULE.LIMIT} s"}
    assert ended == {"failed": "exit 1: no such thing"}


def test_a_compiler_of_another_version_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["accelerators.py"])
    versions = {"libtpu": "1", "nvidia-cuda-nvcc-cu12": "2", "jax-cuda12-pjrt": "0.0.1"}
    monkeypatch.setattr("importlib.metadata.version", versions.__getitem__)
    with pytest.raises(SystemExit):
        MODULE.main()
    assert "jax-cuda12-pjrt 0.0.1 does not match jaxlib" in capsys.readouterr().err


def made_up():
    """A report of one small and one large leaf."""
    facts = {"leaves": 1, "parameters on a device": 1, "kernels on leaves": 1, "bytes": 28}
    facts |= {"scratch": 2, "copies": 0, "collectives": 0, "compile": 0.25}
    many = facts | {"parameters on a device": 8192, "bytes": 28 * 8192, "scratch": 4096}
    cases = {"()": dict.fromkeys(MODULE.RULES, facts)}
    cases["(8192,)"] = dict.fromkeys(MODULE.RULES, many) | {"8 bits": {"failed": "SIGABRT"}}
    odd = {"(7,)": dict.fromkeys(MODULE.STORAGES, facts)}
    report = {"command": "made up", "machine": "none", "versions": {"jax": "0.0.1"}}
    return report | {"cards": {"H100": {"cases": cases, "odd shapes": odd}}}


def test_a_table_shows_what_failed_and_no_bytes_of_few_parameters():
    text = MODULE.tables(made_up())
    assert "| () | 1 / 1 / 1 / 1 | - / - / - / - |" in text
    assert "| (8192,) | 1 / 1 / fails / 1 | 28.0 / 28.0 / fails / 28.0 | 0.5 / 0.5 / f" in text
    assert "8 bits: (7,). Failed: (8192,) with 8 bits (SIGABRT)." in text


def test_the_table_goes_into_the_page_and_nothing_else_changes(tmp_path, monkeypatch):
    page, output = tmp_path / "performance.md", tmp_path / "accelerators.json"
    page.write_text(f"a\n{BEGIN}\nold\n{END}\nb\n", encoding="utf-8")
    output.write_text(json.dumps(made_up()), encoding="utf-8")
    monkeypatch.setattr(MODULE, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["accelerators.py", "--table", "--output", str(output)])
    MODULE.main()
    assert page.read_text("utf-8") == f"a\n{BEGIN}\n{MODULE.tables(made_up())}\n{END}\nb\n"


@pytest.fixture(params=CARDS)
def card(request):
    """The name of a card whose compiler is installed."""
    if problem := MODULE.problem(request.param):
        pytest.skip(problem)
    return request.param


@functools.cache
def programs(card, setting):
    """What is compiled for a setting with each storage."""
    cases = [MODULE.Case(card, rule, *MODULE.SETTINGS[setting]) for rule in MODULE.STORAGES]
    return dict(zip(MODULE.STORAGES, MODULE.compiled(cases, together=True), strict=True))


def check_bounds(card, setting, rule, facts):
    """Checks kernels, bytes and copies of a program of float32 leaves."""
    assert facts["kernels on leaves"] <= facts["leaves"]
    assert facts["copies"] == facts["collectives"] == 0
    if card == "H100":
        bound = ON_H100[rule]
    else:
        bound = FLOORS[rule] * (1.05 if setting.startswith("(4096, 2048)") else 1.1)
    assert facts["bytes"] / facts["parameters on a device"] <= bound


@pytest.mark.accelerators
@pytest.mark.slow
@pytest.mark.parametrize("rule", FLOORS)
@pytest.mark.parametrize("setting", ["(784, 500)", "(4096, 2048)", "(4096, 2048), four devices"])
def test_a_step_is_one_kernel_per_leaf_and_moves_little_more_than_it_must(card, setting, rule):
    check_bounds(card, setting, rule, programs(card, setting)[rule])


@pytest.mark.accelerators
def test_leaves_with_equally_many_columns_exchange_nothing(card):
    cases = [MODULE.Case(card, rule, [(512,), (128, 512)], devices=4) for rule in MODULE.STORAGES]
    assert [facts["collectives"] for facts in MODULE.compiled(cases, together=True)] == [0, 0, 0]


@pytest.mark.accelerators
@pytest.mark.slow
@pytest.mark.parametrize("rule", FLOORS)
def test_every_shape_compiles(card, rule):
    cases = [MODULE.Case(card, rule, [shape]) for shape in MODULE.ODD]
    found = zip(MODULE.ODD, MODULE.compiled(cases, together=True), strict=True)
    assert {shape: facts["failed"] for shape, facts in found if "failed" in facts} == {}


@pytest.mark.accelerators
@pytest.mark.scripts
@pytest.mark.skipif(any(map(MODULE.problem, CARDS)), reason="a compiler is not installed")
def test_at_smoke_size_every_card_and_rule_is_compiled(tmp_path):
    printed, report = scripts.benchmark("accelerators", tmp_path / "accelerators.json")
    assert {"jaxlib", "libtpu", "jax-cuda12-pjrt"} <= set(report["versions"])
    assert list(report["cards"]) == list(CARDS)
    for found in report["cards"].values():
        assert list(found["cases"]) == list(MODULE.SMOKE)
        assert all(list(case) == list(MODULE.RULES) for case in found["cases"].values())
        assert all(facts["compile"] > 0 for facts in found["cases"]["(8192,)"].values())
    assert printed.count("| (8192,) | 1 / 1 / 1 / ") == 2
    assert printed.count("Failed: none.") == 2


def committed():
    return json.loads(MODULE.OUTPUT.read_text("utf-8"))


def test_the_committed_results_are_of_every_case_and_none_failed():
    report = committed()
    assert "--smoke" not in report["command"]
    assert list(report["cards"]) == list(CARDS)
    for found in report["cards"].values():
        assert list(found["cases"]) == list(MODULE.SETTINGS)
        assert list(found["odd shapes"]) == list(map(str, MODULE.ODD))
        for section, rules in (("cases", MODULE.RULES), ("odd shapes", MODULE.STORAGES)):
            for case in found[section].values():
                assert list(case) == list(rules)
                assert not any("failed" in facts for facts in case.values())


BOUNDED = ["(8192,)", "(784, 500)", "(3, 3, 64, 128)", "(50304, 768)", "(4096, 2048)"]


@pytest.mark.parametrize("rule", FLOORS)
@pytest.mark.parametrize("setting", [*BOUNDED, "(4096, 2048), four devices"])
@pytest.mark.parametrize("card", CARDS)
def test_the_committed_results_are_within_the_bounds(card, setting, rule):
    check_bounds(card, setting, rule, committed()["cards"][card]["cases"][setting][rule])


@pytest.mark.parametrize(("rule", "most"), [("16 bits", 2.5), ("8 bits", 4)])
@pytest.mark.parametrize("setting", ["(784, 500)", "(4096, 2048)"])
def test_quantized_state_takes_the_tpu_compiler_a_few_times_as_long(setting, rule, most):
    case = committed()["cards"]["TPU v5e"]["cases"][setting]
    assert case[rule]["compile"] < most * case["float32"]["compile"]


def test_the_page_shows_the_committed_results():
    page = MODULE.PAGE.read_text("utf-8")
    assert MODULE.filled(page, MODULE.PART, MODULE.tables(committed())) == page
