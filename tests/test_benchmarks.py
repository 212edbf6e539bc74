"""The benchmarks of time run, write what they measure, and the pages show the committed results."""

import math

import pytest
import scripts

from studies._lib.report import RESULTS, load, load_all

STEP = scripts.module("studies.step_report")
CHAIN = scripts.module("studies.chain")
CASES = scripts.module("studies._lib.cases").CASES
REPORTS = load_all("step-cpu-*.json")


@pytest.mark.scripts
def test_the_guard_against_overflow_is_measured(tmp_path):
    printed, report = scripts.benchmark("overflow_guard", tmp_path / "guard.json")
    assert report["ratio"] > 0
    assert f"{report['ratio']:.3f} times as long" in printed


@pytest.mark.scripts
def test_at_smoke_size_every_contender_is_measured_in_every_setting(tmp_path, monkeypatch):
    printed, report = scripts.benchmark("step", tmp_path / "step.json")
    for name, case in report["cases"].items():
        assert f"{name}: " in printed
        for setting in ("alone", "clipped", "eager"):
            measured = case[setting]
            assert {"optax_adadelta", "optax", "floor"} <= set(measured)
            for facts in measured.values():
                low, high = facts["quartiles"]
                assert 0 < facts["least"] <= low <= facts["seconds"] <= high
        assert case["alone"]["optax_adadelta"]["scratch bytes per parameter"] == 0
    assert {"optax_adadelta", "optax", "jax, gradients alone"} <= set(report["training"])

    # The new results can be drawn and put into a page.
    monkeypatch.setattr(STEP, "FEW", 0)
    picture = tmp_path / "step.png"
    report["cases"]["784-500-300-10"] = report["cases"]["8-6-4"]
    STEP.draw([report], picture)
    scripts.check_picture(picture)
    page = "a\n<!-- alone 0.0 -->\nold\n<!-- /alone 0.0 -->\nb"
    report["versions"]["jax"] = "0.0.1"
    filled = STEP.with_parts(page, STEP.parts([report]))
    assert "| 8-6-4 |" in filled
    assert "old" not in filled
    assert filled.startswith("a\n")
    assert filled.endswith("\nb")


def test_the_trees_have_the_sizes_that_their_names_say():
    sizes = {name: (len(shapes), sum(map(math.prod, shapes))) for name, shapes in CASES.items()}
    assert sizes == {
        "2 leaves of 8M": (2, 16_000_000),
        "128 leaves, 16.8M": (128, 16_821_248),
        "784-500-300-10": (6, 545_810),
        "500 leaves of 4096": (500, 2_048_000),
        "500 leaves of 1": (500, 500),
        "1 leaf of 100M": (1, 100_000_000),
        "ResNet-50": (161, 25_557_032),
        "12-layer transformer": (148, 124_439_808),
    }


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report["versions"]["jax"])
def test_the_committed_results_are_of_every_case_and_peer(report):
    assert list(report["cases"]) == list(CASES)
    assert {"optax", "keras", "jax"} < set(report["versions"])
    for case in report["cases"].values():
        ours, theirs = case["alone"]["optax_adadelta"], case["alone"]["optax"]
        assert ours["copies"] == 0
        assert ours["scratch bytes per parameter"] < 0.01
        assert ours["kernels"] <= 3 * case["leaves"] + 1 < theirs["kernels"]


def test_the_page_shows_the_committed_results():
    assert len(REPORTS) == 2
    assert any("torch" in report["versions"] for report in REPORTS)
    page, made = STEP.PAGE.read_text("utf-8"), STEP.parts(REPORTS)
    assert all(f"<!-- {name} -->" in page for name in made)
    assert STEP.with_parts(page, made) == page


@pytest.mark.scripts
def test_at_smoke_size_clips_and_flat_parameters_are_measured(tmp_path):
    printed, report = scripts.benchmark("chain", tmp_path / "chain.json")
    assert "times as fast with this clip" in printed
    for case in report["cases"].values():
        kinds = {CHAIN.ALONE, CHAIN.OURS, CHAIN.OPTAXS, CHAIN.FLATTEN, CHAIN.FLAT}
        assert set(case["steps"]) == kinds
        for step in case["steps"].values():
            assert 0 < step["least"] <= step["seconds"]


def test_the_page_shows_the_committed_results_of_clips_and_flat_parameters():
    paths = sorted(RESULTS.glob("chain-*.json"))
    assert {path.stem.split("-")[1] for path in paths} == {"cpu", "gpu"}
    reports = [load(path) for path in paths]
    page = CHAIN.PAGE.read_text("utf-8")
    assert CHAIN.with_tables(page, reports) == page
    for report in reports:
        for case in report["cases"].values():
            ours, theirs = (case["steps"][kind] for kind in (CHAIN.OURS, CHAIN.OPTAXS))
            assert ours["bytes per parameter"] <= theirs["bytes per parameter"]


@pytest.mark.scripts
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("What somebody keeps.")
    for output in (tmp_path, tmp_path / "file" / "results.json"):
        message = scripts.refusal("studies.overflow_guard", "--output", output)
        assert message.startswith(f"Cannot write --output {output}: ")
        assert message.count("\n") == 1
