"""The tasks, methods and training of the studies are what the pages say that they are."""

import argparse
import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import algorithm_1
from scipy.stats import gmean
from scripts import module

pytestmark = pytest.mark.scripts

OPTIONS = argparse.Namespace(smoke=False, data_dir=None, data_url=None)
METHODS, TASKS = module("studies._lib.methods"), module("studies._lib.tasks")
TRAINING, COMPARE = module("studies._lib.training"), module("studies.compare")
RESULTS = module("studies._lib.results")
CLASSES = {"digits": 10, "MNIST, dense": 10, "MNIST, convolution": 10, "vowels": 9, "sorting": 32}
PARAMS = {"w": jnp.linspace(-1.0, 2.0, 12).reshape(3, 4), "b": jnp.zeros(4)}
STEPS = 20


@pytest.fixture(autouse=True, scope="module")
def promotion():
    """The studies' own choice. The models add biases, and Optax needs implicit dtypes."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def tasks():
    """Every task, on made-up data where it would be downloaded."""
    rng = np.random.default_rng(0)

    def images(count):
        pixels = rng.integers(256, size=(count, 784)).astype(np.uint8)
        return pixels, rng.integers(10, size=count).astype(np.int32)

    def utterances(count):
        lengths = rng.integers(7, 30, size=count).astype(np.int32)
        frames = rng.normal(size=(count, 29, 12)).astype(np.float32)
        frames[np.arange(29) >= lengths[:, None]] = 0
        return frames, lengths, rng.integers(9, size=count).astype(np.int32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TASKS.data, "mnist", lambda _: (images(4300), images(200)))
        patch.setattr(TASKS.data, "vowels", lambda _: (utterances(270), utterances(370)))
        patch.setattr(TASKS.data, "airfoil", lambda _: rng.normal(100, 50, size=(1503, 6)))
        return {name: make(OPTIONS) for name, make in TASKS.TASKS.items()}


@pytest.mark.parametrize("name", TASKS.TASKS)
def test_a_task_is_as_the_committed_results_say(tasks, name):
    facts, task = tasks[name].facts(), RESULTS.load_all(COMPARE.file_of(name))
    (report,) = task.values()
    for key in ("model", "error", "batch", "steps"):
        assert facts[key] == report["task"][key]
    # Each Python has another help text.
    if facts.get("source") == report["task"].get("source"):
        assert facts["parameters"] == report["task"]["parameters"]
    params = tasks[name].model.init(jax.random.key(0))
    few = tuple(part[:200] for part in tasks[name].test)
    if name in CLASSES:
        # Before training, a classifier is as good as chance.
        classes = CLASSES[name]
        assert tasks[name].loss(params, *few) == pytest.approx(math.log(classes), rel=0.5)
        assert tasks[name].error(params, *few) == pytest.approx(100 * (1 - 1 / classes), abs=12)
    small = tasks[name].smaller()
    assert len(small.train[-1]) <= 120
    assert small.steps <= 12


@pytest.mark.parametrize(
    ("name", "count"), [("digits", 1797), ("airfoil", 1503), ("sorting", 24e3)]
)
def test_training_validation_and_test_data_are_different_examples_of_all(tasks, name, count):
    parts = [getattr(tasks[name], part)[0] for part in ("train", "validation", "test")]
    assert len(np.concatenate(parts)) == count
    rows = [{row.tobytes() for row in part} for part in parts]
    assert len(set.union(*rows)) == len(np.unique(np.concatenate(parts), axis=0))
    if name != "airfoil":
        again = TASKS.TASKS[name](OPTIONS).train
        np.testing.assert_array_equal(tasks[name].train[0], again[0])


def test_the_labels_are_right(tasks):
    x, y = tasks["sorting"].train
    np.testing.assert_array_equal(np.sort(x, axis=1), y)
    x, y = tasks["characters"].train
    assert x.shape == (len(y), 8)
    assert len(y) > 100_000
    # The windows are one apart, so a label is the last character of the next window.
    np.testing.assert_array_equal(x[1:, -1], y[:-1])
    np.testing.assert_array_equal(x[1:, :-1], x[:-1, 1:])
    few = tasks["characters"].model.init(jax.random.key(0)), x[:200], y[:200]
    bits = tasks["characters"].error(*few)
    assert bits == pytest.approx(tasks["characters"].loss(*few) / math.log(2))


def test_the_airfoil_s_error_is_in_the_units_of_the_file(tasks):
    task = tasks["airfoil"]
    params = jax.tree.map(jnp.zeros_like, task.model.init(jax.random.key(0)))
    # A model that always says the mean is off by the standard deviation.
    assert task.error(params, *task.test) == pytest.approx(50, rel=0.15)
    np.testing.assert_allclose(task.train[0].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(task.train[0].std(axis=0), 1, rtol=1e-5)


def test_what_follows_an_utterance_changes_nothing(tasks):
    task = tasks["vowels"]
    params = task.model.init(jax.random.key(0))
    frames, lengths, speakers = (part[:20] for part in task.test)
    after = np.arange(29) >= lengths[:, None]
    changed = np.where(after[..., None], 7, frames).astype(np.float32)
    expected = task.loss(params, frames, lengths, speakers)
    assert task.loss(params, changed, lengths, speakers) == expected
    assert task.loss(params, frames, lengths - 1, speakers) != expected


def test_the_convolution_is_that_of_jax(tasks):
    task = tasks["MNIST, convolution"]
    params = task.model.init(jax.random.key(0))
    h = task.test[0][:20]
    scores = task.model.apply(params, h)
    for layer in params[:2]:
        kernel = layer["w"].reshape(3, 3, h.shape[-1], -1)
        h = jax.lax.conv_general_dilated(
            h, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        h = jax.nn.relu(h + layer["b"])
    expected = h.reshape(20, -1) @ params[2]["w"] + params[2]["b"]
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_the_gradients_of_the_stress_differ_by_1e10_wherever_one_looks():
    task = TASKS.mixed_scales(argparse.Namespace(smoke=True))
    ((minimum,),) = task.test
    gradients = jax.grad(task.loss)({"w": minimum + 1}, *task.train)["w"]
    sizes = np.log10(np.asarray(gradients)).reshape(-1, 64)
    assert np.min(sizes.max(axis=1) - sizes.min(axis=1)) > 9
    assert np.ptp(sizes) == pytest.approx(10, abs=0.01)
    at_minimum = jax.grad(task.loss)({"w": minimum}, *task.train)["w"]
    np.testing.assert_allclose(at_minimum / gradients, 0, atol=1e-5)
    assert task.error({"w": minimum + 1}, *task.test) == pytest.approx(0.5)


def test_networks_are_trained_as_in_a_plain_loop():
    x = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
    data = (x, x @ np.array([1, -2, 3], np.float32))

    def loss(w, x, y):
        return jnp.mean((x @ w - y) ** 2)

    model = TASKS.Model("linear", lambda key: jax.random.normal(key, 3), lambda w, x: x @ w)
    parts = data, data, tuple(part[:10] for part in data)
    task = TASKS.Task(model, "", loss, lambda *args: 2 * loss(*args), *parts, batch=5, steps=13)
    for abreast in (None, 2):
        trainer = TRAINING.Trainer(
            task, lambda rate: optax.sgd(rate, momentum=0.9), abreast=abreast
        )
        found = trainer.train({"rate": [0.01, 0.02]}, [0, 7], lambda _: None)
        for place, (rate, seed) in enumerate([(0.01, 0), (0.02, 7)]):
            w = np.asarray(jax.random.normal(jax.random.key(seed), 3), np.float64)
            momentum = np.zeros(3)
            for batch in TRAINING.batches(seed, 24, 5, 13):
                xs, ys = (part[batch].astype(np.float64) for part in data)
                momentum = 0.9 * momentum + 2 * xs.T @ (xs @ w - ys) / 5
                w -= rate * momentum
            names = {"training loss": 1, "validation error": 2, "test error": 2}
            for (name, times), (xs, ys) in zip(names.items(), parts, strict=True):
                expected = times * np.mean((xs @ w - ys) ** 2)
                np.testing.assert_allclose(found[name][place], expected, rtol=1e-3)
        assert found["curve"].shape == (10,)


@pytest.mark.parametrize("seed", [3, (3, 1)])
def test_no_example_comes_twice_in_an_epoch(seed):
    rows = TRAINING.batches(seed, 22, 5, 11)
    assert rows.shape == (11, 5)
    for epoch in (rows[:4], rows[4:8], rows[8:]):
        assert len(np.unique(epoch)) == epoch.size
    assert rows.max() < 22
    np.testing.assert_array_equal(rows, TRAINING.batches(seed, 22, 5, 11))
    assert (rows != TRAINING.batches(4, 22, 5, 11)).any()


def updates_of(name, steps=STEPS):
    """Returns the updates of a method's first steps, with gradients drawn at random."""
    method, params, found = METHODS.METHODS[name], PARAMS, []
    optimizer = optax.with_extra_args_support(method.make(method.rate, STEPS))
    state = optimizer.init(params)
    for key in jax.random.split(jax.random.key(0), steps):
        grads = jax.tree.map(lambda p, key=key: jax.random.normal(key, p.shape), PARAMS)
        updates, state = optimizer.update(grads, state, params, value=jnp.float32(1))
        params = optax.apply_updates(params, updates)
        found.append(np.asarray(updates["w"], np.float64))
    return found, state, method.evaluated(state, params)


