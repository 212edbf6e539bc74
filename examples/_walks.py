"""Walks down functions of two numbers that make it hard, each in its own way."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

LAST = 30  # Steps whose highest value tells a walk that arrived from a lucky jump.


class Function(NamedTuple):
    """A function of x and y, where walks on it start, and its minima, at which it is 0."""

    value: Callable
    start: tuple[float, float]
    minima: list[tuple[float, float]]


def beale(x, y):
    """Returns Beale's function."""
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


FUNCTIONS = {
    "Rosenbrock": Function(lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2, (-1.2, 1), [(1, 1)]),
    "Beale": Function(beale, (1, 1), [(3, 0.5)]),
    "Ravine": Function(lambda x, y: (x**2 + 100 * y**2) / 2, (-2, 0.5), [(0, 0)]),
    # The start is just off the ridge between the two hollows.
    "Saddle": Function(
        lambda x, y: x**2 / 2 + (y**2 - 1) ** 2 / 4, (-1.5, 0.01), [(0, 1), (0, -1)]
    ),
}
WINDOWS = {  # Least and greatest x, least and greatest y.
    "Rosenbrock": (-1.7, 2, -1.3, 2.8),
    "Beale": (0.5, 4.1, -1.2, 1.3),
    "Ravine": (-2.3, 1, -0.65, 0.65),
    "Saddle": (-1.8, 1.5, -1.4, 1.6),
}


def walk(optimizer: optax.GradientTransformation, function: Function, steps: int):
    """Returns the points, the start and that after each step, and the optimizer's states there."""
    gradient = jax.grad(lambda point: function.value(point[0], point[1]))

    def step(here, _):
        point, state = here
        # Optax's Adam takes a power of an integer, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient(point), state, point)
        return (optax.apply_updates(point, updates), state), here

    start = jnp.array(function.start, float)
    return jax.lax.scan(step, (start, optimizer.init(start)), length=steps + 1)[1]


def walks(make: Callable, settings: list[float], function: Function, steps: int):
    """Returns each setting's points, its last value and the highest of the last ones."""

    @jax.jit
    def run(settings):
        points = jax.vmap(lambda setting: walk(make(setting), function, steps)[0])(settings)
        values = function.value(points[:, -LAST:, 0], points[:, -LAST:, 1])
        values = jnp.where(jnp.isfinite(values), values, jnp.inf)
        return points, values[:, -1], values.max(axis=1)

    return [np.asarray(part, float) for part in run(jnp.array(settings, jnp.float32))]
