"""The storages in a state, which is refused if it cannot be right."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_adadelta._dtypes import dtype_of
from optax_adadelta._storage._base import Storage
from optax_adadelta._storage._choice import storage_of, stored_dtypes

_CURE = (
    " Codes that are averaged or cast lose their meaning. To average states, first call"
    " convert.with_state_bits(state, None), and afterwards convert.with_state_bits(state,"
    " state_bits, eps=eps)."
)


def storages_of(state: Any) -> list[Storage]:
    """Returns the storage of each leaf, or raises an error if the state cannot be right."""
    (unit,) = jax.tree.leaves(state.unit) or [None]
    if unit is not None and np.shape(unit):
        raise ValueError(
            f"state.unit must be a scalar; got an array of shape {np.shape(unit)}. For the states"
            " of several runs or steps, use jax.vmap."
        )
    for name in ("e_x", "trace"):
        _check_leaves(name, getattr(state, name), state.e_g)
    leaves = jax.tree.leaves_with_path(state.e_g), jax.tree.leaves(state.e_x)
    storages = [
        _storage_at(path, e_g, e_x, unit, relative=state.scale is not None)
        for (path, e_g), e_x in zip(*leaves, strict=True)
    ]
    if unit is not None and dtype_of(unit) != np.float32:
        raise TypeError(
            f"state.unit is {dtype_of(unit)}, but must be float32: with fewer bits, a small eps"
            " becomes zero, and with it E[g^2]. If a checkpoint was cast, leave the optimizer's"
            " part as it is. To repair this state, pass state._replace(unit=jnp.float32(eps)), with"
            " the eps of its last update."
        )
    _check_count(state.count, may_be_float=unit is None)
    _check_traces(state.trace, storages)
    _check_scale(state.scale, len(storages))
    return storages


def _check_leaves(name: str, tree: Any, e_g: Any) -> None:
    if tree is None:
        return
    found, expected = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(part)}
        for part in (tree, e_g)
    )
    for at in sorted(found.keys() | expected.keys()):
        if found.get(at) != expected.get(at):
            shapes = (f"state.e_g{at}", expected.get(at)), (f"state.{name}{at}", found.get(at))
            have = " and ".join(
                f"{part} is missing" if shape is None else f"{part} has shape {shape}"
                for part, shape in shapes
            )
            raise ValueError(f"{have}. Take all fields from the same state.")


def _storage_at(
    path: jax.tree_util.KeyPath, e_g: Any, e_x: Any, unit: Any, *, relative: bool
) -> Storage:
    at = jax.tree_util.keystr(path)
    found = f"state.e_g{at} and state.e_x{at} are {e_g.dtype} and {e_x.dtype}"
    if unit is not None and all(jnp.issubdtype(x.dtype, jnp.floating) for x in (e_g, e_x)):
        raise TypeError(
            f"{found}, but state.unit says that they were codes.{_CURE} If they are in full"
            " precision, take all fields from the same state."
        )
    storage = storage_of(e_g, e_x, relative=relative)
    if storage is None:
        raise TypeError(
            f"{found}; they must have the same dtype, one of {stored_dtypes()}. If the whole"
            " training state was cast, cast the optimizer's part back."
        )
    if storage.quantized and unit is None:
        raise ValueError(
            f"state.e_g{at} is {e_g.dtype}, so it holds codes relative to state.unit, but"
            " state.unit is None. Take all fields from the same state."
        )
    return storage


def _check_count(count: Any, *, may_be_float: bool) -> None:
    (count,) = jax.tree.leaves(count)
    dtype = dtype_of(count)
    # The mean of several states in full precision has a count of float32. It counts to 2**24.
    floats = (np.float32, np.float64) if may_be_float else ()
    if not (jnp.issubdtype(dtype, jnp.integer) or dtype in floats):
        raise TypeError(
            f"state.count is {dtype}, but must be int32, because it counts the updates. If states"
            " were averaged or cast, pass state._replace(count=state.count.astype(jnp.int32))."
        )


def _check_traces(trace: Any, storages: list[Storage]) -> None:
    leaves = [] if trace is None else zip(jax.tree.leaves_with_path(trace), storages, strict=True)
    for (path, leaf), storage in leaves:
        if leaf.dtype not in storage.dtypes and not jnp.iscomplexobj(leaf):
            raise TypeError(
                f"state.trace{jax.tree_util.keystr(path)} is {leaf.dtype}, but must be"
                f" {' or '.join(map(str, storage.dtypes))}, as state.e_g is."
                f"{_CURE if storage.quantized else ' If the state was cast, cast it back.'}"
            )


def _check_scale(scale: Any, leaves: int) -> None:
    for vector in jax.tree.leaves(scale):
        if np.shape(vector) != (leaves,) or dtype_of(vector) != np.float32:
            raise ValueError(
                f"state.scale is {dtype_of(vector)} of shape {np.shape(vector)}, but must be"
                f" float32 of shape ({leaves},), with one number for each array. Call init with the"
                " parameters that these updates are for; convert.carry_over keeps the averages."
            )
