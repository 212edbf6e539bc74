"""Carries averages over to the state of another set of parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_adadelta._averages import units_of
from optax_adadelta._equation import Epsilons
from optax_adadelta._hyperparameters import known
from optax_adadelta._sharding import in_device_memory
from optax_adadelta._state import (
    AdadeltaState,
    adadelta_states,
    is_adadelta_state,
    none_found,
)
from optax_adadelta._storage import Averages, Storage, storages_of, unit_of
from optax_adadelta._trees import unzipped
from optax_adadelta.convert._matching import Name, matches, name_of, places_in, shown, together
from optax_adadelta.convert._owned import chosen_sharding, owned, owned_at
from optax_adadelta.convert._problems import place
from optax_adadelta.convert._storage_bits import converted_leaf, converted_trace, without_wrappers


class _Stored(NamedTuple):
    """What is stored of a parameter, how it is stored, and in which of the old states."""

    averages: Averages
    trace: Any
    scale: Any
    units: Epsilons | None
    storage: Storage
    group: int


def carry_over(state: Any, new_state: Any) -> Any:
    """Returns a new state with the averages of those parameters that the old state also has.

    Use it when the set of trained parameters changes during a run: when layers are unfrozen or
    frozen, or when a model gets new ones. Use it also when parameters are grouped differently, or
    move to other containers, such as from a dict to a model of Flax NNX or Equinox. Parameters that
    the old state does not have start fresh, as in ``new_state``. The averages of parameters that
    are no longer trained are left out, so keep the old state if you may need them again.

    Parameters are matched by name. A name is made of the keys, indices and attributes on the way to
    the parameter, such as ``layers/0/weight``. A ``value`` at the end is left out, because Flax
    adds it. If no name is the same in both states, all names of one may begin with a container that
    the other does not have, such as ``{"params": ...}``. It is left out too, if all parameters of
    one state are then in the other.

    Args:
      state: the old state: an :class:`.AdadeltaState`, or the state of any optimizer that contains
        one, however deep. It may contain several if each is for other parameters, as with
        :func:`optax.multi_transform`.
      new_state: the state that ``init(params)`` of the new optimizer returns. It must contain at
        least one :class:`.AdadeltaState`. There are several if :func:`optax.multi_transform` trains
        groups of parameters: each gets the averages of its own parameters.

    Returns:
      ``new_state`` with the old averages in each :class:`.AdadeltaState`. Everything else in it,
      such as the other states of a chain, stays the same. All arrays are copies, placed as in
      ``new_state``. The step count goes on. If the old states have different counts, a new one gets
      the largest of those whose parameters it has. Quantized averages keep their codes and their
      unit. Only if averages in different units become one state, they are rounded to codes in the
      smallest of these units. The averages of :func:`.adadelta` and :func:`.nadadelta` are in the
      same units, so in full precision a run can change from one to the other. The trace and the
      scale of :func:`.nadadelta` are carried over where both states have them.

    Raises:
      TypeError: a parameter's averages have different dtypes in the two states.
      ValueError: no name is the same in the two states, which the error lists; a parameter has
        different shapes in them; there is no :class:`.AdadeltaState` in one of them; two in the
        old one have averages of the same parameter; or quantized averages would go from
        :func:`.adadelta` to :func:`.nadadelta` or back.

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
    olds = [without_wrappers(part) for part in _parts(state)]
    news = _parts(new_state)
    groups = [[places_in(part.e_g) for part in parts] for parts in (olds, news)]
    stored = _stored(olds)
    kept = {new: stored[old] for new, old in matches(*map(together, groups)).items()}
    return jax.tree.map(
        lambda part: _grown(part, kept, olds) if is_adadelta_state(part) else owned(part),
        new_state,
        is_leaf=is_adadelta_state,
    )


def _parts(state: Any) -> list[AdadeltaState]:
    parts = list(adadelta_states(state).values())
    if not parts:
        raise none_found(state)
    return parts


def _stored(olds: list[AdadeltaState]) -> dict[Name, _Stored]:
    """Returns what is stored of each parameter, which must be in one state only."""
    found: dict[Name, _Stored] = {}
    for group, old in enumerate(olds):
        leaves = zip(storages_of(old), units_of(old), _by_path(old), strict=True)
        for i, (storage, units, (path, averages, trace)) in enumerate(leaves):
            name = name_of(path)
            if name in found:
                raise ValueError(
                    f"Two AdadeltaStates in the old state have averages of {shown(name)}. Pass the"
                    " one to carry over."
                )
            scale = None if old.scale is None else in_device_memory(old.scale)[i]
            found[name] = _Stored(averages, trace, scale, units, storage, group)
    return found


