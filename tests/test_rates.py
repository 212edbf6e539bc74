"""The effective learning rate: a pure function of the state, wherever the state is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import algorithm_1, gradients
from states import same_bits

from optax_adadelta import adadelta
from optax_adadelta.diagnostics import (
    averages,
    choose_coordinates,
    effective_learning_rate,
    find_state,
    sample,
    summaries,
)

GRADIENTS = gradients("scales", 30, 8)


def trained(optimizer):
    state = optimizer.init({"w": jnp.zeros(8)})
    for g in GRADIENTS:
        _, state = optimizer.update({"w": jnp.asarray(g, jnp.float32)}, state)
    return state


@pytest.mark.parametrize(("learning_rate", "eps"), [(1.0, 1e-6), (0.5, 1e-3)])
def test_the_effective_learning_rate_is_the_ratio_of_the_two_rms(learning_rate, eps):
    *_, last = algorithm_1(GRADIENTS, eps=eps)
    expected = learning_rate * np.sqrt(last.e_x + eps) / np.sqrt(last.e_g + eps)
    state = trained(adadelta(learning_rate, eps=eps))
    for function in (effective_learning_rate, jax.jit(effective_learning_rate)):
        rates = function(state, eps, learning_rate)
        np.testing.assert_allclose(rates["w"], expected, rtol=1e-5)


def test_it_starts_at_the_learning_rate_and_returns_there_without_gradients():
    optimizer = adadelta(rho=0.5)
    state = optimizer.init(jnp.ones(3))
    np.testing.assert_array_equal(
        effective_learning_rate(state, 1e-6, learning_rate=0.5), 0.5 * np.ones(3)
    )
    np.testing.assert_array_equal(effective_learning_rate(state, eps=1e-300), np.ones(3))
    for t in range(100):
        _, state = optimizer.update(jnp.full(3, 10.0 if t < 50 else 0.0), state)
    np.testing.assert_allclose(effective_learning_rate(state, 1e-6), np.ones(3), rtol=1e-6)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda optimizer: optax.masked(optimizer, {"w": True}),
        lambda optimizer: optax.apply_if_finite(optimizer, 3),
        lambda optimizer: optax.inject_hyperparams(lambda scale: optimizer)(1.0),
        lambda optimizer: optax.chain(optax.chain(optax.clip(1.0), optimizer), optax.scale(1.0)),
    ],
)
def test_the_state_is_found_however_deep(wrap):
    state = wrap(adadelta()).init({"w": jnp.zeros(8)})
    same_bits(find_state(state), adadelta().init({"w": jnp.zeros(8)}))
    assert effective_learning_rate(state, 1e-6)["w"].shape == (8,)


def test_none_to_be_found():
    with pytest.raises(ValueError, match=r"no AdadeltaState in PyTreeDef"):
        effective_learning_rate(optax.adam(1e-3).init(jnp.ones(2)), 1e-6)


def test_several_to_choose_from():
    state = optax.chain(adadelta(), optax.sgd(1.0), adadelta()).init(jnp.ones(2))
    with pytest.raises(ValueError, match=r"2 AdadeltaStates, at state\[0\], state\[2\]; pass one"):
        effective_learning_rate(state, 1e-6)
    assert effective_learning_rate(state[2], 1e-6).shape == (2,)


def test_arguments_are_checked():
    state = adadelta().init(jnp.ones(2))
    with pytest.raises(ValueError, match="eps must be positive"):
        effective_learning_rate(state, eps=0.0)
    with pytest.raises(ValueError, match="learning_rate must be"):
        effective_learning_rate(state, 1e-6, learning_rate=-1.0)
    with pytest.raises(TypeError, match="eps"):
        effective_learning_rate(state)


READERS = {
    "averages": lambda state, updates: averages(state),
    "choose_coordinates": lambda state, updates: choose_coordinates(state, 2),
    "effective_learning_rate": lambda state, updates: effective_learning_rate(state, 1e-6),
    "sample": lambda state, updates: sample(state, updates, choose_coordinates(state, 2), 1e-6),
    "summaries": lambda state, updates: summaries(state, 1e-6),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_training_state_with_a_whole_model_is_read_and_may_be_donated(read):
    params = {"w": jnp.ones(3), "frozen": None, "masked": optax.MaskedNode()}
    optimizer = adadelta()
    updates, state = optimizer.update(params, optimizer.init(params), params)
    whole = {**params, "frozen": {"f": jax.nn.relu, "n": 3, "ids": jnp.arange(2)}, "masked": "no"}
    expected = jax.device_get(read(state, updates))
    found = read({"model": whole, "state": state}, {**whole, "w": updates["w"]})
    jax.jit(lambda *given: given, donate_argnums=(0, 1))(state, updates)  # as the next step
    assert state.count.is_deleted()
    assert state.e_g["w"].is_deleted()
    same_bits(jax.device_get(found), expected)


DIAGNOSTICS = {
    "effective_learning_rate": lambda state, *given: effective_learning_rate(state, *given)["w"][0],
    "sample": lambda state, *given: sample(state, state.e_g, {"w": [[0]]}, *given).rate["w"][0],
    "summaries": lambda state, *given: summaries(state, *given)["w/effective_learning_rate/mean"],
}


@pytest.mark.parametrize("read", DIAGNOSTICS.values(), ids=DIAGNOSTICS)
def test_schedules_are_those_of_the_last_step(read):
    def eps(count):
        return jnp.float32(1e-6) * jnp.float32(10) ** -count.astype(jnp.float32)

    def rate(count):
        return 1 / (1 + count.astype(jnp.float32))

    def at(state):
        return read(state, eps, rate)

    optimizer = adadelta(rate, eps=eps)
    state = optimizer.init({"w": jnp.zeros(1)})
    for step in range(3):
        found = jax.jit(at)(state) if step == 2 else at(state)
        last = max(step - 1, 0)
        (e_g,), (e_x,) = np.float64(state.e_g["w"]), np.float64(state.e_x["w"])
        now = 1e-6 * 10.0**-last
        expected = np.sqrt((e_x + now) / (e_g + now)) / (1 + last)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        _, state = optimizer.update({"w": jnp.full(1, 1e-3)}, state)
