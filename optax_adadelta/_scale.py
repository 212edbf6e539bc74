"""The scale of each array, and the two epsilons that follow from it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_adadelta._equation import Epsilons, Scalar

RELATIVE_EPS_G = 1e-9
"""What stands beside E[g^2] for an array of scale 1; as small as Adam's eps."""

ABSOLUTE_SCALE = 0.5
"""The scale of a tree of zeros. With the default share, its eps is about the paper's 1e-6."""


def initial_scale(params: optax.Params) -> jax.Array:
    """Returns the scale of each array of `params`, as one float32 vector.

    It is the root mean square of the array, or that of the whole tree if the array is zero. Shapes
    have no values, so their scale is NaN.
    """
    leaves = jax.tree.leaves(params)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        return jnp.full(len(leaves), np.nan, jnp.float32)
    return _root_mean_squares(leaves)


@jax.jit
def _root_mean_squares(leaves: list[jax.Array]) -> jax.Array:
    sizes = jnp.array([np.size(leaf) for leaf in leaves], jnp.float32)
    squares = jnp.array([_mean_square(leaf) for leaf in leaves], jnp.float32)
    whole = jnp.sum(sizes * squares) / jnp.maximum(jnp.sum(sizes), 1)
    whole = jnp.where(whole > 0, whole, np.float32(ABSOLUTE_SCALE**2))
    return jnp.sqrt(jnp.where(squares > 0, squares, whole))


def _mean_square(leaf: jax.Array) -> jax.Array:
    size = jnp.abs(leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)))
    return (jnp.sum(jnp.square(size)) / max(size.size, 1)).astype(jnp.float32)


def epsilons(eps: Scalar, scale: jax.Array | None) -> Epsilons:
    """Returns the two epsilons of `adadelta`, or vectors of those of each array in `nadadelta`."""
    if scale is None:
        return Epsilons(eps, eps)
    # A scale that cannot be right gives NaN, never a silent wrong step.
    scale = jnp.where((scale > 0) & jnp.isfinite(scale), scale, jnp.nan)
    square = jnp.square(scale).astype(eps.dtype)
    return Epsilons(RELATIVE_EPS_G / square, eps * square)
