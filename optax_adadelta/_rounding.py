"""Rounding up as often as a value lies above what can be kept, with no random key."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_adadelta._hyperparameters import seed_number
from optax_adadelta._placement import count_sharding

# The fractions of the plastic number's inverse and of its square, and of the golden ratio's:
# their multiples fill the square, and the line, as evenly as any.
_STRIDES = np.array([0xC13FA9A9, 0x91E10DA5, 0x9E3779B9], np.uint32)


class Dither(NamedTuple):
    """One number for each element of an array, which over the steps takes all values evenly.

    An element's numbers are the multiples of an irrational number, modulo 1, from where its
    index puts it. They are as even as those of any key, more so over a few steps, and are
    known from the step's count and the index alone: nothing has to be saved, and under jit a shard
    has its own part of the whole array's numbers.
    """

    factor: jax.Array
    offset: jax.Array

    def bits(self, shape: tuple[int, ...]) -> jax.Array:
        """Returns the numbers in units of `2**-32`, as uint32."""
        total = jnp.broadcast_to(self.offset, shape)
        stride = 1
        for axis in reversed(range(len(shape))):
            index = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
            total += index * (self.factor * np.uint32(stride % 2**32))
            stride *= shape[axis]
        return total

    def fractions(self, shape: tuple[int, ...]) -> jax.Array:
        """Returns the numbers as float32, at least 0 and below 1."""
        return (self.bits(shape) >> np.uint32(8)).astype(jnp.float32) * np.float32(2.0**-24)


def dithers(
    seed: jax.typing.ArrayLike, count: jax.typing.ArrayLike, leaves: int
) -> list[tuple[Dither, ...]]:
    """Returns for each leaf three dithers, which over the steps are even jointly too."""
    key = _mixed(jnp.asarray(seed) + _STRIDES[-1])
    factors, offsets = jnp.split(_mixed(key + jnp.arange(2 * leaves, dtype=jnp.uint32)), 2)
    factors |= np.uint32(1)
    offsets = offsets[:, None] + jnp.asarray(count).astype(jnp.uint32) * _STRIDES[None]
    return [
        tuple(Dither(factors[leaf], offsets[leaf, i]) for i in range(len(_STRIDES)))
        for leaf in range(leaves)
    ]


class StochasticRoundState(NamedTuple):
    """What :func:`stochastic_round` carries from step to step.

    Attributes:
      count: how many updates were made, an int32 scalar that stops at its maximum.
    """

    count: jax.typing.ArrayLike


def stochastic_round(seed: int = 0) -> optax.GradientTransformation:
    r"""Lets parameters of few bits move by steps far below their last place; put it last.

    A bfloat16 parameter :math:`\theta` that is rounded to the nearest stands still where
    :math:`|u| < |\theta| / 512`. Instead, each is rounded up or down, to neighbours
    :math:`a \le \theta + u \le b` with

    .. math::
        P(b) = \frac{\theta + u - a}{b - a}

    so that it follows the sum in the mean. The choice comes from the step's count and the
    element's index, evenly over the steps; there is no key, and the same run gives the same bits.

    Args:
      seed: an integer that chooses among choices that are equally good.

    Returns:
      A :class:`optax.GradientTransformation`. Its ``update(updates, state, params)`` returns for
      parameters of fewer than 32 bits what :func:`optax.apply_updates` adds to get exactly the
      rounded sum, in float32; under strict promotion, add it yourself and cast. Other updates
      pass as they are. It must be the last of a chain, for whatever scales its updates undoes it,
      and outside :func:`optax.MultiSteps` and :func:`optax.apply_if_finite`, which want updates of
      the gradients' dtype.

    Raises:
      TypeError: ``seed`` is not an integer.
      ValueError: ``update`` gets no ``params``, or others than the updates are for.

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
    chosen = seed_number(seed)

    def init(params):
        return StochasticRoundState(jnp.zeros([], jnp.int32, device=count_sharding(params)))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError(
                "params is None, but what is rounded are the parameters: call update(grads,"
                " state, params)."
            )
        return _rounded(updates, state, params, chosen)

    return optax.GradientTransformation(init, update)


@jax.jit
def _rounded(updates, state: StochasticRoundState, params, seed):
    leaves, structure = jax.tree.flatten(updates)
    shapes = [[jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (updates, params)]
    if jax.tree.structure(params) != structure or shapes[0] != shapes[1]:
        raise ValueError(
            "updates and params must have the same structure and shapes; got"
            f" {jax.tree.map(jnp.shape, updates)} and {jax.tree.map(jnp.shape, params)}."
        )
    of_leaves = dithers(seed, state.count, len(leaves))
    rounded = [
        _landing(p, u, dither) if _is_short(p) else u
        for p, u, (*_, dither) in zip(jax.tree.leaves(params), leaves, of_leaves, strict=True)
    ]
    count = optax.safe_increment(state.count)
    return jax.tree.unflatten(structure, rounded), StochasticRoundState(count)


def _is_short(p: Any) -> bool:
    return jnp.issubdtype(p.dtype, jnp.floating) and jnp.finfo(p.dtype).bits < 32


def _landing(p: jax.Array, u: jax.Array, dither: Dither) -> jax.Array:
    """Returns in float32 what takes `p` to one of the neighbours of `p + u` in its dtype."""
    start = p.astype(jnp.float32)
    goal = start + u.astype(jnp.float32)
    kind = jnp.finfo(p.dtype)
    # The largest power of two up to the goal, but none whose last place float32 would flush.
    bits = jax.lax.bitcast_convert_type(goal, jnp.uint32) & np.uint32(0x7F800000)
    least = max(float(kind.smallest_normal), 2.0 ** (kind.nmant - 126))
    power = jnp.maximum(jax.lax.bitcast_convert_type(bits, jnp.float32), np.float32(least))
    place = power * np.float32(2.0**-kind.nmant)
    below = jnp.floor(goal / place)
    chance = goal / place - below
    rounded = place * jnp.where(dither.fractions(p.shape) < chance, below + 1, below)
    return jnp.where(jnp.isfinite(goal), rounded - start, u.astype(jnp.float32))


def _mixed(x):
    """Returns uint32 whose bits each depend on all of those of `x`, another for each `x`."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x21F0AAAD)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x735A2D97)
    return x ^ (x >> np.uint32(15))
