"""The tasks and methods of the comparison are what the page says that they are."""

import argparse
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scripts import module

import optax_adadelta

pytestmark = pytest.mark.scripts

OPTIONS = argparse.Namespace(smoke=False, data_dir=None, data_url=None)
CLASSES = {
    "digits": 10,
    "MNIST, dense": 10,
    "MNIST, convolution": 10,
    "vowels": 9,
    "sorting": 32,
}
PARAMS = {"w": jnp.linspace(-1.0, 2.0, 12).reshape(3, 4), "b": jnp.zeros(4)}
STEPS = 20


@pytest.fixture(autouse=True, scope="module")
def promotion():
    """The script's own choice. The models add biases, and Optax needs implicit dtypes."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def methods():
    """The module of the methods."""
    return module("studies._lib.methods")


@pytest.fixture(scope="module")
def tasks():
    """Every task, on made-up data where it would be downloaded."""
    found, rng = module("studies._lib.tasks"), np.random.default_rng(0)

    def images(count):
        pixels = rng.integers(256, size=(count, 784)).astype(np.uint8)
        return pixels, rng.integers(10, size=count).astype(np.int32)

    def utterances(count):
        lengths = rng.integers(7, 30, size=count).astype(np.int32)
        frames = rng.normal(size=(count, 29, 12)).astype(np.float32)
        frames[np.arange(29) >= lengths[:, None]] = 0
        return frames, lengths, rng.integers(9, size=count).astype(np.int32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(found._data, "mnist", lambda _: (images(4300), images(200)))
        patch.setattr(found._data, "vowels", lambda _: (utterances(270), utterances(370)))
        patch.setattr(found._data, "airfoil", lambda _: rng.normal(100, 50, size=(1503, 6)))
        return {name: make(OPTIONS) for name, make in found.TASKS.items()}


@pytest.mark.parametrize("name", CLASSES)
def test_before_training_a_classifier_is_as_good_as_chance(tasks, name):
    task, classes = tasks[name], CLASSES[name]
    params = task.init(jax.random.key(0))
    few = tuple(part[:200] for part in task.test)
    assert task.loss(params, *few) == pytest.approx(math.log(classes), rel=0.5)
    assert task.error(params, *few) == pytest.approx(100 * (1 - 1 / classes), abs=12)


@pytest.mark.parametrize("name", ["digits", "airfoil", "sorting"])
def test_training_validation_and_test_data_are_different_examples_of_all_that_there_are(
    tasks, name
):
    parts = [getattr(tasks[name], part)[0] for part in ("train", "validation", "test")]
    assert len(np.concatenate(parts)) == {"digits": 1797, "airfoil": 1503, "sorting": 24_000}[name]
    rows = [{row.tobytes() for row in part} for part in parts]
    assert len(set.union(*rows)) == len(np.unique(np.concatenate(parts), axis=0))


def test_the_data_drawn_or_split_here_is_the_same_every_time(tasks):
    for name in ("digits", "sorting", "characters"):
        again = module("studies._lib.tasks").TASKS[name](OPTIONS)
        for part in ("train", "validation", "test"):
            for a, b in zip(getattr(tasks[name], part), getattr(again, part), strict=True):
                np.testing.assert_array_equal(a, b)


def test_the_sequences_to_sort_have_their_symbols_in_order_as_labels(tasks):
    x, y = tasks["sorting"].train
    np.testing.assert_array_equal(np.sort(x, axis=1), y)
    assert (x != y).any(axis=1).mean() > 0.99


def test_the_label_of_eight_characters_is_the_next_one(tasks):
    x, y = tasks["characters"].train
    assert x.shape == (len(y), 8)
    assert len(y) > 100_000
    # The windows are one apart, so a label is the last character of the next window.
    np.testing.assert_array_equal(x[1:, -1], y[:-1])
    np.testing.assert_array_equal(x[1:, :-1], x[:-1, 1:])
    params = tasks["characters"].init(jax.random.key(0))
    bits = tasks["characters"].error(params, x[:200], y[:200])
    assert bits == pytest.approx(tasks["characters"].loss(params, x[:200], y[:200]) / math.log(2))


def test_the_airfoil_s_error_is_in_the_units_of_the_file(tasks):
    task = tasks["airfoil"]
    params = jax.tree.map(jnp.zeros_like, task.init(jax.random.key(0)))
    # A model that always says the mean is off by the standard deviation.
    assert task.error(params, *task.test) == pytest.approx(50, rel=0.15)
    np.testing.assert_allclose(task.train[0].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(task.train[0].std(axis=0), 1, rtol=1e-5)


def test_what_follows_an_utterance_changes_nothing(tasks):
    task = tasks["vowels"]
    params = task.init(jax.random.key(0))
    frames, lengths, speakers = (part[:20] for part in task.test)
    after = np.arange(29) >= lengths[:, None]
    changed = np.where(after[..., None], 7, frames).astype(np.float32)
    expected = task.loss(params, frames, lengths, speakers)
    assert task.loss(params, changed, lengths, speakers) == expected
    shorter = task.loss(params, frames, lengths - 1, speakers)
    assert shorter != expected


def test_the_convolution_is_that_of_jax(tasks):
    task = tasks["MNIST, convolution"]
    params = task.init(jax.random.key(0))
    x, y = (part[:20] for part in task.test)
    h = x
    for layer in params[:2]:
        kernel = layer["w"].reshape(3, 3, h.shape[-1], -1)
        h = jax.lax.conv_general_dilated(
            h, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        h = jax.nn.relu(h + layer["b"])
    scores = h.reshape(20, -1) @ params[2]["w"] + params[2]["b"]
    expected = -jnp.mean(jax.nn.log_softmax(scores)[np.arange(20), y])
    np.testing.assert_allclose(task.loss(params, x, y), expected, rtol=1e-5)


def updates_of(optimizer, steps=STEPS):
    """Returns the updates of the first steps, with gradients drawn at random."""
    optimizer, params, found = optax.with_extra_args_support(optimizer), PARAMS, []
    state = optimizer.init(params)
    for key in jax.random.split(jax.random.key(0), steps):
        grads = jax.tree.map(lambda p, key=key: jax.random.normal(key, p.shape), PARAMS)
        updates, state = optimizer.update(grads, state, params, value=jnp.float32(1))
        params = optax.apply_updates(params, updates)
        found.append(updates)
    return found, state, params


def test_every_method_has_the_settings_that_the_page_shows(methods):
    names = {**vars(optax), **vars(optax.contrib), **vars(methods), "steps": STEPS}
    names["adadelta"] = optax_adadelta.adadelta
    for name, method in methods.METHODS.items():
        shown, *_ = updates_of(eval(method.code, names), steps=3)
        used, *_ = updates_of(method.make(method.rate, STEPS), steps=3)
        for a, b in zip(jax.tree.leaves(shown), jax.tree.leaves(used), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-12, err_msg=name)


def test_a_warm_start_makes_the_first_step_as_long_as_its_mean_square_says(methods):
    updates, state, _ = updates_of(methods.IDEAS["warm start"].make(1.0, STEPS), steps=1)
    g = np.abs(jax.random.normal(jax.random.split(jax.random.key(0), 1)[0], (3, 4)))
    expected = np.sqrt(1e-4 + 1e-6) / np.sqrt(0.05 * g**2 + 1e-6) * g
    np.testing.assert_allclose(np.abs(updates[0]["w"]), expected, rtol=1e-5)
    assert state.count == 1


def test_the_relative_eps_follows_the_scale_of_the_parameters(methods):
    squares = np.concatenate([np.ravel(p) for p in jax.tree.leaves(PARAMS)]) ** 2
    _, state, _ = updates_of(methods.IDEAS["relative eps"].make(1.0, STEPS), steps=2)
    np.testing.assert_allclose(state.hyperparams["eps"], 1e-3 * squares.mean(), rtol=1e-6)
    assert state.hyperparams["eps"].dtype == jnp.float32


def test_the_average_is_evaluated_and_covers_a_tenth_of_the_training(methods):
    method = methods.IDEAS["average of the last tenth"]
    updates, state, params = updates_of(method.make(1.0, STEPS))
    at = average = np.asarray(PARAMS["w"], np.float64)
    for update in updates:
        at = at + np.asarray(update["w"], np.float64)
        average = average + (at - average) / (STEPS / 10)
    np.testing.assert_allclose(method.evaluated(state, params)["w"], average, rtol=1e-5)
    np.testing.assert_allclose(params["w"], at, rtol=1e-5)


def test_the_cosine_over_the_last_half_begins_there(methods):
    schedule = methods.cosine_at_the_end(2.0, 100)
    found = [float(schedule(count)) for count in (0, 49, 50, 75, 100)]
    np.testing.assert_allclose(found, [2, 2, 2, 1, 0], atol=1e-6)


def test_the_falling_eps_ends_where_it_says(methods):
    g = np.float32(1e-3)
    for count, eps in ((0, 1e-4), (STEPS, 1e-8)):
        optimizer = methods.falling_eps(1.0, STEPS)
        state = optimizer.init(jnp.float32(0))._replace(count=jnp.int32(count))
        update, _ = optimizer.update(jnp.float32(g), state)
        np.testing.assert_allclose(-update, g * np.sqrt(eps / (0.05 * g**2 + eps)), rtol=1e-4)
