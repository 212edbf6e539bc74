"""Clipping by the global norm, written so that compilers fuse it into the update."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_adadelta._hyperparameters import number
from optax_adadelta._validation import check_inexact

_REMEDY = (
    "The clip takes only gradients that are arrays of floating-point or complex numbers. Put None"
    " in place of the others, or mask them with optax.masked(clip_by_global_norm(...), mask)."
)


def clip_by_global_norm(max_norm: jax.typing.ArrayLike) -> optax.GradientTransformation:
    r"""Scales all gradients down by one factor if their global norm exceeds ``max_norm``.

    .. math::
        g' = g \min\left(1, \frac{c}{\lVert g \rVert}\right)

    where :math:`\lVert g \rVert` is the norm of all gradients taken together and :math:`c` is
    ``max_norm``. The numbers are those of :func:`optax.clip_by_global_norm`, but a step is faster
    on CPU: this clip multiplies instead of dividing, so XLA does not store the clipped gradients
    before the next transformation.

    If a gradient is infinite, it becomes NaN and all others become zero. If a gradient is NaN, all
    become NaN. If the squares of finite gradients overflow, all become zero: in float32 that is a
    norm above about 1.8e19. Optax's clip does the same. Put ``optax.zero_nans()`` after the clip,
    or :func:`optax.apply_if_finite` around the chain. To move on with very large gradients, put
    ``optax.clip(1e12)`` before the clip.

    Args:
      max_norm: :math:`c`, at least 0: a number, a scalar array or a traced scalar.

    Returns:
      A :class:`optax.GradientTransformation` without state. Its ``update(grads, state)`` returns
      gradients of the same shapes and dtypes. The norm is summed in float32, or in float64 if any
      gradient is float64 or complex128.

    Raises:
      TypeError: ``max_norm`` is not a real number, or a gradient is not an array of floating-point
        or complex numbers.
      ValueError: ``max_norm`` is negative, NaN, or not a scalar.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optax_adadelta import adadelta, clip_by_global_norm
      >>> optimizer = optax.chain(clip_by_global_norm(1.0), adadelta())
      >>> clip = clip_by_global_norm(1.0)
      >>> grads, _ = clip.update(jnp.array([3.0, -4.0]), clip.init(None))
      >>> print(grads)
      [ 0.6 -0.8]

    References:
      Pascanu et al., `On the difficulty of training Recurrent Neural Networks
      <https://arxiv.org/abs/1211.5063>`_, 2012.
    """
    max_norm = number("max_norm", max_norm)

    def init(params):
        del params
        return optax.EmptyState()

    def update(updates, state, params=None):
        del params
        return _clipped(updates, max_norm), state

    return optax.GradientTransformation(init, update)


@jax.jit
def _clipped(updates: optax.Updates, max_norm: jax.typing.ArrayLike) -> optax.Updates:
    updates = jax.tree.map(jnp.asarray, updates)
    squares = [
        _squared_norm(g.astype(_wide(check_inexact("updates", path, g, _REMEDY))))
        for path, g in jax.tree.leaves_with_path(updates)
    ]
    dtype = max((square.dtype for square in squares), default=np.dtype(np.float32))
    norm = jnp.sqrt(sum((square.astype(dtype) for square in squares), start=jnp.zeros((), dtype)))
    bound = jnp.asarray(max_norm).astype(dtype)
    within = (norm < bound) | (norm == 0)  # with a bound of zero, too
    scale = jnp.where(within, jnp.ones_like(norm), bound / norm)

    def clipped(g: jax.Array) -> jax.Array:
        wide = _wide(g.dtype)
        return (g.astype(wide) * scale.astype(wide)).astype(g.dtype)

    return jax.tree.map(clipped, updates)


def _wide(dtype: np.dtype) -> np.dtype:
    """Returns a dtype of at least 32 bits."""
    return np.dtype(np.float32) if jnp.finfo(dtype).bits < 32 else dtype


def _squared_norm(g: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(g):
        return jnp.sum(jnp.square(g.real) + jnp.square(g.imag))
    return jnp.sum(jnp.square(g))
