"""Stochastic rounding of parameters that have fewer than 32 bits."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_adadelta._bits import power_of_two
from optax_adadelta._dither import Dither, centered, dither_at, third
from optax_adadelta._dtypes import dtype_of
from optax_adadelta._hyperparameters import seed_scalar
from optax_adadelta._serialization import exportable
from optax_adadelta._sharding import placed_scalar
from optax_adadelta._validation import parameters_of

_REMEDY = (
    "stochastic_round takes only updates and parameters that are floating-point or complex numbers."
    " Put None in place of the other updates, or mask them with optax.masked(stochastic_round(),"
    " mask)."
)


@exportable("optax_adadelta.StochasticRoundState")
class StochasticRoundState(NamedTuple):
    """The state of :func:`stochastic_round`.

    Attributes:
      count: the number of updates made so far, an int32 scalar that stops at its maximum.
    """

    count: jax.typing.ArrayLike


def stochastic_round(seed: int = 0) -> optax.GradientTransformation:
    r"""Rounds parameters of fewer than 32 bits stochastically, so that small updates are not lost.

    Rounded to nearest, a bfloat16 parameter :math:`\theta` does not move if its update is below
    :math:`|\theta| / 512`. This transformation rounds :math:`\theta + u`, where :math:`u` is the
    update, to one of its neighbours :math:`a \le \theta + u \le b` in the parameter's dtype, with

    .. math::
        P(b) = \frac{\theta + u - a}{b - a}

    so the parameter follows the exact sum on average. The choice depends only on the step count,
    the index of the element and ``seed``. It needs no PRNG key, and the same run gives the same
    bits. If the sum is beyond the largest number of a dtype without infinity, such as
    float8_e4m3fn, the parameter gets that number.

    Args:
      seed: a plain integer, not a PRNG key. Any value works equally well.

    Returns:
      A :class:`optax.GradientTransformation`. Put it last in a chain, because scaling its updates
      would undo the rounding. Its ``update(updates, state, params)`` returns float32 updates
      for parameters of fewer than 32 bits; :func:`optax.apply_updates` then gives exactly the
      rounded sum. JAX does not promote 8-bit floats, and under strict dtype promotion no others. In
      both cases, use ``jax.tree.map(lambda p, u: (p.astype(u.dtype) + u).astype(p.dtype), params,
      updates)``. Other updates are returned unchanged. Where ``updates`` has None, ``params`` may
      have anything, so you can pass a whole model. Use it outside :func:`optax.MultiSteps` and
      :func:`optax.apply_if_finite`, which require updates of the gradients' dtype.

    Raises:
      TypeError: ``seed`` is not an integer; or an update, or its parameter, is not a number.
      ValueError: ``update`` gets no ``params``, or ``params`` that do not match the updates.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optax_adadelta import stochastic_round
      >>> step = optax.chain(optax.sgd(1e-3), stochastic_round())
      >>> params = jnp.ones(1000, jnp.bfloat16)
      >>> state = step.init(params)
      >>> with jax.numpy_dtype_promotion("standard"):  # as by default
      ...     for _ in range(100):
      ...         updates, state = step.update(jnp.ones_like(params), state, params)
      ...         params = optax.apply_updates(params, updates)
      >>> print(params.dtype, f"{params.astype(float).mean():.3f}")
      bfloat16 0.900

    References:
      Gupta et al., `Deep Learning with Limited Numerical Precision
      <https://arxiv.org/abs/1502.02551>`_, 2015; Zamirai et al., `Revisiting BFloat16 Training
      <https://arxiv.org/abs/2010.06192>`_, 2020.
    """
    chosen = seed_scalar(seed)

    def init(params):
        return StochasticRoundState(placed_scalar(params, 0, jnp.int32))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError(
                "params is None, but stochastic_round needs the parameters, which it rounds: call"
                " update(updates, state, params)."
            )
        ps = parameters_of(updates, params, _REMEDY)
        return _rounded(updates, state, [p if _has_few_bits(p) else None for p in ps], chosen)

    return optax.GradientTransformation(init, update)


@jax.jit
def _rounded(
    updates: optax.Updates,
    state: StochasticRoundState,
    params: list[jax.Array | None],
    seed: jax.typing.ArrayLike,
) -> tuple[optax.Updates, StochasticRoundState]:
    leaves, structure = jax.tree.flatten(updates)
    dither = dither_at(seed, state.count)
    rounded = [
        u if p is None else _rounding_update(p, u, dither)
        for p, u in zip(params, leaves, strict=True)
    ]
    count = optax.safe_increment(state.count)
    return jax.tree.unflatten(structure, rounded), StochasticRoundState(count)


def _has_few_bits(p: Any) -> bool:
    dtype = dtype_of(p)
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def _rounding_update(p: jax.Array, u: jax.Array, dither: Dither) -> jax.Array:
    """Returns the float32 update that takes `p` to a neighbour of `p + u` in the dtype of `p`."""
    start = p.astype(jnp.float32)
    goal = start + u.astype(jnp.float32)
    limits = jnp.finfo(p.dtype)
    # Large enough that the last place is a normal float32.
    least = max(float(limits.smallest_normal), 2.0 ** (limits.nmant - 126))
    power = jnp.maximum(power_of_two(jnp.abs(goal)), np.float32(least))
    place = power * np.float32(2.0**-limits.nmant)
    below = jnp.floor(goal / place)
    chance = goal / place - below
    dithered = centered(third(dither.bits(p.shape))) < chance - 0.5
    rounded = place * jnp.where(dithered, below + 1, below)
    if not np.isinf(np.float32(np.inf).astype(p.dtype)):
        # Beyond the largest number there is only NaN.
        rounded = jnp.clip(rounded, np.float32(limits.min), np.float32(limits.max))
    return jnp.where(jnp.isfinite(goal), rounded - start, u.astype(jnp.float32))