@pytest.mark.parametrize("name", METHODS.METHODS)
def test_every_method_makes_finite_steps(name):
    updates, _, _ = updates_of(name, steps=3)
    assert np.isfinite(updates).all()
    assert np.ptp(updates) > 0


def test_the_ideas_do_what_their_names_say():
    updates, _, _ = updates_of("warm start", steps=1)
    g = np.asarray(jax.random.normal(jax.random.split(jax.random.key(0), 1)[0], (3, 4)))
    expected = -np.sqrt(1e-4 + 1e-6) / np.sqrt(0.05 * g**2 + 1e-6) * g
    np.testing.assert_allclose(updates[0], expected, rtol=1e-5)
    squares = np.concatenate([np.ravel(p) for p in jax.tree.leaves(PARAMS)]) ** 2
    _, state, _ = updates_of("relative eps", steps=2)
    np.testing.assert_allclose(state.hyperparams["eps"], 1e-3 * squares.mean(), rtol=1e-6)
    updates, _, params = updates_of("average of the last tenth")
    at = average = np.asarray(PARAMS["w"], np.float64)
    for update in updates:
        at = at + update
        average = average + (at - average) / (STEPS / 10)
    np.testing.assert_allclose(params["w"], average, rtol=1e-5)
    schedule = METHODS.cosine_at_the_end(2.0, 100)
    found = [float(schedule(count)) for count in (0, 49, 50, 75, 100)]
    np.testing.assert_allclose(found, [2, 2, 2, 1, 0], atol=1e-6)
    for count, eps in ((0, 1e-4), (STEPS, 1e-8)):
        optimizer, g = METHODS.falling_eps(1.0, STEPS), jnp.float32(1e-3)
        state = optimizer.init(jnp.float32(0))._replace(count=jnp.int32(count))
        expected = next(iter(algorithm_1(np.array([[1e-3]]), 0.95, eps))).dx[0]
        np.testing.assert_allclose(optimizer.update(g, state)[0], expected, rtol=1e-4)


