"""A fixed grid of codes: a fixed number in each octave, evenly spaced within it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_adadelta._bits import OCTAVE, bits_of, from_bits

NEAREST = np.float32(0)
"""The dither that rounds to nearest."""


class Segment(NamedTuple):
    """A number of octaves, and the number of codes in each of them."""

    octaves: int
    codes: int


class Grid:
    """Codes from `first`, a power of two, up to the end of the last segment.

    Each segment is coarser than the one before. So the code as a function of the octave is
    concave: it is the minimum of one line per segment, and its inverse is a maximum. A segment is
    made of whole octaves, so the interval between two neighbouring codes lies within one octave of
    one segment. Values are evenly spaced there, which keeps stochastic rounding unbiased.
    """

    def __init__(self, first: float, *segments: Segment) -> None:
        self._first = np.float32(first).view(np.int32)
        # Each line has the width of a code, in bits of a float32, and the code at octave 0. The
        # width is rounded up, so that the first code of an octave is never in the octave below.
        self._lines: list[tuple[int, int]] = []
        octave = code = 0
        for octaves, codes in segments:
            self._lines.append((-(-OCTAVE // codes), code - codes * octave))
            octave, code = octave + octaves, code + octaves * codes
        self.octaves = octave
        self._ends = np.float32(first), np.float32(first * 2.0**octave * (1 - 2.0**-9))

    def encode(self, x: jax.Array, dither: jax.Array | np.float32) -> jax.Array:
        """Returns int32 codes of float32 `x`: its place on the grid plus `dither`, rounded.

        Values outside the grid get its first or last code.
        """
        bits = bits_of(jax.lax.clamp(self._ends[0], x, self._ends[1])) - self._first
        place = bits.astype(jnp.float32)
        lines = (
            place * np.float32(1 / width) + np.float32(code + 0.5) for width, code in self._lines
        )
        return (functools.reduce(jnp.minimum, lines) + dither).astype(jnp.int32)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Returns the float32 numbers that codes stand for."""
        codes = codes.astype(jnp.int32)
        lines = (
            codes * np.int32(width) + np.int32(self._first - code * width)
            for width, code in self._lines
        )
        return from_bits(functools.reduce(jnp.maximum, lines))
