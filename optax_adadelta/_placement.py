"""State that begins where the parameters are, so that no step has to move it."""

import math
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
    whole = _blocks_sharding(sharding, p.shape, blocks, block)
    return jnp.zeros(shape, dtype, device=_with_axis(whole))


def in_blocks(x: jax.Array, blocks: int, block: int) -> jax.Array:
    """Returns `x` with its last axis cut into blocks, of which the last is padded with zeros."""
    explicit = _explicit_sharding(x)
    whole = None if explicit is None else _blocks_sharding(explicit, x.shape, blocks, block)
    if whole is not None:
        x = jax.sharding.reshard(x, whole)
    spare = blocks * block - x.shape[-1]
    if spare:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, spare)])
    return jnp.reshape(x, (*x.shape[:-1], blocks, block), out_sharding=_with_axis(whole))


def out_of_blocks(x: jax.Array, shape: tuple[int, ...], like: jax.Array | None) -> jax.Array:
    """Undoes `in_blocks`; the result has this shape, and is sharded as `like` is."""
    own = _explicit_sharding(x)
    whole = None if own is None else NamedSharding(own.mesh, PartitionSpec(*own.spec[:-1]))
    x = jnp.reshape(x, (*x.shape[:-2], -1), out_sharding=whole)[..., : shape[-1]]
    explicit = None if like is None else _explicit_sharding(like)
    return x if explicit is None else jax.sharding.reshard(x, explicit)


def _named_sharding(p: Any) -> NamedSharding | None:
    sharding = None if isinstance(p, jax.core.Tracer) else getattr(p, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) else None


def _explicit_sharding(x: jax.Array) -> NamedSharding | None:
    """Returns the sharding that is part of the type of `x`, if it is sharded so."""
    sharding = jax.typeof(x).sharding
    return sharding if any(sharding.spec) else None


def _blocks_sharding(sharding, shape, blocks: int, block: int) -> NamedSharding:
    """Returns how an array has to be sharded for each block to be on one device."""
    *leading, last = (*sharding.spec, *(len(shape) - len(sharding.spec)) * (None,))
    names = last if isinstance(last, tuple) else () if last is None else (last,)
    pieces = math.prod(sharding.mesh.shape[name] for name in names)
    cut = blocks % pieces == 0 and blocks * block == shape[-1]
    return NamedSharding(sharding.mesh, PartitionSpec(*leading, last if cut else None))


def _with_axis(sharding: NamedSharding | None) -> NamedSharding | None:
    """Returns the sharding of an array with one more axis, which is whole."""
    if sharding is None:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec, None))
