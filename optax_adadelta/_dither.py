"""Stochastic rounding without a random key: one dither per element, even over the steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# The fractional part of the plastic number's inverse. The factors turn its multiples into those of
# the square of that inverse, and of the golden ratio's inverse: modulo 2**32,
# _STRIDE * _SECOND == 0x91E10DA5 and _STRIDE * _THIRD == 0x9E3779B9. Multiples of the first two
# fill the unit square evenly, those of the third the unit interval.
_STRIDE = np.uint32(0xC13FA9A9)
_SECOND, _THIRD = np.array([0x3BF0999D, 0xE7EBF991], np.uint32).astype(np.int32)
_START, _SEED, _LATTICE = np.uint32(0x243F6A88), np.uint32(0xA54FF53B), 0xD1B54A33

HALF = np.int32(-(2**31))
"""One half, as an unsigned number; it rounds to nearest."""


class Dither(NamedTuple):
    """Numbers that decide which values are rounded up, in units of `2**-32`.

    An element's number advances by an irrational stride at every step (a Weyl sequence), from a
    start that its index in the array gives. Over a few steps such numbers are more even than
    random ones. They depend on the seed, the count and the index only: nothing has to be saved,
    a resumed run gets the same ones, and under `jit` a shard gets its part of the whole array's.
    All leaves use the same numbers, so that leaves of one shape compile to one program.
    """

    offset: jax.Array  # an int32 scalar

    def bits(self, shape: tuple[int, ...]) -> jax.Array:
        """Returns the numbers as int32 of this shape."""
        bits = jnp.broadcast_to(self.offset, shape)
        for place, axis in enumerate(reversed(range(len(shape)))):
            stride = np.uint32(pow(_LATTICE, place + 1, 2**32)).astype(np.int32)
            bits += jax.lax.broadcasted_iota(jnp.int32, shape, axis) * stride
        return bits


def second(bits: jax.Array) -> jax.Array:
    """Returns other numbers, which over the steps are jointly even with `bits`."""
    return bits * _SECOND


def third(bits: jax.Array) -> jax.Array:
    """Returns yet other numbers, which are the most even by themselves."""
    return bits * _THIRD


def dither_at(seed: jax.typing.ArrayLike, count: jax.typing.ArrayLike) -> Dither:
    """Returns the dither of step `count`; `seed` is a uint32 scalar."""
    seed, count = jnp.asarray(seed), jnp.asarray(count).astype(jnp.uint32)
    return Dither((count * _STRIDE + (seed * _SEED + _START)).astype(jnp.int32))


def centered(bits: jax.Array) -> jax.Array:
    """Returns such numbers as float32, at least -1/2 and, also after rounding, below 1/2."""
    return bits.astype(jnp.float32) * np.float32(2.0**-32 * (1 - 2.0**-20))
