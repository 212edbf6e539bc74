"""Trees that must match: pairing their leaves, and saying where they do not match."""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_adadelta._dtypes import dtype_of
from optax_adadelta._storage import Storage, storage_of

_REMEDY = (
    "Adadelta takes arrays of floating-point or complex numbers only. Leave the others out of the"
    " tree, or label them for optax.set_to_zero() in an optax.multi_transform."
)


def leaves_like(updates: optax.Updates, tree: optax.Updates, name: str) -> list[Any]:
    """Returns the leaves of `tree`, which must have the structure of `updates`."""
    leaves, structure = jax.tree.flatten(tree)
    if structure != jax.tree.structure(updates):
        raise ValueError(
            f"updates and {name} must have the same structure, but {_difference(updates, tree)}."
            " Call init with the parameters that these updates are for."
        )
    return leaves


def check_leaves(updates: optax.Updates, e_gs: list[Any], e_xs: list[Any], ps: list[Any]) -> None:
    """Raises the error that names the first leaf for which no step can be made."""
    for (path, g), e_g, e_x, p in zip(
        jax.tree.leaves_with_path(updates), e_gs, e_xs, ps, strict=True
    ):
        check_inexact("updates", path, g)
        for name, like in (("state.e_g", e_g), ("state.e_x", e_x), ("params", p)):
            if like is not None and like.shape != g.shape:
                raise ValueError(
                    f"updates{_at(path)} has shape {g.shape}, but {name}{_at(path)} has shape"
                    f" {like.shape}. Call init with the parameters that these updates are for."
                )
        if p is not None and jnp.iscomplexobj(p) != jnp.iscomplexobj(g):
            raise TypeError(
                f"updates{_at(path)} is {g.dtype}, but params{_at(path)} is {p.dtype}; either"
                " both must be real or both complex."
            )


def storages_of(tree: Any, e_gs: list[Any], e_xs: list[Any], unit: Any) -> list[Storage]:
    """Returns the storage of each leaf of `tree`; `unit` is that of the state."""
    if unit is not None and np.shape(unit):
        raise ValueError(
            f"state.unit must be a scalar; got one of shape {np.shape(unit)}. For the states of"
            " several runs or steps, use jax.vmap."
        )
    storages = []
    for (path, _), e_g, e_x in zip(jax.tree.leaves_with_path(tree), e_gs, e_xs, strict=True):
        storage = storage_of(e_g, e_x)
        if storage is None:
            raise TypeError(
                f"state.e_g{_at(path)} and state.e_x{_at(path)} are {e_g.dtype} and {e_x.dtype};"
                " both must be float32, float64, uint16 or uint8, and both the same. If the whole"
                " training state was cast, cast the optimizer's part back."
            )
        if storage.quantized and unit is None:
            raise ValueError(
                f"state.e_g{_at(path)} is {e_g.dtype}, so it holds codes relative to state.unit,"
                " but state.unit is None. Take all fields from the same state."
            )
        storages.append(storage)
    return storages


def dtype_of_averages(path: jax.tree_util.KeyPath, p: Any) -> np.dtype:
    """Returns the dtype that the averages of a parameter have as floats."""
    bits = jnp.finfo(check_inexact("params", path, p)).bits
    return np.dtype(np.float64 if bits > 32 else np.float32)


def check_inexact(name: str, path: jax.tree_util.KeyPath, leaf: Any) -> np.dtype:
    """Returns the dtype of a leaf, or raises the error that says that it has no gradient."""
    if not hasattr(leaf, "dtype") and not isinstance(leaf, numbers.Number):
        raise TypeError(f"{name}{_at(path)} is {leaf!r}, of type {type(leaf).__name__}. {_REMEDY}")
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(f"{name}{_at(path)} has dtype {dtype}. {_REMEDY}")
    return dtype_of(leaf)


def chosen_leaves(params: optax.Params, mask: Any) -> tuple[bool, ...]:
    """Returns for each leaf of `params` what `mask` says, a tree of bools that is a prefix."""

    def chosen(path, choice, part):
        known = not isinstance(choice, jax.core.Tracer)
        if not (known and np.asarray(choice).dtype == bool and np.ndim(choice) == 0):
            raise TypeError(
                f"weight_decay_mask{_at(path)} must be True or False, known when the update is"
                f" traced; got {choice!r}."
            )
        return jax.tree.map(lambda _: bool(choice), part)

    try:
        return tuple(jax.tree.leaves(jax.tree.map_with_path(chosen, mask, params)))
    except ValueError as error:
        raise ValueError(
            "weight_decay_mask must have the structure of params or be a prefix of it; the mask is"
            f" {jax.tree.structure(mask)}, params is {jax.tree.structure(params)}."
        ) from error


def _difference(updates: optax.Updates, tree: optax.Updates) -> str:
    ours, theirs = (
        {
            f"{_at(path)} as None" if leaf is None else _at(path)
            for path, leaf in jax.tree.leaves_with_path(t, is_leaf=lambda leaf: leaf is None)
        }
        for t in (updates, tree)
    )
    found = [
        f"only {who} has {', '.join(path or 'a leaf' for path in sorted(paths)[:3])}"
        for who, paths in (("the former", ours - theirs), ("the latter", theirs - ours))
        if paths
    ]
    return " and ".join(found) or (
        f"one is {jax.tree.structure(updates)}, the other {jax.tree.structure(tree)}"
    )


def _at(path: jax.tree_util.KeyPath) -> str:
    return jax.tree_util.keystr(path)
