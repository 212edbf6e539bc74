"""The scale of each array, which gives eps its unit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_adadelta._equation import Epsilons, Scalar
from optax_adadelta._sharding import in_device_memory, replicated, varying_with

EPS_G = 1e-16
"""What stands beside E[g^2] for an array of scale 1: the square of Adam's eps."""

SCALE_OF_ZEROS = 0.3
"""The scale if all parameters are zero. With the default share, eps is then about the paper's."""


def initial_scale(params: optax.Params) -> jax.Array:
    """Returns the scale of each array of `params`, as one float32 vector.

    It is the root mean square of the array. An array of zeros has the geometric mean of the others'
    scales, which no single one of them dominates. Shapes have no values, so their scale is NaN.
    """
    leaves = jax.tree.leaves(params)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        return jnp.full(len(leaves), np.nan, jnp.float32)
    return _scales(list(map(in_device_memory, leaves)))


@jax.jit
def _scales(leaves: list[jax.Array]) -> jax.Array:
    squares = jnp.array([_mean_square(jnp.asarray(leaf)) for leaf in leaves], jnp.float32)
    known = (squares > 0) & jnp.isfinite(squares)
    logs = jnp.log(jnp.where(known, squares, jnp.ones_like(squares)))
    count = jnp.sum(known, dtype=jnp.float32)
    mean = jnp.exp(jnp.sum(logs) / jnp.maximum(count, np.float32(1)))
    mean = jnp.where(count > 0, mean, np.float32(SCALE_OF_ZEROS**2))
    return jnp.sqrt(jnp.where(squares == 0, mean, squares))


def _mean_square(leaf: jax.Array) -> jax.Array:
    size = jnp.abs(leaf).astype(jnp.float32)
    return replicated(jnp.sum(jnp.square(size))) / np.float32(max(leaf.size, 1))


def epsilons(eps: Scalar, scale: jax.Array | None) -> Epsilons:
    """Returns both epsilons of :func:`.adadelta`, or vectors of those of each array."""
    if scale is None:
        return Epsilons(eps, eps)
    # A scale that cannot be right gives NaN, and no step that looks right.
    valid = (scale > 0) & jnp.isfinite(scale)
    squares = jnp.square(jnp.where(valid, scale, np.float32(np.nan)).astype(eps.dtype))
    return Epsilons(jnp.full_like(squares, EPS_G) / squares, eps * squares)


def places(scale: jax.Array) -> list[jax.Array]:
    """Returns the index of each array in a vector of scales: 0, 1, and so on."""
    count = len(scale)
    if not count:
        return []
    known = varying_with(jnp.arange(count, dtype=jnp.uint32), scale[0])
    return jax.lax.platform_dependent(
        scale, known, cpu=_unknown_places, default=lambda _, known: list(known)
    )


def _unknown_places(scale: jax.Array, known: jax.Array) -> list[jax.Array]:
    del known
    # XLA compiles loops that are alike once. On CPU it would write each place into the loops that
    # use it, so that no two were alike, if it could know the number.
    one = jnp.where(jnp.isinf(scale[0]), np.float32(2), np.float32(1))
    found = [one - 1]
    for _ in scale[1:]:
        found.append(found[-1] / one + 1)
    return [place.astype(jnp.uint32) for place in found]
