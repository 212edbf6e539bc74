"""The averages of a run, read from its state in any storage."""

from collections.abc import Callable
from typing import Any

import jax

from optax_adadelta._equation import Epsilons
from optax_adadelta._scale import epsilons, mean_squares
from optax_adadelta._state import AdadeltaState, find_state
from optax_adadelta._storage import Averages, Storage, storages_of


def averages(state: Any) -> Averages:
    """Returns E[g^2] and E[dx^2] as floats, whether they are quantized or not.

    Args:
      state: an :class:`.AdadeltaState`, or the state of any optimizer that contains exactly one,
        however deep: a chain, a mask, a wrapper.

    Returns:
      Two trees ``e_g`` and ``e_x`` with the structure of the parameters and arrays of their
      shapes: float32 if they are quantized, otherwise the arrays of the state.

    Raises:
      TypeError: the arrays have dtypes that no storage has.
      ValueError: there is no :class:`.AdadeltaState` in ``state``, or there are several.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_adadelta import adadelta
      >>> from optax_adadelta.diagnostics import averages
      >>> optimizer = adadelta(state_bits=8)
      >>> params = {"w": jnp.ones(3)}
      >>> _, state = optimizer.update({"w": jnp.full(3, 2.0)}, optimizer.init(params))
      >>> print(state.e_g["w"].dtype, f"{averages(state).e_g['w'].mean():.1f}")
      uint8 0.2
    """
    found = find_state(state)
    return map_averages(lambda storage, stored, units: storage.read(stored, units), found)


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
    return Averages(*(jax.tree.unflatten(structure, [leaf[i] for leaf in leaves]) for i in (0, 1)))


def units_of(state: AdadeltaState) -> list[Epsilons | None]:
    """Returns what the codes of each leaf are relative to, or None in full precision."""
    (unit,) = jax.tree.leaves(state.unit) or [None]
    count = len(jax.tree.leaves(state.e_g))
    if unit is None:
        return [None] * count
    if state.scale is None:
        return [epsilons(unit, None)] * count
    units = epsilons(unit, mean_squares(state.scale))
    return [Epsilons(units.g[i], units.x[i]) for i in range(count)]
