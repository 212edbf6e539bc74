"""The table of hazards: that its script runs, that our column holds, that the page shows it."""

import json

import pytest
import scripts

# The largest error that docs/numerics.md promises; what it does not promise is beyond.
BOUND = 1e-5
BEYOND = {
    "gradients of 1e-17, eps 1e-36",
    "gradients of 1e-17, smallest normal eps",
    "the same gradient, 20,000 steps",
}


def assert_ours_holds(results):
    for hazard, row in results.items():
        ours = row["optax_adadelta"]
        if hazard in ("rho 1.5", "eps -1"):
            assert ours == "refused (ValueError)"
        elif "float64" in row:
            assert ours == row["float64"] == "never" or ours <= row["float64"]
        elif hazard not in BEYOND:
            assert ours < BOUND, hazard


@pytest.mark.scripts
def test_at_smoke_size_our_column_holds(tmp_path):
    printed, report = scripts.benchmark("hazards", tmp_path / "hazards.json")
    assert "optax_adadelta" in report["versions"]
    assert_ours_holds(report["results"])
    assert all(hazard in printed for hazard in report["results"])


def test_the_committed_results_hold_and_are_of_every_peer():
    report = json.loads((scripts.STUDIES / "results" / "hazards.json").read_text("utf-8"))
    assert set(scripts.module("studies.hazards").PACKAGES) < set(report["versions"])
    assert "not installed" not in json.dumps(report["results"])
    assert_ours_holds(report["results"])
    assert all(
        isinstance(row["optax_adadelta"], int)
        for row in report["results"].values()
        if "float64" in row
    )


def test_the_page_shows_the_committed_results():
    module = scripts.module("studies.hazards")
    report = json.loads(module.RESULTS.read_text("utf-8"))
    page = module.PAGE.read_text("utf-8")
    assert module.with_table(page, report) == page
    for name in ("torch", "optax", "keras"):
        release, _, _ = report["versions"][name].partition("+")
        assert f"{name} {release}" in page.lower()
