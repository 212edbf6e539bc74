"""Stochastic rounding without a PRNG key: one dither per element, evenly spread over the steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# A dither grows by _STRIDE in each step. The factors turn it into dithers with other strides. In
# units of 2**-32, and modulo one, the strides are
# - _STRIDE: 1 / p, where p = 1.3247 is the plastic number;
# - _STRIDE * _SECOND: 1 / p^2; pairs of it and of the first fill the unit square evenly;
# - _STRIDE * _THIRD: 1 / 1.6180, of the golden ratio; it alone fills the unit interval most evenly;
# - _STRIDE * _FOURTH: sqrt(2) - 1, which is related to none of the others.
_STRIDE = np.uint32(0xC13FA9A9)
_SECOND, _THIRD, _FOURTH = np.array([0x3BF0999D, 0xE7EBF991, 0x2847B98F], np.uint32).astype(
    np.int32
)
_START, _SEED, _LATTICE = np.uint32(0x243F6A88), np.uint32(0xA54FF53B), 0xD1B54A33

HALF = np.int32(-(2**31))
"""One half, in units of `2**-32`. As a dither, it rounds to nearest."""


class Dither(NamedTuple):
    """Numbers that decide which values are rounded up, in units of `2**-32`.

    Each element has a number. Its index in the array decides where it starts, and every step adds
    an irrational stride (a Weyl sequence). Over a few steps, such numbers are spread more evenly
    than random ones. They depend only on the seed, the count and the index: nothing has to be
    saved, a resumed run gets the same numbers, and under `jit` a shard gets its part of the numbers
    of the whole array. All leaves use the same numbers, so that leaves of one shape compile to one
    program.
    """

    offset: jax.Array  # an int32 scalar

    def bits(self, shape: tuple[int, ...]) -> jax.Array:
        """Returns the numbers as int32 of this shape."""
        bits = jnp.zeros(shape, jnp.int32)
        for place, axis in enumerate(reversed(range(len(shape)))):
            stride = np.uint32(pow(_LATTICE, place + 1, 2**32)).astype(np.int32)
            bits += jax.lax.broadcasted_iota(jnp.int32, shape, axis) * stride
        # The offset comes last. Added to one axis alone, it would make a vector that the compiler
        # for TPUs shares between leaves, and exchanges if they are sharded in different ways.
        return bits + self.offset


def second(bits: jax.Array) -> jax.Array:
    """Returns a second dither; over the steps, its pairs with `bits` are evenly spread."""
    return bits * _SECOND


def third(bits: jax.Array) -> jax.Array:
    """Returns a third dither, which by itself is the most evenly spread."""
    return bits * _THIRD


def fourth(bits: jax.Array) -> jax.Array:
    """Returns a fourth dither, which is independent of the others."""
    return bits * _FOURTH


def dither_at(seed: jax.typing.ArrayLike, count: jax.typing.ArrayLike) -> Dither:
    """Returns the dither of step `count`; `seed` is a uint32 scalar."""
    seed, count = jnp.asarray(seed), jnp.asarray(count).astype(jnp.uint32)
    return Dither((count * _STRIDE + (seed * _SEED + _START)).astype(jnp.int32))


def centered(bits: jax.Array) -> jax.Array:
    """Returns a dither as float32, at least -1/2 and below 1/2, even after rounding."""
    return bits.astype(jnp.float32) * np.float32(2.0**-32 * (1 - 2.0**-20))
