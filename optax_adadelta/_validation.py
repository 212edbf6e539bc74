"""Checks trees that must match, and pairs their leaves."""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_adadelta._dtypes import dtype_of
from optax_adadelta._mismatch import is_nothing, mismatch
from optax_adadelta._storage import Storage, storage_of

_REMEDY = (
    "Adadelta takes only arrays of floating-point or complex numbers. Pass nothing else to init:"
    " eqx.filter(model, eqx.is_inexact_array) in Equinox, wrt=nnx.Param in Flax NNX; in any tree,"
    " put None in place of the others, or mask them with optax.masked or optax.multi_transform."
)


def check_structure(updates: optax.Updates, tree: optax.Updates, name: str) -> None:
    """Raises an error that says where they differ, if `tree` does not match `updates`."""
    if jax.tree.structure(updates) != jax.tree.structure(tree):
        raise mismatch(updates, tree, name)


def parameters_of(updates: optax.Updates, params: optax.Params, remedy: str = _REMEDY) -> list[Any]:
    """Returns the parameter of each leaf of `updates`.

    Where `updates` has None, `params` may have anything: models contain functions and integers.
    `remedy` says what to do about a leaf that is no number.
    """
    ps = _beside(updates, params)
    for (path, g), p in zip(jax.tree.leaves_with_path(updates), ps, strict=True):
        if p is None or not jax.tree_util.all_leaves([p]):
            raise mismatch(updates, params, "params")
        if all(isinstance(x, jax.Array | np.ndarray) for x in (g, p)) and _type(g) == _type(p):
            continue
        g_dtype, p_dtype = (
            check_inexact(name, path, x, remedy) for name, x in (("updates", g), ("params", p))
        )
        if jnp.issubdtype(p_dtype, jnp.floating) != jnp.issubdtype(g_dtype, jnp.floating):
            raise TypeError(
                f"updates{_at(path)} is {g_dtype}, but params{_at(path)} is {p_dtype}; both must be"
                " real or both complex. Pass the parameters that these updates are for."
            )
        if np.shape(p) != np.shape(g):
            raise ValueError(
                f"updates{_at(path)} has shape {np.shape(g)}, but params{_at(path)} has shape"
                f" {np.shape(p)}. Pass the parameters that these updates are for."
            )
    return ps


def chosen_leaves(updates: optax.Updates, params: optax.Params, mask: Any) -> list[bool]:
    """Returns whether each leaf of `updates` decays, by a mask: a tree of bools or a function."""
    if callable(mask):
        try:
            mask = mask(params)
        except Exception as error:
            error.add_note(
                "weight_decay_mask is called once, with the whole tree of parameters. To call it"
                " for each leaf, use weight_decay_mask=lambda params: jax.tree.map(mask, params)."
            )
            raise
    if jax.tree_util.all_leaves([mask]) and not jax.tree_util.all_leaves([params]):
        raise TypeError(
            f"weight_decay_mask is {mask!r} for the whole tree of parameters. If it is a function,"
            " it must return a tree of bools. Under optax.inject_hyperparams, name a function in"
            " static_args; otherwise it is called as a schedule. To decay all parameters, leave out"
            " the mask; to decay none, use weight_decay=0.0."
        )

    def chosen(path, choice, part):
        known = not isinstance(choice, jax.core.Tracer)
        if not (known and np.asarray(choice).dtype == bool and np.ndim(choice) == 0):
            raise TypeError(
                f"weight_decay_mask{_at(path)} must be True or False, known when the update is"
                f" traced; got {choice!r}."
            )
        return jax.tree.map(lambda _: bool(choice), part)

    for tree in (params, updates):  # a mask may have None where updates has None
        try:
            return _beside(updates, jax.tree.map_with_path(chosen, mask, tree))
        except ValueError:
            continue
    raise ValueError(
        "weight_decay_mask must have the structure of params or be a prefix of it; the mask is"
        f" {jax.tree.structure(mask)}, params is {jax.tree.structure(params)}."
    )


def check_leaves(updates: optax.Updates, e_gs: list[Any], e_xs: list[Any]) -> None:
    """Raises an error that names the first leaf with a wrong dtype or shape, if there is one."""
    for (path, g), e_g, e_x in zip(jax.tree.leaves_with_path(updates), e_gs, e_xs, strict=True):
        check_inexact("updates", path, g)
        for name, like in (("state.e_g", e_g), ("state.e_x", e_x)):
            if like.shape != g.shape:
                raise ValueError(
                    f"updates{_at(path)} has shape {g.shape}, but {name}{_at(path)} has shape"
                    f" {like.shape}. Call init with the parameters that these updates are for."
                )


