"""Records a few coordinates of a run, step by step."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_adadelta._averages import units_of
from optax_adadelta._serialization import exportable
from optax_adadelta._sharding import gathered
from optax_adadelta._state import find_state
from optax_adadelta._storage import Averages, storages_of
from optax_adadelta.diagnostics._rates import effective_rates, epsilons_at, last_step, settings_at


@exportable("optax_adadelta.diagnostics.Sample")
class Sample(NamedTuple):
    """A few coordinates of a run after one step.

    Attributes:
      count: the number of steps made.
      rate: the effective learning rates: a dictionary from the name of a leaf to an array.
      update: what was added to the parameters in that step, in the same form.
    """

    count: jax.Array
    rate: dict[str, jax.Array]
    update: dict[str, jax.Array]


def choose_coordinates(state: Any, size: int = 10, seed: int = 0) -> dict[str, np.ndarray]:
    """Chooses random coordinates of each leaf, for :func:`sample`.

    Args:
      state: a state as for :func:`find_state`. Only the shapes of its arrays matter.
      size: the number of coordinates per leaf. A smaller leaf gives all of its coordinates.
      seed: an integer that decides which coordinates are chosen.

    Returns:
      A dictionary from the name of a leaf to the indices of its coordinates, int64 of shape
      ``[ndim, size]``. The name is the leaf's path in the parameters, joined by ``/``. A scalar
      counts as one-dimensional; an empty leaf has no entry. To leave out a leaf, delete its entry.

    Raises:
      ValueError: ``size`` is below 1; two leaves have the same name; or ``state`` does not contain
        exactly one :class:`.AdadeltaState`.

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
        raise ValueError(
            f"size must be at least 1, the number of coordinates per leaf; got {size}."
        )
    rng = np.random.default_rng(seed)
    coordinates = {}
    for name, leaf in by_name(find_state(state).e_g).items():
        shape, elements = leaf.shape or (1,), int(np.prod(leaf.shape))
        if elements:
            chosen = rng.choice(elements, min(size, elements), replace=False)
            coordinates[name] = np.stack(np.unravel_index(chosen, shape))
    return coordinates


def sample(
    state: Any,
    updates: optax.Updates,
    coordinates: Mapping[str, jax.typing.ArrayLike],
    eps: optax.ScalarOrSchedule,
    learning_rate: optax.ScalarOrSchedule = 1.0,
) -> Sample:
    """Returns the effective learning rates and the updates of a few coordinates.

    It is cheap enough for every training step, and works inside ``jax.jit``, ``jax.lax.scan`` and
    ``jax.vmap``. Schedules have their values of the step that made the state; before the first
    step, those of the first.

    Args:
      state: a state as for :func:`find_state`, after the step.
      updates: the updates of that step, as ``optax.apply_updates`` takes them.
      coordinates: a dictionary from the name of a leaf to integer indices of shape ``[ndim, n]``,
        as :func:`choose_coordinates` returns it. The range of traced indices is not checked.
      eps: as for :func:`effective_learning_rate`.
      learning_rate: as for :func:`effective_learning_rate`.

    Returns:
      A :class:`Sample` with arrays of shape ``[n]``.

    Raises:
      TypeError: as for :func:`effective_learning_rate`.
      ValueError: ``coordinates`` names a leaf that does not exist, or has indices outside of it;
        the updates do not have the shapes of the averages; two leaves have the same name; or as for
        :func:`effective_learning_rate`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_adadelta import adadelta
      >>> from optax_adadelta.diagnostics import choose_coordinates, sample
      >>> optimizer = adadelta()
      >>> params = {"w": jnp.ones((2, 3))}
      >>> state = optimizer.init(params)
      >>> coordinates = choose_coordinates(state, size=4)
      >>> updates, state = optimizer.update({"w": jnp.full((2, 3), 0.1)}, state, params)
      >>> seen = sample(state, updates, coordinates, eps=1e-6)
      >>> print(seen.count, f"{seen.rate['w'].mean():.3f} {seen.update['w'].mean():.5f}")
      1 0.063 -0.00447
    """
    found = find_state(state)
    eps, rate = settings_at(last_step(found), eps, learning_rate)
    leaves = by_name(found.e_g), by_name(found.e_x), by_name(updates)
    details = zip(storages_of(found), units_of(found), strict=True)
    stored_as = {
        name: (i, *each) for i, (name, each) in enumerate(zip(leaves[0], details, strict=True))
    }
    seen: dict[str, jax.Array] = {}
    steps: dict[str, jax.Array] = {}
    for name, indices in coordinates.items():
        for tree in leaves:
            if name not in tree:
                raise ValueError(
                    f"coordinates has {name!r}, but there is no leaf of this name; the leaves are:"
                    f" {', '.join(map(repr, tree)) or 'none'}."
                )
        e_g, e_x, update = (jnp.atleast_1d(tree[name]) for tree in leaves)
        if not isinstance(indices, jax.core.Tracer):
            indices = np.asarray(indices)
        _check(name, indices, e_g.shape, update.shape)
        i, storage, units = stored_as[name]
        stored = Averages(*(gathered(x, tuple(indices)) for x in (e_g, e_x)))
        read = storage.read(stored, units)
        seen[name] = effective_rates(*read, epsilons_at(i, eps, found, read.e_g.dtype), rate)
        steps[name] = gathered(update, tuple(indices))
    # A copy, because the next step may donate the state.
    return Sample(jnp.array(found.count), seen, steps)


def _check(
    name: str, indices: jax.Array | np.ndarray, shape: tuple[int, ...], update: tuple[int, ...]
) -> None:
    if update != shape:
        raise ValueError(
            f"{name!r} has updates of shape {update} and averages of shape {shape}. Pass the"
            " updates and the state of the same step."
        )
    integer = jnp.issubdtype(indices.dtype, jnp.integer)
    if indices.ndim != 2 or len(indices) != len(shape) or not integer:
        raise ValueError(
            f"The coordinates of {name!r} must be integers of shape [{len(shape)}, n], a row per"
            f" axis; got {indices.dtype} of shape {list(indices.shape)}."
        )
    if isinstance(indices, np.ndarray) and not ((0 <= indices.T) & (indices.T < shape)).all():
        raise ValueError(
            f"The coordinates of {name!r} must be within its shape, {shape}; got indices from"
            f" {indices.min(axis=1).tolist()} to {indices.max(axis=1).tolist()}."
        )


def by_name(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths, joined by ``/``."""
    named = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    ]
    leaves = dict(named)
    if len(leaves) < len(named):
        names = [name for name, _ in named]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"Two leaves have the name {twice!r}. Use no key with a / in it.")
    return leaves
