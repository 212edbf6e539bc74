"""Checks trees that must match, and pairs their leaves."""

import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_adadelta._dtypes import dtype_of
from optax_adadelta._mismatch import is_nothing, mismatch

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
    ps = _parts_at_leaves(updates, params)
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

    def chosen(path: jax.tree_util.KeyPath, choice: Any, part: Any) -> Any:
        known = not isinstance(choice, jax.core.Tracer)
        if not (known and np.asarray(choice).dtype == bool and np.ndim(choice) == 0):
            raise TypeError(
                f"weight_decay_mask{_at(path)} must be True or False, known when the update is"
                f" traced; got {choice!r}."
            )
        return jax.tree.map(lambda _: bool(choice), part)

    for tree in (params, updates):  # a mask may have None where updates has None
        try:
            return _parts_at_leaves(updates, jax.tree.map_with_path(chosen, mask, tree))
        except ValueError:
            continue
    raise ValueError(
        "weight_decay_mask must have the structure of params or be a prefix of it; the mask is"
        f" {jax.tree.structure(mask)}, params is {jax.tree.structure(params)}."
    )


def check_leaves(updates: optax.Updates, trees: Mapping[str, optax.Updates]) -> None:
    """Raises an error that names the first leaf with a wrong dtype or shape, if there is one."""
    for path, g in jax.tree.leaves_with_path(updates):
        check_inexact("updates", path, g)
    for name, tree in trees.items():
        leaves = zip(jax.tree.leaves_with_path(updates), jax.tree.leaves(tree), strict=True)
        for (path, g), like in leaves:
            if like.shape != g.shape:
                raise ValueError(
                    f"updates{_at(path)} has shape {g.shape}, but {name}{_at(path)} has shape"
                    f" {like.shape}. Call init with the parameters that these updates are for."
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


def _parts_at_leaves(updates: optax.Updates, tree: Any) -> list[Any]:
    """Returns the part of `tree` in the place of each leaf of `updates`.

    Parts in the place of a None or a MaskedNode are left out.
    """
    leaves, structure = jax.tree.flatten(updates, is_leaf=is_nothing)
    try:
        parts = structure.flatten_up_to(tree)
    except ValueError:
        raise mismatch(updates, tree, "params") from None
    return [part for leaf, part in zip(leaves, parts, strict=True) if not is_nothing(leaf)]


def _at(path: jax.tree_util.KeyPath) -> str:
    return jax.tree_util.keystr(path)
