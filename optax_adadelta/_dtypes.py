"""The dtypes of values under the current configuration of JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def float64_on_request() -> bool:
    """Returns whether JAX makes float64 arrays on request, although x64 mode is off."""
    mode = getattr(jax.config, "jax_explicit_x64_dtypes", None)
    return getattr(mode, "name", None) == "ALLOW"


def dtype_of(leaf: Any) -> np.dtype:
    """Returns the dtype of an array, or the dtype that a value gets when it becomes an array."""
    dtype = np.dtype(leaf.dtype) if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    abstract = isinstance(leaf, jax.ShapeDtypeStruct) and float64_on_request()
    return (
        dtype if abstract or isinstance(leaf, jax.Array) else jax.dtypes.canonicalize_dtype(dtype)
    )


def whole_count(count: Any) -> Any:
    """Returns a step count as an integer, also that of averaged states, which is a float."""
    if jnp.issubdtype(dtype_of(count), jnp.floating):
        return jnp.rint(count).astype(jnp.int32)
    return count


def dtypes_of_updates(updates: optax.Updates, ps: list[Any]) -> tuple[np.dtype, ...] | None:
    """Returns the dtype of each update, or None if each has the dtype of its gradient.

    An update has the wider dtype of its gradient and its parameter. In a narrower one than the
    parameter's, a small update could become zero.
    """
    gs = [dtype_of(g) for g in jax.tree.leaves(updates)]
    dtypes = tuple(_wider(g, dtype_of(p)) for g, p in zip(gs, ps, strict=True))
    return None if dtypes == tuple(gs) else dtypes


def _wider(g: np.dtype, p: np.dtype) -> np.dtype:
    return p if g != p and jnp.finfo(p).bits >= jnp.finfo(g).bits else g
