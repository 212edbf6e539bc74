"""Copies, so that a state owns its arrays: it can be donated, and what it was made of is kept."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def owned(tree: Any) -> Any:
    """Returns a tree with copies of all arrays, each in the same place as the original."""
    return jax.tree.map(lambda leaf: owned_at(leaf, leaf), tree)


def owned_at(leaf: Any, like: Any) -> Any:
    """Returns a copy of an array: where `like` is if that was chosen, or else where it was."""
    if isinstance(leaf, jax.core.Tracer):
        return jnp.copy(leaf)
    from_numpy = isinstance(leaf, (np.ndarray, np.generic))
    if from_numpy:  # device_put may share the memory of such an array, whatever it is told
        leaf = jnp.array(leaf)
    if not isinstance(leaf, jax.Array):
        return leaf
    place = chosen_sharding(like) or chosen_sharding(leaf)
    return jax.device_put(leaf, place, may_alias=from_numpy)


def chosen_sharding(leaf: Any) -> jax.sharding.Sharding | None:
    """Returns the sharding of an array or its description, or None if JAX chose it."""
    if isinstance(leaf, jax.core.Tracer) or not getattr(leaf, "committed", True):
        return None
    return getattr(leaf, "sharding", None)
