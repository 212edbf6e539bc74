"""A few coordinates of a run, step by step."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_adadelta._rates import find_state, rate_of


class Sample(NamedTuple):
    """A few coordinates of a run: how far along it was, and two arrays for each leaf.

    Attributes:
      count: the number of steps made.
      rate: the effective learning rates, by the leaf's name.
      update: what was added to the parameters in that step, by the leaf's name.
    """

    count: jax.Array
    rate: dict[str, jax.Array]
    update: dict[str, jax.Array]


def choose_coordinates(state: Any, size: int = 10, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns coordinates of each leaf at random, for :func:`sample` to look at.

    Args:
      state: what :func:`find_state` takes; of its arrays only the shapes matter.
      size: how many coordinates of a leaf, at most all of them.
      seed: chooses them.

    Returns:
      The indices of the coordinates, int64 of shape ``[ndim, size]``, by the leaf's name: its
      path in the parameters, joined by ``/``. A scalar counts as one-dimensional; an empty leaf
      has no entry. Leave out leaves as you leave out items of a dictionary.

    Raises:
      ValueError: ``size`` is below 1, or :func:`find_state` raises it.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_adadelta import adadelta
      >>> from optax_adadelta.diagnostics import choose_coordinates
      >>> state = adadelta().init({"layer": {"w": jnp.ones((784, 500)), "b": jnp.zeros(500)}})
      >>> coordinates = choose_coordinates(state)
      >>> {name: indices.shape for name, indices in coordinates.items()}
      {'layer/b': (1, 10), 'layer/w': (2, 10)}
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size}.")
    rng = np.random.default_rng(seed)
    coordinates = {}
    for name, leaf in _by_name(find_state(state).e_g).items():
        shape, elements = leaf.shape or (1,), int(np.prod(leaf.shape))
        if elements:
            chosen = rng.choice(elements, min(size, elements), replace=False)
            coordinates[name] = np.stack(np.unravel_index(chosen, shape))
    return coordinates


def sample(
    state: Any,
    updates: optax.Updates,
    coordinates: Mapping[str, np.ndarray],
    eps: float | jax.Array = 1e-6,
    learning_rate: float | jax.Array = 1.0,
) -> Sample:
    """Returns the effective learning rates and the updates of a few coordinates.

    It is cheap, and made for the training step: inside ``jax.jit``, ``jax.lax.scan`` or
    ``jax.vmap``.

    Args:
      state: what :func:`find_state` takes, after the step.
      updates: the updates of that step, as ``optax.apply_updates`` takes them.
      coordinates: indices of shape ``[ndim, n]`` by the leaf's name, such as
        :func:`choose_coordinates` makes.
      eps: as for :func:`effective_learning_rate`.
      learning_rate: as for :func:`effective_learning_rate`.

    Returns:
      A :class:`Sample` with arrays of shape ``[n]``.

    Raises:
      ValueError: ``coordinates`` names a leaf that is not there, or
        :func:`effective_learning_rate` raises it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_adadelta import adadelta
      >>> from optax_adadelta.diagnostics import choose_coordinates, sample
      >>> optimizer = adadelta()
      >>> params = {"w": jnp.ones((2, 3))}
      >>> state = optimizer.init(params)
      >>> coordinates = choose_coordinates(state, size=4)
      >>> updates, state = optimizer.update({"w": jnp.full((2, 3), 0.1)}, state, params)
      >>> seen = sample(state, updates, coordinates)
      >>> print(seen.count, f"{seen.rate['w'].mean():.3f} {seen.update['w'].mean():.5f}")
      1 0.063 -0.00447
    """
    rate = rate_of(eps, learning_rate)
    found = find_state(state)

    def chosen(tree: Any) -> dict[str, jax.Array]:
        leaves = _by_name(tree)
        for name in coordinates:
            if name not in leaves:
                raise ValueError(f"There is no leaf {name!r}; there are {', '.join(leaves)}.")
        return {
            name: jnp.atleast_1d(leaves[name])[tuple(indices)]
            for name, indices in coordinates.items()
        }

    e_g, e_x = chosen(found.e_g), chosen(found.e_x)
    rates = {name: rate(e_g[name], e_x[name]) for name in coordinates}
    return Sample(jnp.asarray(found.count), rates, chosen(updates))


def _by_name(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
