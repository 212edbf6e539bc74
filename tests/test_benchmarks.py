"""The benchmarks of time: that they run, what they write, and that the page shows it."""

import json
import math

import pytest
import scripts

pytestmark = pytest.mark.scripts

BENCHMARKS = scripts.BENCHMARKS
REPORTS = sorted((BENCHMARKS / "results").glob("step-cpu-*.json"))


def load(path):
    return json.loads(path.read_text("utf-8"))


def test_the_guard_against_overflow_is_measured(tmp_path):
    printed, report = scripts.benchmark("overflow_guard", tmp_path / "guard.json")
    assert report["ratio"] > 0
    assert f"{report['ratio']:.3f} times as long" in printed


@pytest.mark.slow
def test_at_smoke_size_every_contender_is_measured_in_every_setting(tmp_path):
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

    # What was just measured can be tabled and drawn.
    module = scripts.module("step_report", BENCHMARKS)
    module.FEW = 0
    picture = tmp_path / "step.png"
    report["cases"]["784-500-300-10"] = report["cases"]["8-6-4"]
    module.draw([report], picture)
    assert picture.read_bytes().startswith(scripts.PNG)
    page = "a\n<!-- alone 0.0 -->\nold\n<!-- /alone 0.0 -->\nb"
    report["versions"]["jax"] = "0.0.1"
    filled = module.with_parts(page, module.parts([report]))
    assert "| 8-6-4 |" in filled
    assert "old" not in filled
    assert filled.startswith("a\n")
    assert filled.endswith("\nb")


def test_the_trees_have_the_sizes_that_their_names_say():
    sizes = {
        name: (len(shapes), sum(map(math.prod, shapes)))
        for name, shapes in scripts.module("_cases", BENCHMARKS).CASES.items()
    }
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


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_the_committed_results_are_of_every_case_and_peer(path):
    report = load(path)
    assert list(report["cases"]) == list(scripts.module("_cases", BENCHMARKS).CASES)
    assert {"optax", "keras", "jax"} < set(report["versions"])
    for case in report["cases"].values():
        ours, theirs = case["alone"]["optax_adadelta"], case["alone"]["optax"]
        assert ours["copies"] == 0
        assert ours["scratch bytes per parameter"] < 0.01
        assert ours["kernels"] <= 3 * case["leaves"] + 1 < theirs["kernels"]


def test_the_readme_and_the_page_give_the_range_of_large_leaves():
    cases = [case for path in REPORTS for case in load(path)["cases"].values()]
    steps = [case["alone"] for case in cases if case["parameters"] > 10_000_000]

    def span(of, to):
        ratios = [step[of]["seconds"] / step[to]["seconds"] for step in steps]
        return f"{min(ratios):.1f} to {max(ratios):.1f} times"

    page = scripts.module("step_report", BENCHMARKS).PAGE.read_text("utf-8")
    for text in (page, (scripts.ROOT / "README.md").read_text("utf-8")):
        assert f"{span('optax', 'optax_adadelta')} as fast as Optax" in " ".join(text.split())
    assert f"{span('optax_adadelta', 'floor')} the floor" in " ".join(page.split())


def test_the_page_shows_the_committed_results():
    assert len(REPORTS) == 2
    assert any("torch" in load(path)["versions"] for path in REPORTS)
    module = scripts.module("step_report", BENCHMARKS)
    page = module.PAGE.read_text("utf-8")
    made = module.parts([load(path) for path in REPORTS])
    assert all(f"<!-- {name} -->" in page for name in made)
    assert module.with_parts(page, made) == page
    scripts.check_picture(module.PICTURE)


@pytest.mark.slow
def test_at_smoke_size_clips_and_flat_parameters_are_measured(tmp_path):
    printed, report = scripts.benchmark("chain", tmp_path / "chain.json")
    assert "times as fast with this clip" in printed
    module = scripts.module("chain", BENCHMARKS)
    for case in report["cases"].values():
        assert set(case["steps"]) == {
            module.ALONE,
            module.OURS,
            module.OPTAXS,
            module.FLATTEN,
            module.FLAT,
        }
        for step in case["steps"].values():
            assert 0 < step["least"] <= step["seconds"]


def test_the_page_shows_the_committed_results_of_clips_and_flat_parameters():
    paths = sorted((BENCHMARKS / "results").glob("chain-*.json"))
    assert {path.stem.split("-")[1] for path in paths} == {"cpu", "gpu"}
    reports = [load(path) for path in paths]
    module = scripts.module("chain", BENCHMARKS)
    page = module.PAGE.read_text("utf-8")
    assert module.with_tables(page, reports) == page
    for report in reports:
        for case in report["cases"].values():
            ours, theirs = (case["steps"][kind] for kind in (module.OURS, module.OPTAXS))
            assert ours["bytes per parameter"] <= theirs["bytes per parameter"]
