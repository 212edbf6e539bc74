"""The averages of a run, read from its state in any storage."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from optax_adadelta._equation import Epsilons
from optax_adadelta._scale import epsilons
from optax_adadelta._sharding import in_device_memory, in_memory_of
from optax_adadelta._state import AdadeltaState
from optax_adadelta._storage import Averages, Storage, storages_of
from optax_adadelta._trees import unzipped


def read_averages(state: AdadeltaState) -> Averages:
    """Returns both averages as floats; in full precision they are the arrays of the state."""
    return map_averages(lambda storage, stored, units: storage.read(stored, units), state)


def map_averages(
    function: Callable[[Storage, Averages, Epsilons | None], Averages], state: AdadeltaState
) -> Averages:
    """Applies `function` to each leaf's storage, stored averages and units; returns two trees."""
    e_gs, structure = jax.tree.flatten(state.e_g)
    e_xs = jax.tree.leaves(state.e_x)
    leaves = [
        function(storage, Averages(e_g, e_x), units)
        for storage, units, e_g, e_x in zip(
            storages_of(state), units_of(state), e_gs, e_xs, strict=True
        )
    ]
    return Averages(*map(structure.unflatten, unzipped(leaves, 2)))


def scale_of(state: AdadeltaState) -> jax.Array | None:
    """Returns the scale of each array, in device memory and without a variable around it."""
    (scale,) = jax.tree.leaves(state.scale) or [None]
    return in_device_memory(scale)


def units_of(state: AdadeltaState) -> list[Epsilons | None]:
    """Returns what the codes of each leaf are relative to, or None in full precision."""
    (unit,) = jax.tree.leaves(state.unit) or [None]
    count = len(jax.tree.leaves(state.e_g))
    if unit is None:
        return [None] * count
    scale = scale_of(state)
    if scale is None:
        return [epsilons(unit, None)] * count
    units = map(jnp.unstack, epsilons(in_device_memory(unit), scale))
    return [Epsilons(*(in_memory_of(x, unit) for x in pair)) for pair in zip(*units, strict=True)]