def _grown(new: AdadeltaState, kept: dict[Name, _Stored], olds: list[AdadeltaState]) -> Any:
    """Returns a new state with what the old ones store of its parameters."""
    bare, leaves = without_wrappers(new), _by_path(new)
    sources = [kept.get(name_of(path)) for path, *_ in leaves]
    groups = sorted({source.group for source in sources if source is not None})
    _check_units(bare, [olds[i] for i in groups])
    counts = [olds[i].count for i in groups] or [old.count for old in olds]
    units = [olds[i].unit for i in groups if olds[i].unit is not None and new.unit is not None]
    count = _one(_largest, counts, bare.count)
    unit = _one(_smallest, units or [bare.unit], bare.unit)
    values = {known(unit) for unit in units}  # None for a traced one
    differ = len(values) > 1 or (len(units) > 1 and None in values)
    scale = None if bare.scale is None else _joined_scale(bare.scale, sources)
    after = units_of(bare._replace(unit=unit, scale=scale)) if differ else [None] * len(leaves)

    def carried(leaf, source, units):
        path, fresh, trace = leaf
        if source is None:
            return owned(fresh), owned(trace)
        _check(path, source, fresh, trace)
        averages, old_trace = source.averages, source.trace
        if differ:
            how = (source.storage, source.storage, np.dtype(np.float32))
            averages = converted_leaf(*how, averages, source.units, units)
            if old_trace is not None:
                old_trace = converted_trace(*how, old_trace, source.units, units)
        if trace is not None:
            trace = owned_at(trace if old_trace is None else old_trace, trace)
        return Averages(*map(owned_at, averages, fresh)), trace

    filled = [carried(*each) for each in zip(leaves, sources, after, strict=True)]
    averages, traces = unzipped(filled, 2)
    fields = (count, *unzipped(averages, 2), unit, traces, scale)
    return jax.tree.structure(new).unflatten(jax.tree.leaves(fields))


def _joined_scale(new: Any, sources: list[_Stored | None]) -> jax.Array:
    """Returns the old scale of each parameter that has one, and the new scale of the others."""
    # The scale of shapes is not known.
    fresh = jnp.full(new.shape, np.nan, new.dtype) if _is_shape(new) else in_device_memory(new)
    olds = [None if source is None else source.scale for source in sources]
    own = [fresh[i] if old is None else old for i, old in enumerate(olds)]
    return owned_at(jnp.stack(own) if own else fresh, new)


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _check_units(new: AdadeltaState, olds: list[AdadeltaState]) -> None:
    """Raises an error if codes would have to be relative to an eps that is not known here."""
    for old in olds:
        if new.unit is not None and (old.scale is None) != (new.scale is None):
            raise ValueError(
                "The codes of adadelta and nadadelta are relative to different eps. Convert the old"
                " state with convert.with_state_bits(state, None), carry it over to a new state in"
                " full precision, and convert that back with the eps of the new optimizer."
            )


def _one(join: Callable[[list[Any]], Any], scalars: list[Any], like: Any) -> Any:
    """Returns one scalar of those of several states, in the place of the new one."""
    place = like if chosen_sharding(like) else scalars[0]
    if len(scalars) == 1:
        return owned_at(scalars[0], place)
    return owned_at(join([in_device_memory(scalar) for scalar in scalars]), place)


def _largest(counts: list[Any]) -> jax.Array:
    return functools.reduce(jnp.maximum, counts)


def _smallest(units: list[Any]) -> jax.Array:
    # Before the first update, a unit is zero and says nothing.
    smallest = functools.reduce(jnp.minimum, [jnp.where(u > 0, u, jnp.inf) for u in units])
    return unit_of(jnp.where(jnp.isinf(smallest), 0, smallest))


def _check(path: jax.tree_util.KeyPath, old: _Stored, new: Averages, trace: Any) -> None:
    pairs = [*zip(old.averages, new, strict=True), (old.trace, trace)]
    for was, is_ in pairs:
        if was is None or is_ is None:
            continue
        if was.shape != is_.shape:
            raise ValueError(
                f"The parameter at {place(path)} has shape {was.shape} in the old state and"
                f" {is_.shape} in the new one. Give the new parameter another name, or change the"
                " old averages to its shape."
            )
        if was.dtype != is_.dtype:
            raise TypeError(
                f"What is stored at {place(path)} is {was.dtype} in the old state and {is_.dtype}"
                " in the new one. Convert the old state first: convert.with_state_bits."
            )


def _by_path(state: AdadeltaState) -> list[tuple[jax.tree_util.KeyPath, Averages, Any]]:
    e_gs, e_xs = jax.tree.leaves_with_path(state.e_g), jax.tree.leaves(state.e_x)
    traces = jax.tree.leaves(state.trace) if state.trace is not None else [None] * len(e_xs)
    return [
        (path, Averages(e_g, e_x), trace)
        for (path, e_g), e_x, trace in zip(e_gs, e_xs, traces, strict=True)
    ]
