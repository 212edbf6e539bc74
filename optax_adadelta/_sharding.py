"""Gives the state the sharding of its parameters, so that no step has to move it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def zeros_like(p: Any, dtype: np.dtype) -> jax.Array:
    """Returns zeros of the parameter's shape and sharding."""
    if not isinstance(p, jax.core.Tracer):
        sharding = _named_sharding(p)
        if sharding is None or not _has_reduction(sharding):
            return jnp.zeros_like(p, dtype=dtype)
        return jnp.zeros(p.shape, dtype, device=_without_reduction(sharding))
    sharding = jax.typeof(p).sharding
    if _has_reduction(sharding):
        return jnp.zeros(p.shape, dtype, device=_without_reduction(sharding))
    # The compiler gives p's sharding only to a value that depends on p, not to a constant.
    zero = jnp.zeros((), dtype)
    return jnp.where(p == p, zero, zero)


def scalar_sharding(tree: Any) -> NamedSharding | None:
    """Returns the sharding that a step gives to the scalars of the state, or None for the default.

    `tree` is the parameters or the state. A state with another sharding would make the second step
    compile again.
    """
    for leaf in jax.tree.leaves(tree):
        sharding = None if isinstance(leaf, jax.core.Tracer) else _named_sharding(leaf)
        if sharding is not None and isinstance(sharding.mesh, Mesh):
            return NamedSharding(sharding.mesh, PartitionSpec())
    return None


def gathered(x: jax.Array, indices: tuple[jax.Array | np.ndarray, ...]) -> jax.Array:
    """Returns `x[indices]`, replicated over the explicit axes of the mesh of `x`."""
    return x.at[indices].get(out_sharding=_replication(x))


def replicated(x: jax.Array) -> jax.Array:
    """Returns `x`, replicated over the explicit axes of its mesh."""
    sharding = _replication(x)
    return x if sharding is None else jax.sharding.reshard(x, sharding)


def counted(indices: jax.Array, length: int) -> jax.Array:
    """Returns how often each of 0, 1, ..., `length` - 1 is in `indices`, replicated likewise."""
    sharding = _replication(indices)
    zeros = jnp.zeros(length, jnp.int32, device=sharding)
    return zeros.at[indices].add(1, mode="promise_in_bounds", out_sharding=sharding)


def repeated(x: jax.Array, repeats: jax.Array, like: jax.Array) -> jax.Array:
    """Returns each element of `x` as often as `repeats` says, with the shape of `like`."""
    sharding = _replication(like)
    return jnp.repeat(x, repeats, total_repeat_length=like.size, out_sharding=sharding)


def _replication(x: jax.Array) -> NamedSharding | None:
    # With explicit axes, a gather or a scatter must be told the sharding of its result.
    mesh = jax.typeof(x).sharding.mesh
    explicit = not mesh.empty and AxisType.Explicit in mesh.axis_types
    return NamedSharding(mesh, PartitionSpec()) if explicit else None


def _named_sharding(p: Any) -> NamedSharding | None:
    sharding = getattr(p, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) else None


def _has_reduction(sharding: NamedSharding) -> bool:
    # Newer versions of JAX mark mesh axes over which a value or its gradient is still to be summed.
    spec = sharding.spec
    return bool(getattr(spec, "reduced", None) or getattr(spec, "unreduced", None))


def _without_reduction(sharding: NamedSharding) -> NamedSharding:
    # Versions of JAX that refuse to iterate over such a spec have this attribute.
    partitions = getattr(sharding.spec, "partitions", sharding.spec)
    return NamedSharding(sharding.mesh, PartitionSpec(*partitions))