def storages_of(state: Any) -> list[Storage]:
    """Returns the storage of each leaf, or raises an error if the state cannot be right."""
    (unit,) = jax.tree.leaves(state.unit) or [None]
    if unit is not None and np.shape(unit):
        raise ValueError(
            f"state.unit must be a scalar; got an array of shape {np.shape(unit)}. For the states"
            " of several runs or steps, use jax.vmap."
        )
    storages = []
    leaves = jax.tree.leaves_with_path(state.e_g), jax.tree.leaves(state.e_x)
    for (path, e_g), e_x in zip(*leaves, strict=True):
        storage = storage_of(e_g, e_x)
        if unit is not None and all(jnp.issubdtype(x.dtype, jnp.floating) for x in (e_g, e_x)):
            raise TypeError(
                f"{_dtypes(path, e_g, e_x)}, but state.unit says that they were codes"
                " (state_bits=16 or 8). Codes that are averaged or cast lose their meaning. To"
                " average states, first call convert.with_state_bits(state, None), and afterwards"
                " convert.with_state_bits(state, state_bits, eps=eps). If they are in full"
                " precision, take all fields from the same state."
            )
        if storage is None:
            raise TypeError(
                f"{_dtypes(path, e_g, e_x)}; they must have the same dtype: float32, float64,"
                " uint16 or uint8. If the whole training state was cast, cast the optimizer's part"
                " back."
            )
        if storage.quantized and unit is None:
            raise ValueError(
                f"state.e_g{_at(path)} is {e_g.dtype}, so it holds codes relative to state.unit,"
                " but state.unit is None. Take all fields from the same state."
            )
        storages.append(storage)
    if unit is not None and dtype_of(unit) != np.float32:
        raise TypeError(
            f"state.unit is {dtype_of(unit)}, but must be float32: with fewer bits, a small eps"
            " becomes zero, and with it E[g^2]. If a checkpoint was cast, leave the optimizer's"
            " part as it is. To repair this state, pass state._replace(unit=jnp.float32(eps)), with"
            " the eps of its last update."
        )
    _check_count(state.count, may_be_float=unit is None)
    return storages


def _dtypes(path: jax.tree_util.KeyPath, e_g: Any, e_x: Any) -> str:
    return f"state.e_g{_at(path)} and state.e_x{_at(path)} are {e_g.dtype} and {e_x.dtype}"


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


def dtype_of_averages(path: jax.tree_util.KeyPath, p: Any) -> np.dtype:
    """Returns the dtype that the averages of a parameter have when they are floats."""
    bits = jnp.finfo(check_inexact("params", path, p)).bits
    return np.dtype(np.float64 if bits > 32 else np.float32)


def check_inexact(
    name: str, path: jax.tree_util.KeyPath, leaf: Any, remedy: str = _REMEDY
) -> np.dtype:
    """Returns the dtype of a leaf, or raises an error if it is not floating-point or complex."""
    dtype = leaf.dtype if hasattr(leaf, "shape") and hasattr(leaf, "dtype") else None
    if dtype is None and not isinstance(leaf, numbers.Number):
        raise TypeError(f"{name}{_at(path)} is {leaf!r}, of type {type(leaf).__name__}. {remedy}")
    dtype = jnp.result_type(leaf) if dtype is None else dtype
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(f"{name}{_at(path)} has dtype {dtype}. {remedy}")
    return dtype_of(leaf)


def _type(x: jax.Array | np.ndarray) -> tuple[np.dtype, tuple[int, ...]]:
    return x.dtype, x.shape


def _beside(updates: optax.Updates, tree: Any) -> list[Any]:
    """Returns what `tree` has at each leaf of `updates`, which may have None for other parts."""
    leaves, structure = jax.tree.flatten(updates, is_leaf=is_nothing)
    try:
        parts = structure.flatten_up_to(tree)
    except ValueError:
        raise mismatch(updates, tree, "params") from None
    return [part for leaf, part in zip(leaves, parts, strict=True) if not is_nothing(leaf)]


def _at(path: jax.tree_util.KeyPath) -> str:
    return jax.tree_util.keystr(path)