@pytest.fixture
def no_training(monkeypatch):
    """Networks whose errors are known, and the list of those that were trained."""
    trained = []

    class Trainer:
        def __init__(self, task, make, evaluated, abreast):
            self.task, self.make = task, make

        def train(self, settings, seeds, progress):
            rates, seeds = np.array(settings["rate"]), np.array(seeds)
            trained.append((rates, seeds))
            # The best is 30 times Adam's usual learning rate. The highest diverges.
            error = 1 + np.abs(np.log10(rates / 1e-3) - 1.5) + seeds / 1000
            error[rates > 50e-3] = np.nan
            values = dict.fromkeys(("training loss", "validation error", "test error"), error)
            return {**values, "curve": np.ones(10)}

    monkeypatch.setattr(COMPARE, "Trainer", Trainer)
    monkeypatch.setattr(COMPARE, "METHODS", {"Adam": METHODS.METHODS["Adam"]})
    monkeypatch.setattr(COMPARE, "TUNED", ("Adam",))
    return trained


def test_the_learning_rate_is_chosen_on_other_seeds_and_a_stopped_run_goes_on(
    no_training, tmp_path, monkeypatch
):
    given = SimpleNamespace(smoke=True, methods=None)
    results = RESULTS.Results(tmp_path, lambda: {"command": "one"})
    save, saved = results.save, []

    def stop(name, report):
        save(name, report)
        saved.append(None)
        if len(saved) in (1, 2):
            raise KeyboardInterrupt

    results.save = stop
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            COMPARE.train_all("digits", given, results)
    results = RESULTS.Results(tmp_path, lambda: {"command": "two"})
    COMPARE.train_all("digits", given, results)
    report = json.loads((tmp_path / "compare-digits.json").read_text())
    assert report["command"] == "one"
    assert "digits" not in COMPARE.unfinished({"compare-digits": report})
    tuned = report["tuned"]["Adam"]
    assert tuned["learning rate"] == pytest.approx(1e-3 * 10**1.5, rel=1e-5)
    assert tuned["test error"] == pytest.approx([1, 1.001, 1.002, 1.003, 1.004])
    assert np.shape(tuned["tried"]["validation errors"]) == (2, 7)
    assert [row[-1] for row in tuned["tried"]["validation errors"]] == [None, None]
    untuned, *tries, reported = (seeds for _, seeds in no_training)
    assert untuned.tolist() == reported.tolist() == [0, 1, 2, 3, 4]
    assert not {*reported} & {*np.concatenate(tries)}
    # Results of other steps are not mixed with those of today.
    report["task"]["steps"] += 1
    (tmp_path / "compare-digits.json").write_text(json.dumps(report))
    COMPARE.train_all("digits", given, results)
    assert len(no_training) == 10


