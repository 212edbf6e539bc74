"""Stochastic rounding without a PRNG key: one dither per element, evenly spread over the steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# _STRIDE is the inverse of the plastic number, in units of 2**-32. The factors turn its multiples
# into those of the square of that inverse and of the inverse of the golden ratio: modulo 2**32,
# _STRIDE * _SECOND == 0x91E10DA5 and _STRIDE * _THIRD == 0x9E3779B9. The multiples of the first
# two fill the unit square evenly, those of the third the unit interval.
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
