"""The gallery is complete, its tables are those of the results, and one command makes it."""

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from scripts import EXAMPLES, ROOT, WITH_PICTURE, check_picture, module

gallery = module("studies.gallery")
PAGE = gallery.PAGE.read_text(encoding="utf-8")
# These have other pages.
MODULES = {path.stem for path in (ROOT / "experiments").glob("[!_]*.py")} - {"compare", "kills"}


def results(name):
    return json.loads((gallery.FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def test_every_picture_is_shown_and_every_command_given():
    pictures = {path.name for path in gallery.FOLDER.iterdir() if path.suffix in (".png", ".gif")}
    assert pictures == set(re.findall(r"!\[[^]]+\]\(gallery/([^)]+)\)", PAGE))
    assert set(re.findall(r"^python examples/(\w+)\.py", PAGE, re.MULTILINE)) == WITH_PICTURE
    assert set(re.findall(r"^python -m experiments\.(\w+)", PAGE, re.MULTILINE)) == MODULES
    for path in gallery.FOLDER.glob("*.png"):
        check_picture(path)


@pytest.mark.parametrize("name", gallery.EXPERIMENTS)
def test_the_results_are_of_a_run_in_full(name):
    report = results(name)
    experiment = gallery.EXPERIMENTS[name]
    assert {part: made["epochs"] for part, made in report.items()} == experiment.epochs
    for made in report.values():
        assert made["command"].startswith(f"python -m experiments.{name}")
        assert "--smoke" not in made["command"]
        assert made["seeds"] == 5
        assert {"jax", "optax", "optax_adadelta", "numpy", "python"} <= set(made["versions"])
        assert {"date", "machine"} <= set(made)


def test_the_page_shows_the_tables_of_the_results():
    assert gallery.with_tables(PAGE) == PAGE
    for name, experiment in gallery.EXPERIMENTS.items():
        for table in experiment.tables(results(name)).values():
            assert len(table.splitlines()) > 3
            assert table in PAGE


def test_the_paper_is_reproduced():
    tables, report = module("studies.mnist_tables"), results("mnist_tables")
    columns = report["Table 2"]["columns"]
    for name, column in columns.items():
        for eps, paper in zip((1e-4, 1e-6, 1e-8), tables.PAPER["Table 2"][name][2:5], strict=True):
            errors = column["errors"][tables.EPSILONS.index(eps)]
            assert np.mean(errors) == pytest.approx(paper, abs=0.2)
    methods, _ = tables.halves(report)
    for column in methods.values():
        low, high = tables.plateau(column)
        assert 0.8 < np.log10(high / low) < 1.3
    for name in ("Momentum", "Adagrad"):
        paper = [error or np.inf for error in tables.PAPER["Table 1"][name]]
        means = np.mean(report["Table 1"]["columns"][name]["errors"], axis=1)
        assert means.argmin() == np.argmin(paper)
    figure = results("mnist_figures")["Figure 1"]["errors"]
    ends = {name: np.mean(runs, axis=0)[-1] for name, runs in figure.items()}
    assert sorted(ends, key=ends.get) == ["Momentum", "Adadelta", "Adagrad", "SGD"]
    book, _ = results("airfoil")["experiment"]["final"]
    assert 0.243 <= np.mean(book) <= 0.248


def test_one_command_runs_every_other_script(monkeypatch, capsys):
    assert set(gallery.EXAMPLES) == WITH_PICTURE
    assert {*gallery.EXPERIMENTS, "gallery"} == MODULES
    options = argparse.Namespace(
        output=Path("out"), smoke=True, draw_only=True, data_dir=Path("data"), data_url="url"
    )
    for name in (*WITH_PICTURE, *gallery.EXPERIMENTS):
        python, *given = gallery.command(name, options)
        assert python == sys.executable
        if name in WITH_PICTURE:
            assert given[0] == str(EXAMPLES / f"{name}.py")
            monkeypatch.setattr(sys, "argv", [given[0], "--help"])
            with pytest.raises(SystemExit):
                module(name).main()
            text = capsys.readouterr().out
        else:
            assert given[:2] == ["-m", f"experiments.{name}"]
            text = module("studies._lib.runner").parser_of(gallery.EXPERIMENTS[name]).format_help()
        known = set(re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE))
        assert {"--output", "--smoke"} <= {word for word in given if word[:2] == "--"} <= known


def test_a_script_that_fails_stops_the_gallery(monkeypatch, tmp_path):
    arguments = ["gallery.py", "--draw-only", "--output", str(tmp_path), "--only", "airfoil"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(
        gallery, "command", lambda *_: [sys.executable, "-c", "raise SystemExit(3)"]
    )
    with pytest.raises(SystemExit, match="airfoil failed with exit status 3"):
        gallery.main()
