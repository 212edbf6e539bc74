"""State that begins where the parameters are, so that no step has to move it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def count_sharding(params: optax.Params) -> NamedSharding | None:
    """Returns where a step leaves the count; were it elsewhere, the second step would recompile."""
    for p in jax.tree.leaves(params):
        sharding = _named_sharding(p)
        if sharding is not None and isinstance(sharding.mesh, Mesh):
            return NamedSharding(sharding.mesh, PartitionSpec())
    return None


def zeros_like(p: Any, dtype: np.dtype) -> jax.Array:
    """Returns zeros of the parameter's shape, sharded as it is."""
    if isinstance(p, jax.core.Tracer):
        # Not a constant: it must depend on p for the compiler to give it p's sharding.
        zero = jnp.zeros((), dtype)
        return jnp.where(p == p, zero, zero)
    return jnp.zeros_like(p, dtype=dtype)


def zeros_in_blocks(p: Any, dtype: np.dtype, blocks: int, block: int) -> jax.Array:
    """Returns zeros like the parameter's with its last axis cut into blocks, sharded as it is."""
    if isinstance(p, jax.core.Tracer):
        return in_blocks(zeros_like(p, dtype), blocks, block)
    shape = (*p.shape[:-1], blocks, block)
    sharding = _named_sharding(p)
    if sharding is None:
        return jnp.zeros_like(p, dtype=dtype, shape=shape)
    *leading, last = (*sharding.spec, *(p.ndim - len(sharding.spec)) * (None,))
    ways = sharding.mesh.shape
    pieces = np.prod([ways[name] for name in _names(last)], dtype=int)
    spec = PartitionSpec(*leading, last if blocks % pieces == 0 else None)
    return jnp.zeros(shape, dtype, device=NamedSharding(sharding.mesh, spec))


def in_blocks(x: jax.Array, blocks: int, block: int) -> jax.Array:
    """Returns `x` with its last axis in blocks, of which the last is padded with zeros."""
    spare = blocks * block - x.shape[-1]
    if spare:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, spare)])
    return x.reshape(*x.shape[:-1], blocks, block)


def _named_sharding(p: Any) -> NamedSharding | None:
    sharding = None if isinstance(p, jax.core.Tracer) else getattr(p, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) else None


def _names(entry: Any) -> tuple[str, ...]:
    if entry is None:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)
