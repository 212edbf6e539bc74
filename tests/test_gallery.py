"""The gallery is complete, its numbers are those of the results, and one command makes it."""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from scripts import EXAMPLES, ROOT, check_picture, module, run

pytestmark = pytest.mark.scripts

PAGE = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
README = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
FOLDER = ROOT / "docs" / "gallery"
ALL = {path.stem for path in EXAMPLES.glob("[!_]*.py")}
WITH_NUMBERS = ("airfoil", "mnist_figures", "mnist_tables", "trajectories")


def results(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def spread(errors):
    return f"{np.mean(errors):.2f} ± {np.std(errors, ddof=1):.2f}"


def test_every_picture_is_shown_and_every_command_given():
    pictures = {path.name for path in FOLDER.iterdir() if path.suffix in (".png", ".gif")}
    assert pictures == set(re.findall(r"!\[[^]]+\]\(gallery/([^)]+)\)", PAGE))
    assert set(re.findall(r"^python examples/(\w+)\.py", PAGE, re.MULTILINE)) == ALL
    for path in FOLDER.glob("*.png"):
        check_picture(path)


@pytest.mark.parametrize("name", WITH_NUMBERS)
def test_the_results_are_of_a_run_in_full(name):
    report = results(name)
    for made in report.values() if "command" not in report else [report]:
        assert re.match(rf"python examples/{name}\.py", made["command"])
        assert "--smoke" not in made["command"]
        assert {"jax", "optax", "optax_adadelta", "numpy", "python"} <= set(made["versions"])
        assert {"date", "machine"} <= set(made)


def test_the_tables_are_those_of_the_results():
    tables, report = module("experiments.mnist_tables"), results("mnist_tables")
    assert all((made["seeds"], made["epochs"]) == (5, 6) for made in report.values())
    columns = report["Table 2"]["columns"]
    for row, eps in enumerate(tables.EPSILONS):
        (line,) = re.findall(rf"^\| eps 1e{np.log10(eps):.0f} \| (.*) \|$", PAGE, re.MULTILINE)
        paper = [tables.PAPER["Table 2"][name][row] for name in columns]
        cells = [cell.strip() for cell in line.split("|")]
        assert cells[::2] == [spread(column["errors"][row]) for column in columns.values()]
        assert cells[1::2] == ["" if number is None else f"{number:.2f}" for number in paper]
    apart = [
        abs(np.mean(column["errors"][row]) - tables.PAPER["Table 2"][name][row])
        for name, column in columns.items()
        for row in (2, 3, 4)
    ]
    assert f"are within {max(apart):.2f} points of the paper's" in PAGE
    assert f"come out within {max(apart):.2f} points of its test errors" in README
    assert f"the default at {spread(columns['rho 0.95']['errors'][3])} % (paper: 1.83)" in README
    assert max(apart) < 0.4
    assert np.mean(columns["rho 0.95"]["errors"][3]) <= 2.0
    networks = {name: spread(c["errors"][0]) for name, c in report["Networks"]["columns"].items()}
    del networks["ReLU, Glorot uniform"], networks["tanh, He normal"]
    prose = " ".join(PAGE.split())
    assert [number for number in networks.values() if number not in prose] == []
    methods, by_eps = tables.halves(report)
    for name, column in methods.items():
        best = min(np.mean(errors) for errors in column["errors"])
        low, high = tables.plateau(column)
        assert 0.8 < np.log10(high / low) < 1.3
        if name != "Adadelta":
            assert f"{name} {best:.2f}" in prose
    assert f"Adadelta {np.mean(columns['rho 0.9']['errors'][3]):.2f} (rho 0.9, eps 1e-6)" in prose
    widths = [np.log10(high / low) for low, high in map(tables.plateau, by_eps.values())]
    assert f"{widths[0]:.1f} decades wide at rho 0.9 and more than 8" in prose
    assert min(widths[1:]) > 8


def test_the_figures_are_those_of_the_results():
    report = results("mnist_figures")
    assert [(made["seeds"], made["epochs"]) for made in report.values()] == [(5, 50), (5, 25)]
    last = np.array([np.array(runs)[:, -1] for runs in report["Figure 1"]["errors"].values()])
    assert f"| mean of five seeds | {' | '.join(f'{m:.2f}' for m in last.mean(axis=1))} |" in PAGE
    ends = zip(last.min(axis=1), last.max(axis=1), strict=True)
    assert f"| {' | '.join(f'{low:.2f} to {high:.2f}' for low, high in ends)} |" in PAGE
    whole = {
        what: np.stack([layer[what] for layer in report["Figure 2"]["whole"].values()])
        for what in ("rate", "update", "numerator", "cosine")
    }
    first = whole["rate"][:, :, 0].mean(axis=1)
    assert f"| {', '.join(f'{rate:.2f}' for rate in first)} | true |" in PAGE
    assert abs(whole["rate"][:, :, -1] - 1).max() < 5e-4
    update = whole["update"]
    shares = update[:, :, :25].mean(axis=(1, 2)) / update[:, :, -25:].mean(axis=(1, 2))
    (told,) = re.findall(r"in the last tenth 1/(\d+), 1/(\d+), 1/(\d+)", PAGE)
    np.testing.assert_allclose(shares, np.array(told, int), rtol=0.05)
    order = module("experiments.mnist_figures").rank_correlation(update.mean(axis=1))
    assert f"correlation with time of {', '.join(f'{value:.2f}' for value in order)} |" in PAGE
    top = whole["numerator"][2].mean(axis=0)
    assert f"rises by {100 * (top.max() / top[0] - 1):.0f} % in the first two epochs" in PAGE
    assert top.argmax() < 20
    turn = whole["cosine"][:, :, :25].mean(axis=(1, 2))
    assert f"cosine of {', '.join(f'{value:.2f}' for value in turn)} in the first tenth" in PAGE
    assert whole["cosine"][:, :, -25:].mean(axis=(1, 2)) == pytest.approx([0.0] * 3, abs=0.05)


def test_the_ravine_s_rates_are_those_of_the_results():
    rates = results("trajectories")["results"]["own_rates"]
    assert f"one {rates['x'][30] / rates['y'][30]:.0f} times smaller than along it" in PAGE


def test_the_textbook_s_numbers_are_those_of_the_results():
    prose, found = " ".join(PAGE.split()), results("airfoil")["results"]
    book, smaller = found["experiment"]["final"]
    forms, breakers = found["forms"], found["breakers"]

    def at(problem, x):
        line = breakers[problem]["x"].index(x)
        return [values[line] for values in breakers[problem]["lines"].values()]

    early = np.array(found["rho"]["losses"])[[0, -1], 4]
    costs = forms["costs"]["forms"]
    quick, slow = (costs[name] for name in ("without g'", "with g'"))
    share = forms["range"]["share"]["without g'"]
    lost = min(g for g, s in zip(forms["range"]["gradients"], share, strict=True) if s < 0.5)
    arrived = list(breakers["sparse"]["arrived"].values())
    for told in (
        f"loss of {np.mean(book):.4f} ({min(book):.4f} to {max(book):.4f} over five seeds)",
        f"least squares at {found['least squares']:.4f}",
        f"with eps 1e-6 it ends at {np.mean(smaller):.4f}",
        f"the loss is {early[0]:.3f} at rho 0.5 and {early[1]:.3f} at 0.999",
        f"to {max(forms['apart']):.0f} roundings of float32 in {forms['steps']} steps",
        f"counts {quick['bytes accessed']:.0f} bytes and one root for each coordinate, with g'"
        f" {slow['bytes accessed']:.0f} and two",
        f"takes {quick['ms']:.1f} ms instead of {slow['ms']:.1f}",
        f"gradients from 1e{np.log10(lost):.0f} on",
        f"loss / scale² {at('scale', 1e4)[0]:.3f}; {at('scale', 1e-3)[0]:.0f} |",
        f"| {at('scale', 1e4)[1]:.3f}; {at('scale', 1e-3)[1]:.3f} |",
        f"| {at('curvature', 10.0)[0]:.1f} above least squares |",
        f"| {at('curvature', 10.0)[2]:.0e} |",
        f"finds a mean of {at('rare', 100)[0]:.2f}, not 1 |",
        f"| rho 0.9999 | {at('rare', 100)[2]:.2f} |",
        f"| loss {at('spike', 1e6)[0]:.3f}, not {at('spike', 1.0)[0]:.3f} |",
        f"clip the norm, to 10 | {at('spike', 1e6)[1]:.4f} |",
        f"{at('noise', 50)[0]:.1e} above".replace("e-0", "e-"),
        f"| {at('noise', 50)[1]:.1e} |".replace("e-0", "e-"),
        f"{arrived[1]} gradients to come 90 % of the way, dense ones {arrived[0]} | rho 0.999"
        f" | {arrived[2]} |",
    ):
        assert told in prose
    assert (quick["transcendentals"], slow["transcendentals"]) == (1, 2)


def test_one_command_runs_every_other_example(monkeypatch, capsys):
    gallery = module("experiments.gallery")
    assert {*gallery.EXAMPLES, "gallery"} == ALL
    options = argparse.Namespace(
        output=Path("out"), smoke=True, draw_only=True, data_dir=Path("data"), data_url="url"
    )
    for name in gallery.EXAMPLES:
        python, script, *given = gallery.command(name, options)
        assert (python, script) == (sys.executable, str(EXAMPLES / f"{name}.py"))
        monkeypatch.setattr(sys, "argv", [script, "--help"])
        with pytest.raises(SystemExit):
            module(name).main()
        known = set(re.findall(r"^  (--[a-z-]+)", capsys.readouterr().out, re.MULTILINE))
        assert {"--output", "--smoke"} <= {word for word in given if word[:2] == "--"} <= known


@pytest.mark.slow
def test_the_committed_results_can_be_drawn(tmp_path):
    for name in WITH_NUMBERS:
        shutil.copy(FOLDER / f"{name}.json", tmp_path)
    printed = run("gallery", "--draw-only", "--output", tmp_path, "--examples", *WITH_NUMBERS)
    committed = {path.name for path in FOLDER.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == committed - {
        "digits.png",
        "linear_regression.png",
    }
    for path in tmp_path.glob("*.png"):
        check_picture(path)
    assert printed.endswith(f"Numbers and pictures: {tmp_path}\n")


def test_an_example_that_fails_stops_the_gallery(monkeypatch, tmp_path, capsys):
    arguments = ["gallery.py", "--draw-only", "--output", str(tmp_path), "--examples", "airfoil"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="airfoil failed with exit status 1"):
        module("experiments.gallery").main()
