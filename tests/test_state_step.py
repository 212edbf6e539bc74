"""The steps with averages in few bits: that the script runs, what it measures, what it found."""

import json
import math
import sys

import pytest
import scripts

MODULE = scripts.module("studies.state_step")
REPORTS = sorted(MODULE.RESULTS.glob("state_step-*.json"))
BEGIN, END = f"<!-- {MODULE.PART} -->", f"<!-- /{MODULE.PART} -->"
BYTES = {"float32": 8, "16 bits": 4, "8 bits": 2}


def load(path):
    return json.loads(path.read_text("utf-8"))


def made_up(**others):
    """A report of one case on a GPU, where nothing says what a process holds."""
    facts = {"seconds": 2e-3, "quartiles": [1e-3, 3e-3], "times float32": 1, "of the bound": 0.5}
    facts |= {"state bytes per parameter": 8, "scratch bytes per parameter": 0, "compile": 1}
    case = {"parameters": 1000_000, "bytes a second": 1e9, **dict.fromkeys(MODULE.RULES, facts)}
    kept = dict.fromkeys(MODULE.RULES, others.pop("memory", None))
    return {
        "command": "made up",
        "machine": "none",
        "versions": {"jax": "0.0.1"},
        "memory": {"parameters": 100_000_000, **kept},
        "cases": {"a case": case | others},
    }


def assert_complete(report, cases):
    assert list(report["cases"]) == list(cases)
    for case in report["cases"].values():
        assert case["bytes a second"] > 0
        for form, size in BYTES.items():
            facts = case[form]
            low, high = facts["quartiles"]
            assert 0 < low <= facts["seconds"] <= high
            assert size <= facts["state bytes per parameter"] < size + 0.1
            moved = facts["moved bytes per parameter"]
            assert moved == 12 + 2 * facts["state bytes per parameter"]
            assert facts["times float32"] == facts["seconds"] / case["float32"]["seconds"]
            speed = moved * case["parameters"] / facts["seconds"]
            assert facts["of the bound"] == pytest.approx(speed / case["bytes a second"])
    assert set(report["memory"]) == {"parameters", *MODULE.RULES}


@pytest.mark.scripts
def test_at_smoke_size_every_form_is_measured(tmp_path, monkeypatch):
    printed, report = scripts.benchmark("state_step", tmp_path / "state_step-smoke.json")
    assert "optax_adadelta" in report["versions"]
    assert_complete(report, MODULE.SMOKE)
    assert all(f"| {name} |" in printed for name in MODULE.SMOKE)
    assert all(case["floor"]["seconds"] > 0 for case in report["cases"].values())
    kept = report["memory"]
    if sys.platform == "linux":
        # What else a process comes to hold, the compiled step above all, is some megabytes.
        for form, size in BYTES.items():
            extra = kept[form]["state"] - size * kept["parameters"]
            assert -1e6 < extra < 8e6
            assert kept[form]["peak"] >= kept[form]["state"]
        assert kept["optax"]["peak"] > kept["float32"]["peak"]

    # The saved results fill a page, and nothing else on it changes.
    page = tmp_path / "memory.md"
    page.write_text(f"a\n{BEGIN}\nold\n{END}\nb\n", encoding="utf-8")
    monkeypatch.setattr(MODULE, "PAGE", page)
    monkeypatch.setattr(MODULE, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["state_step.py", "--table"])
    MODULE.main()
    filled = page.read_text("utf-8")
    assert filled == f"a\n{BEGIN}\n{MODULE.tables(report)}\n{END}\nb\n"
    MODULE.main()
    assert page.read_text("utf-8") == filled


def test_a_table_has_a_floor_and_a_memory_where_they_were_measured():
    bare = MODULE.tables(made_up())
    assert "floor" not in bare
    assert "cannot be read" in bare
    assert f"| a case | {4 * '2 (1 to 3) | '}1.00 / 1.00 / 1.00 |" in bare
    whole = made_up(floor={"seconds": 1e-3, "quartiles": [1e-3, 1e-3]}, memory={"state": 8e8})
    for held in whole["memory"].values():
        if isinstance(held, dict):
            held["peak"] = 9e8
    whole = MODULE.tables(whole)
    assert "| 8 bits | optax | floor | times float32 |" in whole
    assert "| 2 (1 to 3) | 1 (1 to 1) | 1.00 / 1.00 / 1.00 |" in whole
    assert "100M parameters" in whole
    assert "| optax | 800 | 900 |" in whole


def test_every_result_has_a_place_on_the_page():
    two = [made_up() | {"machine": name} for name in ("this one", "that one")]
    page = MODULE.with_tables(f"{BEGIN}\n{END}", two)
    assert page.index("this one") < page.index("that one")
    assert page.count("| a case |") == 2


@pytest.mark.parametrize("page", ["", BEGIN, END, f"{END}{BEGIN}"])
def test_a_page_without_its_markers_is_refused(page):
    with pytest.raises(SystemExit, match="needs"):
        MODULE.with_tables(page, [])


def test_one_round_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["state_step.py", "--rounds", "1"])
    with pytest.raises(SystemExit):
        MODULE.main()
    assert "at least 2" in capsys.readouterr().err


def test_where_memory_cannot_be_read_none_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "Path", lambda name: tmp_path / "none")
    assert MODULE.memory() is None
    assert MODULE.held("8 bits", 128) is None


def test_the_trees_have_the_sizes_that_their_names_say():
    sizes = {name: sum(map(math.prod, shapes)) for name, shapes in MODULE.CASES.items()}
    assert sizes == {
        "2 leaves of 2048 x 4096": 16_777_216,
        "1 leaf of 10000 x 10000": 100_000_000,
        "12-layer transformer": 124_439_808,
        "ResNet-50": 25_557_032,
        "2 leaves of 8M": 16_000_000,
    }


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_the_committed_results_are_of_every_case_and_form(path):
    report = load(path)
    assert "--smoke" not in report["command"]
    assert_complete(report, MODULE.CASES)
    kept = report["memory"]
    for form, facts in report["cases"]["1 leaf of 10000 x 10000"].items():
        if form in BYTES:
            exact = facts["state bytes per parameter"] * kept["parameters"]
            assert kept[form]["state"] == pytest.approx(exact, rel=0.06)
    assert kept["8 bits"]["peak"] < kept["16 bits"]["peak"]
    assert kept["16 bits"]["peak"] < kept["float32"]["peak"]
    assert kept["16 bits"]["peak"] < 1.1 * kept["16 bits"]["state"]
    assert kept["float32"]["peak"] < 1.05 * kept["float32"]["state"]
    if "-cpu-" in path.stem:
        # On a GPU the kernels of Optax's step are fused, so it needs no more memory.
        assert kept["float32"]["peak"] < kept["optax"]["peak"]
        for case in report["cases"].values():
            assert case["floor"]["seconds"] < case["float32"]["seconds"]


def test_the_page_shows_the_committed_results():
    page = MODULE.PAGE.read_text("utf-8")
    assert BEGIN in page
    assert MODULE.with_tables(page, [load(path) for path in REPORTS]) == page
