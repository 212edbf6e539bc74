"""Derivatives through steps: right in full precision, refused where the state is quantized."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from states import QUANTIZED, normal, stepped

from optax_adadelta import adadelta, convert, scale_by_adadelta
from optax_adadelta.diagnostics import averages

AT = {"learning_rate": 1.0, "rho": 0.9, "eps": 1e-3, "weight_decay": 0.1, "start": 0.5}
refused = functools.partial(pytest.raises, NotImplementedError, match="state_bits=None")


def loss_after(steps, bits, loop, start=0.5, **hyperparameters):
    """The loss after a few steps, from one start for all coordinates."""
    x = jnp.full(5, start, jnp.result_type(float))
    target = jnp.linspace(-1.0, 3.0, 5, dtype=x.dtype)
    given = {name: value for name, value in AT.items() if name != "start"} | hyperparameters
    optimizer = adadelta(**given, state_bits=bits)

    def step(carry, _):
        x, state = carry
        updates, state = optimizer.update(3 * (x - target) ** 3, state, x)
        return (x + updates, state), None

    carry = x, optimizer.init(x)
    if loop:
        carry, _ = jax.lax.scan(step, carry, length=steps)
    else:
        for _ in range(steps):
            carry, _ = step(carry, None)
    return jnp.sum((carry[0] - target) ** 2)


@pytest.mark.usefixtures("x64")
def test_full_precision_derivatives_are_those_of_finite_differences():
    loss = jax.jit(lambda at: loss_after(3, None, True, **at))
    found = jax.jit(jax.grad(loss))(AT)
    forward = jax.jit(jax.jacfwd(loss))(AT)
    for name, value in AT.items():
        h = 1e-4 * value
        ends = [float(loss({**AT, name: value + sign * h})) for sign in (1, -1)]
        expected = (ends[0] - ends[1]) / (2 * h)
        assert abs(expected) > 1e-3
        np.testing.assert_allclose(found[name], expected, rtol=1e-4)
        np.testing.assert_allclose(forward[name], found[name], rtol=1e-9)


def of_checkpoint(loss, at):
    return jax.jit(jax.jacfwd(jax.checkpoint(functools.partial(loss, loop=True))))(at)


# Each way to differentiate, and by what.
DERIVATIVES = {
    "grad": ("rho", lambda loss, at: jax.grad(loss)(at)),
    "jvp": ("eps", lambda loss, at: jax.jvp(loss, (at,), (jnp.ones_like(at),))),
    "value_and_grad in jit": ("start", lambda loss, at: jax.jit(jax.value_and_grad(loss))(at)),
    "grad of jit": ("weight_decay", lambda loss, at: jax.grad(jax.jit(loss))(at)),
    "checkpoint": ("learning_rate", of_checkpoint),
    "vmap": ("rho", lambda loss, at: jax.grad(lambda at: jnp.sum(jax.vmap(loss)(at[None])))(at)),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives_through_quantized_state_are_refused(name):
    """Even of the learning rate, on which the gradients of later steps depend."""
    by, derivative = DERIVATIVES[name]

    def loss(value, loop=False):
        return loss_after(2, 8, loop, **{by: value})

    with refused():
        derivative(loss, jnp.float32(AT[by]))


@QUANTIZED
def test_derivatives_of_one_quantized_step_are_refused(bits):
    g = normal((4,))
    state = adadelta(state_bits=bits).init(g)

    def moved(g, rho=0.9):
        return scale_by_adadelta(rho, state_bits=bits).update(g, state)[0]

    def stored(rho):
        _, after = scale_by_adadelta(rho, state_bits=bits).update(g, state)
        return jnp.sum(averages(after).e_g)

    with refused():
        jax.jacobian(moved)(g)
    with refused():
        jax.jacfwd(lambda rho: moved(g, rho=rho))(0.9)
    with refused():
        jax.grad(stored)(0.9)


def test_derivatives_through_a_conversion_to_codes_are_refused():
    g = normal((4,))

    def stored(rho):
        _, state = adadelta(rho=rho).update(g, adadelta().init(g))
        state = convert.with_state_bits(state, 8, eps=1e-6)
        return jnp.sum(averages(state).e_g)

    with refused():
        jax.grad(stored)(0.9)


def test_one_quantized_step_has_a_derivative_with_respect_to_the_learning_rate():
    g, params = normal((6,)), normal((6,), 1)
    state = stepped(adadelta(state_bits=8), params, 2)

    def loss(learning_rate):
        updates, _ = adadelta(learning_rate, state_bits=8).update(g, state)
        return jnp.sum((params + updates) ** 2)

    direction, _ = scale_by_adadelta(state_bits=8).update(g, state)
    expected = -2 * jnp.sum((params - 0.5 * direction) * direction)
    for derivative in (jax.grad(loss), jax.jit(jax.jacfwd(loss))):
        np.testing.assert_allclose(derivative(0.5), expected, rtol=1e-5)


def test_derivatives_are_finite_in_float32_where_gradients_are_zero():
    def loss(learning_rate, rho, eps, x):
        optimizer = adadelta(learning_rate, rho, eps)
        state = optimizer.init(x)
        for _ in range(3):
            updates, state = optimizer.update(jnp.array([0.0, 1.0]) * x, state)
            x = optax.apply_updates(x, updates)
        return jnp.sum(x**2)

    given = (jnp.float32(1.0), jnp.float32(0.9), jnp.float32(1e-6), jnp.array([1.0, 2.0]))
    for derivative in jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*given):
        assert jnp.isfinite(derivative).all()
        assert (derivative != 0).any()
