"""Puts the state where its parameters are, so that no step has to move it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import (
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)


def zeros_like(p: Any, dtype: np.dtype) -> jax.Array:
    """Returns zeros of the parameter's shape, with its sharding and in its memory."""
    sharding = jax.typeof(p).sharding if isinstance(p, jax.core.Tracer) else _named_sharding(p)
    if sharding is not None and _has_reduction(sharding):
        return jnp.zeros(p.shape, dtype, device=_without_reduction(sharding))
    in_host = _is_in_host(p)
    if isinstance(p, jax.core.Tracer):
        # The compiler gives p's sharding only to a value that depends on p, not to a constant.
        p = jax.device_put(p, jax.memory.Space.Device) if in_host else p
        zero = jnp.zeros((), dtype)
        zeros = jnp.where(p == p, zero, zero)
        return jax.device_put(zeros, jax.memory.Space.Host) if in_host else zeros
    if in_host and sharding is None:
        # jnp.zeros_like cannot make an array in the host memory of a single device.
        return jax.device_put(np.zeros(p.shape, dtype), p.sharding)
    return jnp.zeros_like(p, dtype=dtype)


def scalar_sharding(tree: Any) -> Sharding | jax.memory.Space | None:
    """Returns where a step puts the scalars of the state, for `jax.device_put`.

    `tree` is the parameters or the state. The result is None for the default place. A state in
    another place would make the second step compile again.
    """
    leaves = jax.tree.leaves(tree)
    in_host = bool(leaves) and all(map(_is_in_host, leaves))
    for leaf in leaves:
        sharding = None if isinstance(leaf, jax.core.Tracer) else _named_sharding(leaf)
        if sharding is not None and isinstance(sharding.mesh, Mesh):
            memory_kind = sharding.memory_kind if in_host else None
            return NamedSharding(sharding.mesh, PartitionSpec(), memory_kind=memory_kind)
    if not in_host:
        return None
    return jax.memory.Space.Host if isinstance(leaves[0], jax.core.Tracer) else leaves[0].sharding


def placed(tree: Any, x: jax.Array) -> jax.Array:
    """Returns a scalar or a vector where a step puts the scalars of the state."""
    place = scalar_sharding(tree)
    return x if place is None else jax.device_put(x, place)


def placed_scalar(tree: Any, value: float, dtype: Any) -> jax.Array:
    """Returns a scalar where a step puts the scalars of the state, given the parameters."""
    sharding = scalar_sharding(tree)
    if sharding is None or isinstance(sharding, NamedSharding):
        return jnp.full((), value, dtype, device=sharding)
    return jax.device_put(jnp.full((), value, dtype), sharding)


def in_device_memory(x: Any) -> Any:
    """Returns an array in the memory in which its devices compute; others stay as they are."""
    if isinstance(x, jax.core.Tracer):
        return jax.device_put(x, jax.memory.Space.Device) if _is_in_host(x) else x
    if not isinstance(x, jax.Array):
        return x
    memory_kind = next(iter(x.sharding.addressable_devices)).default_memory().kind
    if x.sharding.memory_kind in (None, memory_kind):
        return x
    return jax.device_put(x, x.sharding.with_memory_kind(memory_kind))


def in_memory_of(x: jax.Array, like: jax.Array) -> jax.Array:
    """Returns a scalar in the memory of another one, on its devices if that is host memory."""
    if not _is_in_host(like):
        return x
    return jax.device_put(x, scalar_sharding(like))


def has_manual_axes() -> bool:
    """Returns whether this is traced inside `jax.shard_map`."""
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def varying_with(x: jax.Array, *scalars: Any) -> jax.Array:
    """Returns `x`, whose type varies over all manual axes over which one of the scalars varies."""
    if has_manual_axes():
        for scalar in scalars:
            if isinstance(scalar, jax.Array):
                x = jnp.where(scalar == scalar, x, x)
    return x


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


def _is_in_host(p: Any) -> bool:
    if isinstance(p, jax.core.Tracer):
        return jax.typeof(p).memory_space == jax.memory.Space.Host
    sharding = getattr(p, "sharding", None)
    one = isinstance(sharding, NamedSharding | SingleDeviceSharding)
    return one and sharding.memory_kind in ("pinned_host", "unpinned_host")


def _has_reduction(sharding: NamedSharding) -> bool:
    # Newer versions of JAX mark mesh axes over which a value or its gradient is still to be summed.
    spec = sharding.spec
    return bool(getattr(spec, "reduced", None) or getattr(spec, "unreduced", None))


def _without_reduction(sharding: NamedSharding) -> NamedSharding:
    # Versions of JAX that refuse to iterate over such a spec have this attribute.
    partitions = getattr(sharding.spec, "partitions", sharding.spec)
    spec = PartitionSpec(*partitions)
    return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)
