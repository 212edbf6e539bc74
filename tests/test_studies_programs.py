"""Programs for GPUs and TPUs: how they are read, their bounds, what was found."""

import functools

import pytest
from scripts import module

pytestmark = pytest.mark.scripts

READER, WORKERS = module("studies._lib.programs"), module("studies._lib.workers")
ACCELERATORS, MANY = module("studies.accelerators"), module("studies.many_devices")
RESULTS, PROBLEM = module("studies._lib.results"), module("studies._lib.cards").problem
CARDS = ("H100", "TPU v5e")
# Bytes per float32 parameter: gradient, parameter and state are read, the last two are written.
FLOORS = {"float32": 28, "16 bits": 20, "8 bits": 16}
STATE = {storage: (floor - 12) // 2 for storage, floor in FLOORS.items()}
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


@pytest.fixture(params=CARDS)
def card(request):
    """The name of a card whose compiler is installed."""
    if problem := PROBLEM(request.param):
        pytest.skip(problem)
    return request.param


def compiled(cases):
    return WORKERS.compiled("accelerators", cases, together=True)


@functools.cache
def programs(card, setting):
    """What is compiled for a setting with each storage."""
    setting = ACCELERATORS.SETTINGS[setting]
    return dict(zip(FLOORS, compiled([(card, rule, *setting) for rule in FLOORS]), strict=True))


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
@pytest.mark.slow
def test_nadadelta_moves_the_bytes_of_its_trace_more_and_no_others(card):
    rules = {f"nadadelta, {name}": FLOORS[name] + STATE[name] for name in FLOORS}
    found = compiled([(card, rule, [ACCELERATORS.LARGE]) for rule in rules])
    for floor, facts in zip(rules.values(), found, strict=True):
        assert facts["bytes"] / facts["parameters on a device"] <= 1.01 * floor
        assert facts["copies"] == facts["collectives"] == 0
        # A TPU makes two of the float32 step, and keeps what is between them in its vector memory.
        assert facts["kernels on leaves"] <= (1 if card == "H100" else 2)


@pytest.mark.accelerators
def test_leaves_with_equally_many_columns_exchange_nothing(card):
    shapes = [(512,), (128, 512)]
    cases = [(card, rule, shapes, "float32", "alone", 4) for rule in FLOORS]
    assert [facts["collectives"] for facts in compiled(cases)] == [0, 0, 0]


@pytest.mark.accelerators
@pytest.mark.slow
@pytest.mark.parametrize("rule", FLOORS)
def test_every_shape_compiles(card, rule):
    cases = [(card, rule, [shape]) for shape in ACCELERATORS.ODD]
    found = zip(ACCELERATORS.ODD, compiled(cases), strict=True)
    assert {shape: facts["failed"] for shape, facts in found if "failed" in facts} == {}


def committed(name):
    return RESULTS.load_all(name)[name]["cards"]


@pytest.mark.parametrize("card", CARDS)
def test_the_committed_results_are_of_every_case_and_none_failed(card):
    found = committed("accelerators")[card]
    assert list(found["cases"]) == list(ACCELERATORS.SETTINGS)
    assert list(found["odd shapes"]) == list(map(str, ACCELERATORS.ODD))
    for section, rules in (("cases", ACCELERATORS.RULES), ("odd shapes", ACCELERATORS.STORAGES)):
        for case in found[section].values():
            assert list(case) == list(rules)
            assert not any("failed" in facts for facts in case.values())


BOUNDED = ["(8192,)", "(784, 500)", "(3, 3, 64, 128)", "(50304, 768)", "(4096, 2048)"]


@pytest.mark.parametrize("rule", FLOORS)
@pytest.mark.parametrize("setting", [*BOUNDED, "(4096, 2048), four devices"])
@pytest.mark.parametrize("card", CARDS)
def test_the_committed_results_are_within_the_bounds(card, setting, rule):
    check_bounds(card, setting, rule, committed("accelerators")[card]["cases"][setting][rule])


@pytest.mark.parametrize(("rule", "most"), [("16 bits", 2.5), ("8 bits", 4)])
@pytest.mark.parametrize("setting", ["(784, 500)", "(4096, 2048)"])
def test_quantized_state_takes_the_tpu_compiler_a_few_times_as_long(setting, rule, most):
    case = committed("accelerators")["TPU v5e"]["cases"][setting]
    assert case[rule]["compile"] < most * case["float32"]["compile"]


EXCHANGES = """HloModule jit_step

ENTRY %main (p: f32[2], q: f32[4]) -> f32[8] {
  %p = f32[2]{0} parameter(0)
  %q = f32[4]{0} parameter(1)
  %gather = ((f32[2]{0}, f32[4]{0}), (f32[8]{0}, f32[16]{0})) all-gather-start(%p, %q)
  %sum = f32[2]{0} all-reduce-start(%p), to_apply=%add
  %scatter = f32[1]{0} reduce-scatter(%q), to_apply=%add
  ROOT %done = (f32[8]{0}, f32[16]{0}) all-gather-done(%gather)
}
"""


def test_each_result_of_an_operation_between_devices_counts_once():
    assert READER.collectives(EXCHANGES) == {
        ("all-gather", "f32", (8,)): 1,
        ("all-gather", "f32", (16,)): 1,
        ("all-reduce", "f32", (2,)): 1,
        ("reduce-scatter", "f32", (1,)): 1,
    }


@pytest.mark.parametrize("way", MANY.WAYS)
@pytest.mark.parametrize("card", CARDS)
def test_in_the_committed_results_no_step_moves_more_between_devices_than_sgd(card, way):
    case = committed("many_devices")[card][way]
    assert list(case) == list(MANY.RULES)
    mixed = card == "H100" and way == "fully sharded and tensor parallel"
    for storage, size in STATE.items():
        facts, sgd = case[storage], case["sgd"]
        assert facts["collectives"] == sgd["collectives"] != {}
        assert facts["stored"] == size * facts["on a device"]
        more = (facts["moved"] - sgd["moved"]) / facts["on a device"]
        # There the layouts of gradients and updates differ. Elsewhere at most the updates are
        # stored once more.
        assert more <= 2 * size + (18 if mixed else 8.2)
        assert facts["copies"] <= sgd["copies"] + (2 if mixed else 0)


ESTIMATE = module("studies._estimate")


@pytest.mark.parametrize("storage", STATE)
@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 2), ("float32", 4)])
def test_compiled_programs_move_the_bytes_that_the_estimate_counts(dtype, size, storage):
    assert ESTIMATE.state_bytes(storage) == STATE[storage]
    counted = ESTIMATE.moved_bytes(dtype, storage)
    assert counted == 3 * size + 2 * STATE[storage]
    case = "four devices" if dtype == "float32" else "bfloat16, stochastic_round"
    for card in CARDS:
        facts = committed("accelerators")[card]["cases"][f"(4096, 2048), {case}"][storage]
        assert facts["bytes"] / facts["parameters on a device"] == pytest.approx(counted, rel=2e-3)


def test_the_estimate_is_what_one_computes_by_hand():
    # 70e9 / 256 = 273,437,500 parameters on a device; 22 bytes each at 3.35e12 per second.
    h100, v5e = ESTIMATE.CHIPS["H100"], ESTIMATE.CHIPS["TPU v5e"]
    assert ESTIMATE.least_seconds("bfloat16", "float32", h100) == pytest.approx(1.7957e-3, rel=1e-4)
    assert ESTIMATE.least_seconds("bfloat16", "8 bits", v5e) == pytest.approx(3.3387e-3, rel=1e-4)
    # 6 * 70e9 * 8192 = 3.44064e15 operations; 0.4 * 989e12 and 0.4 * 197e12 per second.
    assert ESTIMATE.training_seconds(h100) == pytest.approx(8.6973, rel=1e-4)
    assert ESTIMATE.training_seconds(v5e) == pytest.approx(43.663, rel=1e-4)
