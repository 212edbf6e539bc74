"""The tasks, methods and training of the studies are what the pages say that they are."""

import argparse
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import gmean
from scripts import module

pytestmark = pytest.mark.scripts

OPTIONS = argparse.Namespace(smoke=False, data_dir=None, data_url=None)
METHODS, TASKS = module("studies._lib.methods"), module("studies._lib.tasks")
TRAINING, COMPARE = module("studies._lib.training"), module("studies.compare")
RESULTS = module("studies._lib.results")
CLASSES = {"digits": 10, "MNIST, dense": 10, "MNIST, convolution": 10, "vowels": 9, "sorting": 32}
PARAMS = {"w": jnp.linspace(-1.0, 2.0, 12).reshape(3, 4), "b": jnp.zeros(4)}


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
    assert small.steps <= 10


@pytest.mark.parametrize(
    ("name", "count"), [("digits", 1797), ("airfoil", 1503), ("sorting", 24e3)]
)
def test_training_validation_and_test_data_are_different_examples_of_all(tasks, name, count):
    parts = [getattr(tasks[name], part)[0] for part in ("train", "validation", "test")]
    assert len(np.concatenate(parts)) == count
    rows = [{row.tobytes() for row in part} for part in parts]
    assert len(set.union(*rows)) == len(np.unique(np.concatenate(parts), axis=0))


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


@pytest.mark.parametrize("name", METHODS.METHODS)
def test_every_method_makes_finite_steps(name):
    method, params = METHODS.METHODS[name], PARAMS
    optimizer = optax.with_extra_args_support(method.make(method.rate, 20))
    update = jax.jit(optimizer.update)
    state = optimizer.init(params)
    for key in jax.random.split(jax.random.key(0), 3):
        grads = {name: jax.random.normal(key, p.shape) for name, p in PARAMS.items()}
        updates, state = update(grads, state, params, value=jnp.float32(1))
        params = optax.apply_updates(params, updates)
        assert jnp.isfinite(updates["w"]).all()
    assert jnp.ptp(updates["w"]) > 0  # Not at once: some warm up.
    method.evaluated(state, params)


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
            if None in errors:
                assert cell == "diverged"
            else:
                mean = float(cell.partition(" ±")[0])
                assert mean == pytest.approx(np.mean(errors), rel=0.006)
        if any(None in errors for errors in runs):
            ratios.append(np.inf)
            assert ratio == "-"
        else:
            ratios.append(gmean([np.mean(a) / np.mean(b) for a, b in zip(runs, to, strict=True)]))
            assert float(ratio) == pytest.approx(ratios[-1], abs=0.0051)
    assert ratios == sorted(ratios)


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
    clipped, ours = "SGD, momentum, clipped", "nadadelta"
    times = [mean("methods", clipped, t) / mean("methods", ours, t) for t in ("airfoil", "sorting")]
    assert times == pytest.approx([1, 2.9], abs=0.051)
    for task in ("rows", "autoencoder", "Friedman"):
        assert 1.55 < mean("methods", clipped, task) / mean("methods", ours, task) < 1.75
    for method, expected in (("", 0.95), (", 8 bits", 0.96), (", 16 bits", 0.97)):
        found_to_prodigy = [
            mean("methods", f"nadadelta{method}", t) / mean("methods", "Prodigy, linear", t)
            for t in COMPARE.TASKS
        ]
        assert gmean(found_to_prodigy) == pytest.approx(expected, abs=0.0051)
    ratios = [
        mean(part, "Adam", task) / mean(part, "Adadelta", task)
        for part in ("longer", "methods")
        for task in ("digits", "MNIST, dense", "airfoil")
    ]
    assert ratios == pytest.approx([0.83, 1.04, 1.17, 1.07, 1.21, 1.14], abs=0.0051)
