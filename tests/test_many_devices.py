"""The training steps for 8 GPUs and 16 TPUs that are not there, against those of SGD."""

import json

import pytest
import scripts

MODULE = scripts.module("studies.many_devices")
BYTES = {"float32": 8, "16 bits": 4, "8 bits": 2}  # of state, for each parameter


def check(report, ways):
    """Asserts that a step costs its own state and nothing else between devices."""
    assert list(report["cards"]) == list(MODULE.CARDS)
    for card, found in report["cards"].items():
        assert list(found) == list(ways)
        for way, case in found.items():
            assert list(case) == list(MODULE.RULES)
            assert not any("failed" in facts for facts in case.values())
            mixed = card == "H100" and way == "fully sharded and tensor parallel"
            for storage, size in BYTES.items():
                facts, sgd = case[storage], case["sgd"]
                assert facts["collectives"] == sgd["collectives"] != {}
                assert facts["stored"] == size * facts["on a device"]
                more = (facts["moved"] - sgd["moved"]) / facts["on a device"]
                # There the layouts of gradients and updates differ. Elsewhere at most the updates
                # are stored once more.
                assert more <= 2 * size + (18 if mixed else 8.2)
                assert facts["copies"] <= sgd["copies"] + (2 if mixed else 0)


PROGRAM = """HloModule jit_step

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
    assert MODULE.collectives(PROGRAM) == {
        ("all-gather", "f32", (8,)): 1,
        ("all-gather", "f32", (16,)): 1,
        ("all-reduce", "f32", (2,)): 1,
        ("reduce-scatter", "f32", (1,)): 1,
    }


def committed():
    return json.loads((scripts.STUDIES / "results" / "many_devices.json").read_text("utf-8"))


def test_in_the_committed_results_no_step_moves_more_between_devices_than_sgd():
    report = committed()
    assert "--smoke" not in report["command"]
    check(report, MODULE.WAYS)


def test_the_page_shows_the_committed_results():
    page = MODULE.PAGE.read_text("utf-8")
    assert MODULE.filled(page, MODULE.PART, MODULE.tables(committed())) == page


def test_the_table_counts_what_sgd_does_not_do():
    report = committed()
    case = report["cards"]["H100"]["ZeRO-1"]
    case["8 bits"]["collectives"]["all-gather s32[512]"] = 1
    report["cards"]["TPU v5e"]["ZeRO-1"]["sgd"] = {"failed": "SIGABRT"}
    text = MODULE.tables(report)
    assert "| ZeRO-1 | 3 all-gather, 3 reduce-scatter | 0 / 0 / 1 |" in text
    assert "| ZeRO-1 | fails with sgd |" in text


@pytest.mark.accelerators
@pytest.mark.scripts
@pytest.mark.skipif(any(map(MODULE.problem, MODULE.CARDS)), reason="a compiler is not installed")
def test_at_smoke_size_both_cards_are_compiled(tmp_path):
    _, report = scripts.benchmark("many_devices", tmp_path / "many_devices.json")
    check(report, ["ZeRO-1"])
