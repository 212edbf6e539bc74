"""The comparison: it can be stopped, it tunes fairly, and the page has the committed results."""

import argparse
import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scripts
from scipy.stats import rankdata

pytestmark = pytest.mark.scripts

FOLDER = scripts.ROOT / "docs" / "when_to_use"
PAGE = (scripts.ROOT / "docs" / "when_to_use.md").read_text(encoding="utf-8")
SMOKED = ("Schedule-free AdamW",)
FACTORS = (0.1, 10**-0.5, 1, 10**0.5, 10, 10**1.5, 100)


@pytest.fixture(scope="module")
def compare():
    """The script."""
    return scripts.module("studies.compare")


@pytest.fixture(scope="module")
def found(compare):
    """The committed results, by task."""
    options = argparse.Namespace(output=FOLDER, smoke=False)
    files = {name: compare.file_of(name, options) for name in compare.TASKS}
    assert {path.name for path in FOLDER.glob("*.json")} == {path.name for path in files.values()}
    return {name: json.loads(path.read_text("utf-8")) for name, path in files.items()}


def test_a_short_run(tmp_path):
    rows = np.random.default_rng(0).normal(size=(700, 6)).round(3)
    content = "".join("\t".join(map(str, row)) + "\r\n" for row in rows).encode()
    data = scripts.Data(tmp_path / "data", {"airfoil_self_noise.dat": content})
    places = ("--data-dir", data.folder, "--output", tmp_path / "new" / "results")
    arguments = ("--smoke", "--only", "airfoil", "--methods", *SMOKED, *places)
    printed = scripts.run("studies.compare", *arguments, data=data, promotion="standard")
    assert "Not finished: digits" in printed
    report = json.loads((tmp_path / "new" / "results" / "airfoil-smoke.json").read_text())
    assert report["methods"].keys() == {*SMOKED}
    assert report["task"]["parameters"] == 6 * 64 + 65 * 64 + 65
    for result in report["methods"].values():
        for what in ("training loss", "validation error", "test error"):
            assert len(set(result[what])) == 5
        assert len(result["curve"]) == 10


@pytest.fixture
def no_training(compare, monkeypatch):
    """The script with networks whose errors are known, and the list of those that it trained."""
    trained = []

    class Trainer:
        def __init__(self, task, method):
            self.method = method

        def train(self, rates, seeds, progress):
            rates, seeds = np.array(rates), np.array(seeds)
            trained.append((self.method.code, rates, seeds))
            # The best is 30 times the usual learning rate. The highest diverges.
            factors = rates / self.method.rate
            error = 1 + np.abs(np.log10(factors) - 1.5) + seeds / 1000
            error[factors > 50] = np.nan
            values = dict.fromkeys(("training loss", "validation error", "test error"), error)
            return {**values, "curve": np.ones(10)}

    monkeypatch.setattr(compare, "Trainer", Trainer)
    return trained


def test_a_run_that_was_stopped_goes_on_where_it_was(compare, no_training, tmp_path, monkeypatch):
    options = argparse.Namespace(output=tmp_path, smoke=True, methods=None)
    save, saved = compare._report.save, []

    def stop(path, report):
        save(path, report)
        saved.append(None)
        if len(saved) in (4, 9):
            raise KeyboardInterrupt

    monkeypatch.setattr(compare._report, "save", stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            compare.run("digits", options, {"command": "one"})
    compare.run("digits", options, {"command": "two"})
    report = json.loads((tmp_path / "digits-smoke.json").read_text())
    assert compare.complete("digits", report)
    assert report["command"] == "one"
    once = len(no_training)
    assert once == len(compare.METHODS) + 4 * len(compare.TUNED) + len(compare.LONGER)
    compare.run("digits", options, {"command": "two"})
    assert len(no_training) == once

    # Results of other steps are not mixed with those of today.
    report["task"]["steps"] += 1
    (tmp_path / "digits-smoke.json").write_text(json.dumps(report))
    compare.run("digits", options, {"command": "two"})
    assert len(no_training) == 2 * once


def test_the_learning_rate_is_chosen_on_other_seeds_than_the_reported_ones(
    compare, no_training, tmp_path
):
    options = argparse.Namespace(output=tmp_path, smoke=True, methods=None)
    compare.run("digits", options, {})
    report = json.loads((tmp_path / "digits-smoke.json").read_text())
    tuned = report["tuned"]["Adam"]
    assert tuned["learning rate"] == pytest.approx(1e-3 * 10**1.5, rel=1e-5)
    assert tuned["test error"] == pytest.approx([1, 1.001, 1.002, 1.003, 1.004])
    assert np.shape(tuned["tried"]["validation errors"]) == (2, 7)
    assert [row[-1] for row in tuned["tried"]["validation errors"]] == [None, None]
    untuned, *tries, reported, longer = (s for code, _, s in no_training if code == "adam(1e-3)")
    assert untuned.tolist() == reported.tolist() == longer.tolist() == [0, 1, 2, 3, 4]
    assert not {*reported} & {*np.concatenate(tries)}
    assert report["methods"]["Adam"]["learning rate"] == 1e-3


def test_networks_are_trained_as_in_a_plain_loop():
    tasks = scripts.module("studies._lib.tasks")
    training = scripts.module("studies._lib.training")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 3)).astype(np.float32)
    data = (x, x @ np.array([1, -2, 3], np.float32))

    def loss(w, x, y):
        return jnp.mean((x @ w - y) ** 2)

    task = tasks.Task(
        model="linear",
        error_name="",
        init=lambda key: jax.random.normal(key, 3),
        loss=loss,
        error=lambda *args: 2 * loss(*args),
        train=data,
        validation=data,
        test=tuple(part[:10] for part in data),
        batch=5,
        steps=13,
    )
    method = scripts.module("studies._lib.methods").Method(
        "sgd", lambda rate, steps: optax.sgd(rate, momentum=0.9), 0.1
    )
    with jax.numpy_dtype_promotion("standard"):
        found = training.Trainer(task, method).train([0.01, 0.02], [0, 7], lambda _: None)
    assert found["training loss"].shape == (2,)
    for place, (rate, seed) in enumerate([(0.01, 0), (0.02, 7)]):
        w = np.asarray(jax.random.normal(jax.random.key(seed), 3), np.float64)
        momentum = np.zeros(3)
        for batch in training.batches(seed, 24, 5, 13):
            xs, ys = (part[batch].astype(np.float64) for part in data)
            momentum = 0.9 * momentum + 2 * xs.T @ (xs @ w - ys) / 5
            w -= rate * momentum
        for what, (xs, ys), times in (
            ("training loss", data, 1),
            ("validation error", data, 2),
            ("test error", task.test, 2),
        ):
            expected = times * np.mean((xs @ w - ys) ** 2)
            np.testing.assert_allclose(found[what][place], expected, rtol=1e-3)