def test_the_committed_learning_rates_are_those_with_the_least_validation_error():
    for report in COMPARE.by_task(RESULTS.load_all("compare-*")).values():
        for name, result in report["tuned"].items():
            usual, tried = report["methods"][name]["learning rate"], result["tried"]
            rates = usual * 10 ** (np.arange(-2, 5) / 2)
            np.testing.assert_allclose(tried["learning rates"], rates, rtol=1e-5)
            errors = np.array(tried["validation errors"], float).mean(axis=0)
            assert result["learning rate"] == tried["learning rates"][np.nanargmin(errors)]


@pytest.mark.parametrize("tasks", [COMPARE.TASKS, COMPARE.UNSEEN])
@pytest.mark.parametrize("shown", [True, False])
def test_the_errors_and_their_ratios_are_those_of_numpy_and_scipy(tasks, shown):
    report = module("studies._compare_report")
    found = {name: COMPARE.by_task(RESULTS.load_all("compare-*"))[name] for name in tasks}
    table = report.table_of_errors(found, *[report.SHOWN] * shown).splitlines()
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table]
    assert rows[0] == ["", "error / Prodigy's", *tasks]
    names = {label: name for name, label in report.SHOWN.items()} if shown else {}
    ratios = []
    for label, ratio, *cells in rows[2:]:
        name, tuned, _ = names.get(label, label).partition(", tuned")
        part = "tuned" if tuned else "methods"
        runs = [results[part][name]["test error"] for results in found.values()]
        to = [results["methods"]["Prodigy, linear"]["test error"] for results in found.values()]
        for cell, errors in zip(cells, runs, strict=True):
            mean, _, deviation = cell.partition(" ±")
            if None in errors:
                assert cell == "diverged"
                continue
            assert float(mean) == pytest.approx(np.mean(errors), rel=0.006)
            assert shown or (len(errors) == 1) == (deviation == "")
            if deviation:
                spread = np.std(errors, ddof=1)
                assert float(deviation) == pytest.approx(
                    spread, rel=0.05, abs=0.01 * np.mean(errors)
                )
        if any(None in errors for errors in runs):
            ratios.append(np.inf)
            assert ratio == "-"
        else:
            ratios.append(gmean([np.mean(a) / np.mean(b) for a, b in zip(runs, to, strict=True)]))
            assert float(ratio) == pytest.approx(ratios[-1], abs=0.0051)
    assert ratios == sorted(ratios)


def test_a_method_is_shown_once_it_was_trained_on_every_task():
    report = module("studies._compare_report")
    found = {name: COMPARE.by_task(RESULTS.load_all("compare-*"))[name] for name in COMPARE.TASKS}
    names = {*COMPARE.METHODS, *(f"{name}, tuned" for name in METHODS.TUNED)}
    assert set(report.SHOWN) <= names
    known = set(report.trained(found))
    assert {"nadadelta", "Adam, cosine, tuned", "Adadelta"} <= known <= names
    made_up = report.trained({"one": {"methods": found["digits"]["methods"], "tuned": {}}})
    assert "Adam" in made_up
    del found["sorting"]["methods"]["Adam"], found["digits"]["tuned"]["Adam"]
    assert known - set(report.trained(found)) == {"Adam", "Adam, tuned"}


def test_the_sentences_about_the_comparison_are_right():
    found = COMPARE.by_task(RESULTS.load_all("compare-*"))
    assert len(found) == 12

    def mean(part, name, task):
        return np.mean(found[task][part][name]["test error"])

    for method in ("nadadelta", "nadadelta, averaged"):
        behind = [
            t for t in found if mean("methods", method, t) > mean("methods", "Prodigy, linear", t)
        ]
        assert behind == ["vowels"]
    better = [
        t for t in COMPARE.TASKS if mean("methods", "Adadelta", t) < mean("methods", "Adam", t)
    ]
    assert set(COMPARE.TASKS) - set(better) == {"vowels"}
    ratios = [
        mean(part, "Adam", task) / mean(part, "Adadelta", task)
        for part in ("longer", "methods")
        for task in ("digits", "MNIST, dense", "airfoil")
    ]
    assert ratios == pytest.approx([0.83, 1.04, 1.17, 1.07, 1.21, 1.14], abs=0.0051)
