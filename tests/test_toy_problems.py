"""Toy problems, which other suites have too, are solved in every storage."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from states import BITS

from optax_adadelta import adadelta

pytestmark = pytest.mark.usefixtures("optax_promotes")


def modulus_squared(z):
    return jnp.real(z * jnp.conj(z))


def rosenbrock(a, x):
    return modulus_squared(a - x[0]) + 100 * modulus_squared(x[1] - x[0] ** 2)


def distance(x, target):
    return jnp.sum(modulus_squared(x - target))


# All of them at once, because no coordinate of Adadelta knows of another one.
TARGET = {
    "parabola": np.array([[2.0, -3.0], [0.5, 0.25]]),
    "parabola of a scalar": np.array(-1.5),
    "parabola in the complex plane": np.array([1 - 2j, -3j, 0.5]),
    "Rosenbrock": np.array([1.0, 1.0]),
    "Rosenbrock in the complex plane": np.array([1 + 0.5j, (1 + 0.5j) ** 2]),
}


def loss_of(params):
    return sum(
        rosenbrock(target[0], params[name]) if "Rosen" in name else distance(params[name], target)
        for name, target in TARGET.items()
    )


def solve(optimizer, loss, target, steps):
    """The parameters after so many steps from zero in one compiled loop."""

    def step(carry, _):
        params, state = carry
        grads = jax.grad(loss)(params)
        # JAX's gradient of a real function of a complex number is the conjugate of the ascent.
        grads = jax.tree.map(jnp.conj, grads)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def loop(params):
        return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[0][0]

    return loop(jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.result_type(x)), target))


@BITS
def test_the_usual_toy_problems_are_solved(bits):
    optimizer = adadelta(optax.cosine_decay_schedule(0.3, 10_000), state_bits=bits)
    found = solve(optimizer, loss_of, TARGET, 10_000)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-3), found, TARGET)


def test_where_the_curvature_is_above_two_a_falling_learning_rate_settles():
    """The README's advice: once gradients die away, Adadelta is descent with step 1."""
    x = np.random.default_rng(0).uniform(0, 10, 100)
    inputs = jnp.asarray(np.stack([x, np.ones(100)], axis=1), jnp.float32)
    line = jnp.array([3.0, 2.0])
    steps = 10_000

    def distances(optimizer):
        def step(carry, _):
            params, state = carry
            grads = jax.grad(lambda p: jnp.mean((inputs @ (p - line)) ** 2))(params)
            updates, state = optimizer.update(grads, state)
            params = optax.apply_updates(params, updates)
            return (params, state), jnp.max(jnp.abs(params - line))

        start = jnp.zeros(2)
        return jax.lax.scan(step, (start, optimizer.init(start)), length=steps)[1]

    assert jnp.max(distances(adadelta())[-500:]) > 0.01
    falling = adadelta(optax.cosine_decay_schedule(1.0, steps))
    assert jnp.max(distances(falling)[-500:]) < 1e-5
