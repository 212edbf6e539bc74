"""Converts optimizer states: to another storage, or to another set of parameters."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_adadelta._hyperparameters import at_step, checked_state_bits, number_or_schedule
from optax_adadelta._state import AdadeltaState, find_state, is_adadelta_state, map_averages
from optax_adadelta._storage import Averages, Storage, storage_with, unit_of

__all__ = ["carry_over", "with_state_bits"]


def __dir__() -> list[str]:
    return __all__


def with_state_bits(
    state: Any,
    state_bits: int | None,
    *,
    eps: optax.ScalarOrSchedule | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Any:
    """Returns a state with its averages in another storage, so that a run can change its storage.

    The averages are rounded to the nearest values of the new storage. A NaN has no code: it becomes
    the largest E[g^2], or an E[dx^2] of zero. The step count stays.

    Args:
      state: an :class:`.AdadeltaState`, or the state of any optimizer that contains some, however
        deep. All of them are converted.
      state_bits: the storage: None for full precision, 16 or 8, as for :func:`.adadelta`.
      eps: the optimizer's eps, a positive scalar or the schedule itself. It is required only to
        quantize averages that are in full precision.
      dtype: the dtype of averages that were quantized and become full precision: float32 or
        float64. Use float64 if parameters are float64 or complex128.

    Returns:
      The same state, with the averages of each :class:`.AdadeltaState` stored as
      ``adadelta(state_bits=state_bits)`` stores them.

    Raises:
      TypeError: the arrays of ``state`` have dtypes that no storage has, or ``dtype`` is neither
        float32 nor float64.
      ValueError: there is no :class:`.AdadeltaState` in ``state``; ``eps`` is missing; or
        ``state_bits`` or ``eps`` is not a value that :func:`.adadelta` accepts.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_adadelta import adadelta
      >>> from optax_adadelta.convert import with_state_bits
      >>> grads = {"w": jnp.ones(3)}
      >>> _, state = adadelta().update(grads, adadelta().init(grads))
      >>> state = with_state_bits(state, 8, eps=1e-6)
      >>> _, state = adadelta(state_bits=8).update(grads, state)
      >>> print(state.count, state.e_g["w"].dtype)
      2 uint8
    """
    eps = None if eps is None else number_or_schedule("eps", eps)
    checked_state_bits(state_bits, 1.0, 1.0 if eps is None else eps)
    if jnp.dtype(dtype) not in storage_with(None).dtypes:
        raise TypeError(
            f"dtype must be float32 or float64; got {jnp.dtype(dtype)}. In full precision, averages"
            " have no other dtype, whatever the dtype of the parameters."
        )
    storage = storage_with(state_bits)
    parts, structure = jax.tree.flatten(state, is_leaf=is_adadelta_state)
    if not any(map(is_adadelta_state, parts)):
        raise ValueError(
            f"There is no AdadeltaState in {structure}. Pass the state of an optimizer that"
            " contains adadelta or scale_by_adadelta."
        )
    converted = [_converted(p, storage, eps, dtype) if is_adadelta_state(p) else p for p in parts]
    return jax.tree.unflatten(structure, converted)


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
      new_state: the state that ``init(params)`` of the new optimizer returns. It too must contain
        exactly one :class:`.AdadeltaState`.

    Returns:
      ``new_state`` with the old averages in its :class:`.AdadeltaState`. Everything else in it,
      such as the other states of a chain, stays the same.

    Raises:
      TypeError: a parameter's averages have different dtypes in the two states.
      ValueError: a parameter has different shapes in the two states; or there is no
        :class:`.AdadeltaState` in one of them, or there are several.

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
    old, new = find_state(state), find_state(new_state)
    kept = {path: pair for path, pair in _by_path(old)}

    def carried(path, fresh):
        stored = kept.get(path, fresh)
        for was, is_ in zip(stored, fresh, strict=True):
            if was.shape != is_.shape:
                raise ValueError(
                    f"The parameter at {jax.tree_util.keystr(path) or 'the top'} has shape"
                    f" {was.shape} in the old state and {is_.shape} in the new one. Give the new"
                    " parameter another name, or change the old averages to its shape."
                )
            if was.dtype != is_.dtype:
                raise TypeError(
                    f"The averages at {jax.tree_util.keystr(path) or 'the top'} are {was.dtype} in"
                    f" the old state and {is_.dtype} in the new one. Convert the old state first:"
                    " convert.with_state_bits."
                )
        return stored

    leaves = [carried(path, fresh) for path, fresh in _by_path(new)]
    structure = jax.tree.structure(new.e_g)
    e_g, e_x = (jax.tree.unflatten(structure, [leaf[i] for leaf in leaves]) for i in range(2))
    units = [part.unit for part in (old, new) if part.unit is not None]
    grown = AdadeltaState(old.count, e_g, e_x, units[0] if new.unit is not None else None)
    return jax.tree.map(
        lambda part: grown if is_adadelta_state(part) else part,
        new_state,
        is_leaf=is_adadelta_state,
    )


def _by_path(state: AdadeltaState) -> list[tuple[Any, Averages]]:
    e_gs, e_xs = jax.tree.leaves_with_path(state.e_g), jax.tree.leaves(state.e_x)
    return [(path, Averages(e_g, e_x)) for (path, e_g), e_x in zip(e_gs, e_xs, strict=True)]


def _converted(state: AdadeltaState, storage: Storage, eps, dtype) -> AdadeltaState:
    unit = None
    if storage.quantized:
        stored = state.unit if eps is None else at_step("eps", eps, state.count)
        if stored is None:
            raise ValueError(
                "eps is None, but quantized averages are relative to it: call with_state_bits("
                "state, state_bits, eps=...) with the eps of the optimizer."
            )
        unit = unit_of(stored)

    def convert(old: Storage, stored: Averages) -> Averages:
        return _converted_leaf(old, storage, jnp.dtype(dtype), stored, state.unit, unit)

    e_g, e_x = map_averages(convert, state)
    return AdadeltaState(state.count, e_g, e_x, unit)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _converted_leaf(old: Storage, new: Storage, dtype, stored: Averages, old_unit, unit):
    averages = old.read(stored, old_unit)
    if old.quantized:
        averages = Averages(*(average.astype(dtype) for average in averages))
    return new.write(averages, unit)
