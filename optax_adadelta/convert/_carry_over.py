"""Carries averages over to the state of another set of parameters."""

from __future__ import annotations

from typing import Any

import jax

from optax_adadelta._state import (
    AdadeltaState,
    adadelta_states,
    find_state,
    is_adadelta_state,
    none_found,
)
from optax_adadelta._storage import Averages
from optax_adadelta.convert._problems import place


def carry_over(state: Any, new_state: Any) -> Any:
    """Returns a new state with the averages of those parameters that the old state also has.

    Use it when the set of trained parameters changes during a run: when layers are unfrozen or
    frozen, or when a model gets new ones. Parameters are matched by their path. Parameters that the
    old state does not have start fresh, as in ``new_state``. The step count, and the unit of
    quantized averages, are those of the old state. The averages of parameters that are no longer
    trained are left out, so keep the old state if you may need them again.

    Args:
      state: the old state: an :class:`.AdadeltaState`, or the state of any optimizer that contains
        exactly one, however deep.
      new_state: the state that ``init(params)`` of the new optimizer returns. It must contain at
        least one :class:`.AdadeltaState`. There are several if :func:`optax.multi_transform` trains
        groups of parameters: each gets the averages of its own parameters.

    Returns:
      ``new_state`` with the old averages in each :class:`.AdadeltaState`. Everything else in it,
      such as the other states of a chain, stays the same.

    Raises:
      TypeError: a parameter's averages have different dtypes in the two states.
      ValueError: a parameter has different shapes in the two states; or there is no
        :class:`.AdadeltaState` in one of them, or there are several in the old one.

    Example:
      Train the head alone, then everything.

      >>> import jax.numpy as jnp, optax
      >>> from optax_adadelta import adadelta
      >>> from optax_adadelta.convert import carry_over
      >>> params = {"body": jnp.ones(3), "head": jnp.ones(2)}
      >>> head = optax.masked(adadelta(), {"body": False, "head": True})
      >>> _, state = head.update(params, head.init(params))
      >>> optimizer = adadelta()
      >>> state = carry_over(state, optimizer.init(params))
      >>> print(state.count, state.e_g)
      1 {'body': Array([0., 0., 0.], dtype=float32), 'head': Array([0.05, 0.05], dtype=float32)}
    """
    old = find_state(state)
    kept = dict(_by_path(old))
    if not adadelta_states(new_state):
        raise none_found(new_state)

    def carried(path, fresh):
        stored = kept.get(path, fresh)
        for was, is_ in zip(stored, fresh, strict=True):
            if was.shape != is_.shape:
                raise ValueError(
                    f"The parameter at {place(path)} has shape"
                    f" {was.shape} in the old state and {is_.shape} in the new one. Give the new"
                    " parameter another name, or change the old averages to its shape."
                )
            if was.dtype != is_.dtype:
                raise TypeError(
                    f"The averages at {place(path)} are {was.dtype} in"
                    f" the old state and {is_.dtype} in the new one. Convert the old state first:"
                    " convert.with_state_bits."
                )
        return stored

    def grown(new):
        leaves = [carried(path, fresh) for path, fresh in _by_path(new)]
        structure = jax.tree.structure(new.e_g)
        e_g, e_x = (jax.tree.unflatten(structure, [leaf[i] for leaf in leaves]) for i in range(2))
        units = [part.unit for part in (old, new) if part.unit is not None]
        return AdadeltaState(old.count, e_g, e_x, units[0] if new.unit is not None else None)

    return jax.tree.map(
        lambda part: grown(part) if is_adadelta_state(part) else part,
        new_state,
        is_leaf=is_adadelta_state,
    )


def _by_path(state: AdadeltaState) -> list[tuple[Any, Averages]]:
    e_gs, e_xs = jax.tree.leaves_with_path(state.e_g), jax.tree.leaves(state.e_x)
    return [(path, Averages(e_g, e_x)) for (path, e_g), e_x in zip(e_gs, e_xs, strict=True)]