def test_no_example_comes_twice_in_an_epoch():
    batches = scripts.module("studies._lib.training").batches
    rows = batches(3, 22, 5, 11)
    assert rows.shape == (11, 5)
    for epoch in (rows[:4], rows[4:8], rows[8:]):
        assert len(np.unique(epoch)) == epoch.size
    assert rows.max() < 22
    np.testing.assert_array_equal(rows, batches(3, 22, 5, 11))
    assert (rows != batches(4, 22, 5, 11)).any()


def test_the_results_are_of_a_run_in_full(compare, found):
    for name, report in found.items():
        assert report["command"] == "python -m studies.compare"
        assert {"jax", "optax", "optax_adadelta", "numpy", "python"} <= {*report["versions"]}
        assert {"date", "machine"} <= {*report}
        assert compare.complete(name, report)
        results = [report[part].values() for part in ("methods", "tuned", "longer")]
        for result in itertools.chain(*results):
            assert len(result["test error"]) == len(result["training loss"]) == 5


def test_the_chosen_learning_rates_are_those_with_the_least_validation_error(compare, found):
    for report in found.values():
        for name, result in report["tuned"].items():
            usual, tried = report["methods"][name]["learning rate"], result["tried"]
            np.testing.assert_allclose(
                tried["learning rates"], usual * np.array(FACTORS), rtol=1e-5
            )
            errors = np.array(tried["validation errors"], float).mean(axis=0)
            assert result["learning rate"] == tried["learning rates"][np.nanargmin(errors)]


def test_the_page_has_the_tables_of_the_results_and_shows_the_picture(compare, found):
    assert compare.with_tables(PAGE, found) == PAGE
    assert re.findall(r"!\[[^]]+\]\(([^)]+)\)", PAGE) == ["when_to_use/compare.png"]
    scripts.check_picture(FOLDER / "compare.png")


@pytest.mark.parametrize(
    ("title", "what", "tuned"),
    [("untuned", "test error", False), ("tuned losses", "training loss", True)],
)
def test_ranks_and_spreads_are_those_of_numpy_and_scipy(found, title, what, tuned):
    table = PAGE.partition(f"<!-- {title} -->\n")[2].partition("\n<!-- /")[0].splitlines()[2:]
    lines = {row[0]: row[1:] for row in ([c.strip() for c in r.split("|")[1:-1]] for r in table)}
    labels = scripts.module("studies._compare_report").NOT_TUNED
    plain = {label: name for name, label in labels.items()}
    plain = {name: plain.get(name, name) for name in lines}
    ranks = []
    for column, report in enumerate(found.values(), start=2):
        runs = [
            report["tuned" if tuned and name == short else "methods"][short][what]
            for name, short in plain.items()
        ]
        means = [np.inf if None in errors else np.mean(errors) for errors in runs]
        ranks.append(rankdata(means))
        for name, errors, rank in zip(lines, runs, ranks[-1], strict=True):
            shown = re.fullmatch(r"(.+) ± (.+) \((.+)\)", lines[name][column])
            if shown is None:
                assert lines[name][column] == f"diverged ({rank:g})"
                continue
            expected = np.mean(errors), np.std(errors, ddof=1)
            np.testing.assert_allclose(float(shown[1]), expected[0], rtol=0.05)
            np.testing.assert_allclose(
                float(shown[2]), expected[1], rtol=0.05, atol=0.1 * expected[0]
            )
            assert float(shown[3]) == rank
    means = np.mean(ranks, axis=0)
    assert [row[0] for row in lines.values()] == [f"{mean:.1f}" for mean in means]
    assert [float(row[1]) for row in lines.values()] == np.max(ranks, axis=0).tolist()
    assert (np.diff(means) >= 0).all()
