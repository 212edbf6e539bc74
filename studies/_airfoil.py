"""Airfoil noise: the data, the linear model, its training and the lines in the pictures."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_adadelta.diagnostics import plot_curves
from studies._lib.training import batches

ROWS = 1500
BATCH = 10
RHO, EPS = 0.9, 1e-5
DIVERGED = 1e9  # A loss above this, infinite or NaN counts as this.
GOOD = 0.05  # How far above least squares a good loss may be, relative to it.
COLORS = ("#0072B2", "#D55E00", "#009E73")


def prepare(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns features, with a column of ones for the bias, and the target, standardized."""
    table = ((table - table.mean(axis=0)) / table.std(axis=0))[:ROWS]
    features = np.column_stack([table[:, :-1], np.ones(len(table))])
    return features.astype(np.float32), table[:, -1].astype(np.float32)


def least_squares(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the smallest loss of a linear model, computed in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    return float(np.mean((x @ np.linalg.lstsq(x, y)[0] - y) ** 2) / 2)


def start(seed: int, size: int) -> np.ndarray:
    """Returns small random weights, with standard deviation 0.01, and a bias of zero."""
    w = 0.01 * np.random.default_rng((seed, 1)).normal(size=size)
    w[-1] = 0
    return w.astype(np.float32)


def loss(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns half the mean squared error."""
    return jnp.mean((x @ w - y) ** 2) / 2


def train(
    optimizer: Callable[..., optax.GradientTransformation],
    settings: Mapping[str, list[float]],
    data: tuple[np.ndarray, np.ndarray],
    seeds: int,
    epochs: int,
) -> np.ndarray:
    """Trains with each setting and seed, all in one compiled program.

    Returns the losses on all rows before the first step and after each, [settings, seeds, steps].
    """
    x, y = map(jnp.asarray, data)
    steps = epochs * (len(y) // BATCH)

    def run(setting, w, batches):
        method = optimizer(**setting)

        def step(at, batch):
            w, state = at
            updates, state = method.update(jax.grad(loss)(w, x[batch], y[batch]), state, w)
            new = optax.apply_updates(w, updates)
            return (new, state), loss(new, x, y)

        after = jax.lax.scan(step, (w, method.init(w)), batches)[1]
        return jnp.append(loss(w, x, y), after)

    over_seeds = jax.vmap(run, in_axes=(None, 0, 0))
    over_settings = jax.jit(jax.vmap(over_seeds, in_axes=(0, None, None)))
    losses = over_settings(
        {name: jnp.asarray(values, jnp.float32) for name, values in settings.items()},
        jnp.stack([start(seed, x.shape[1]) for seed in range(seeds)]),
        jnp.stack([batches(seed, len(y), BATCH, steps) for seed in range(seeds)]),
    )
    return np.nan_to_num(np.minimum(losses, DIVERGED), nan=DIVERGED)


def draw_lines(axes, x: list, lines: dict) -> None:
    """Draws a line for each name."""
    plot_curves(lines, axes, x)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
