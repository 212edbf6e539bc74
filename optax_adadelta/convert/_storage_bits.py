"""Converts the state of a run to another storage."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_adadelta._averages import map_averages, units_of
from optax_adadelta._dtypes import whole_count
from optax_adadelta._equation import Epsilons
from optax_adadelta._hyperparameters import Value, at_step, check_limits, number_or_schedule
from optax_adadelta._sharding import in_device_memory, scalar_sharding
from optax_adadelta._state import AdadeltaState, is_adadelta_state, none_found
from optax_adadelta._storage import (
    Averages,
    Storage,
    checked_state_bits,
    storage_with,
    storages_of,
    unit_of,
)
from optax_adadelta.convert._owned import chosen_sharding, owned, owned_at


def with_state_bits(
    state: Any,
    state_bits: int | None,
    *,
    eps: optax.ScalarOrSchedule | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Any:
    """Returns a state with its averages in another storage, so that a run can change its storage.

    The averages are rounded to the nearest values of the new storage. A NaN has no code: it becomes
    the largest E[g^2], or an E[dx^2] of zero. So is the trace of :func:`.nadadelta`, in which a NaN
    becomes zero. The step count, the scale and every sharding stay.

    Args:
      state: an :class:`.AdadeltaState`, or the state of any optimizer that contains some, however
        deep. All of them are converted.
      state_bits: the storage: None for full precision, 16 or 8, as for :func:`.adadelta`.
      eps: the optimizer's eps, a positive scalar or the schedule itself; for :func:`.nadadelta`,
        its share. It is required only to quantize averages that are in full precision.
      dtype: the dtype of averages that were quantized and become full precision: float32 or
        float64. Use float64 if parameters are float64 or complex128.

    Returns:
      The same state, with the averages of each :class:`.AdadeltaState` stored as
      ``adadelta(state_bits=state_bits)`` stores them. All arrays are copies.

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
    state_bits = checked_state_bits(state_bits)
    check_limits({"rho": 1.0, "eps": 1.0 if eps is None else eps}, storage_with(state_bits))
    if jnp.dtype(dtype) not in storage_with(None).dtypes:
        raise TypeError(
            f"dtype must be float32 or float64; got {jnp.dtype(dtype)}. In full precision, averages"
            " have no other dtype, whatever the dtype of the parameters."
        )
    parts, structure = jax.tree.flatten(state, is_leaf=is_adadelta_state)
    if not any(map(is_adadelta_state, parts)):
        raise none_found(state)
    converted = [
        _converted(part, state_bits, eps, jnp.dtype(dtype))
        if is_adadelta_state(part)
        else owned(part)
        for part in parts
    ]
    return jax.tree.unflatten(structure, converted)


def _converted(
    state: AdadeltaState,
    state_bits: int | None,
    eps: Value | optax.Schedule | None,
    dtype: np.dtype,
) -> AdadeltaState:
    bare = without_wrappers(state)
    olds = storages_of(bare)
    storage = storage_with(state_bits, relative=bare.scale is not None)
    unit = None
    if storage.quantized:
        stored = bare.unit if eps is None else at_step("eps", eps, in_device_memory(bare.count))
        if stored is None:
            raise ValueError(
                "eps is None, but quantized averages are relative to it: call with_state_bits("
                "state, state_bits, eps=...) with the eps of the optimizer."
            )
        place = chosen_sharding(bare.count) or scalar_sharding(state)
        unit = jax.device_put(unit_of(in_device_memory(stored)), place)
    on_device = bare._replace(scale=in_device_memory(bare.scale), unit=in_device_memory(bare.unit))
    before = units_of(on_device)
    after = units_of(on_device._replace(unit=None if unit is None else in_device_memory(unit)))
    new_units = iter(after)

    def convert(old: Storage, stored: Averages, units: Epsilons | None) -> Averages:
        return converted_leaf(old, storage, dtype, stored, units, next(new_units))

    e_g, e_x = map_averages(convert, on_device)
    traces, structure = jax.tree.flatten(bare.trace)
    leaves = zip(olds, traces, before, after, strict=True) if traces else ()
    traces = [converted_trace(old, storage, dtype, trace, *units) for old, trace, *units in leaves]

    wrapper = jax.tree.structure(state.count)
    return AdadeltaState(
        count=wrapper.unflatten([owned(whole_count(bare.count))]),
        e_g=e_g,
        e_x=e_x,
        unit=None if unit is None else wrapper.unflatten([unit]),
        trace=structure.unflatten(traces),
        scale=owned(state.scale),
    )


def without_wrappers(state: AdadeltaState) -> AdadeltaState:
    """Returns a state whose scalars are arrays and not variables, which Flax NNX makes of them."""
    (count,) = jax.tree.leaves(state.count)
    unit, scale = (next(iter(jax.tree.leaves(x)), None) for x in (state.unit, state.scale))
    return state._replace(count=count, unit=unit, scale=scale)


def converted_leaf(
    old: Storage,
    new: Storage,
    dtype: np.dtype,
    stored: Averages,
    before: Epsilons | None,
    after: Epsilons | None,
) -> Averages:
    """Returns the stored averages of a leaf as another storage has them, or in other units."""
    operands = jax.tree.map(in_device_memory, (stored, before, after))
    return Averages(*map(owned_at, _converted_leaf(old, new, dtype, *operands), stored))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _converted_leaf(
    old: Storage,
    new: Storage,
    dtype: np.dtype,
    stored: Averages,
    before: Epsilons | None,
    after: Epsilons | None,
) -> Averages:
    averages = old.read(stored, before)
    if old.quantized:
        averages = Averages(*(average.astype(dtype) for average in averages))
    return new.write(averages, after)


def converted_trace(
    old: Storage,
    new: Storage,
    dtype: np.dtype,
    trace: Any,
    before: Epsilons | None,
    after: Epsilons | None,
) -> Any:
    """Returns the stored trace of a leaf likewise."""
    operands = jax.tree.map(in_device_memory, (trace, before, after))
    return owned_at(_converted_trace(old, new, dtype, *operands), trace)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _converted_trace(
    old: Storage,
    new: Storage,
    dtype: np.dtype,
    trace: jax.Array,
    before: Epsilons | None,
    after: Epsilons | None,
) -> jax.Array:
    numbers = old.read_trace(trace, before)
    if old.quantized and not jnp.iscomplexobj(trace):
        numbers = numbers.astype(dtype)
    return new.write_trace(numbers, after)
