"""Numbers by their bits: grids of 256 codes, evenly spaced within each octave."""

import jax
import jax.numpy as jnp
import numpy as np

MANTISSA = 23
_FRACTION = np.uint32((1 << MANTISSA) - 1)
_ONE = np.float32(1).view(np.uint32)


class Grid:
    """What the codes of each block mean: from an octave on, so many to the octave."""

    def __init__(self, packed):
        self.packed = packed
        per_octave = ((packed >> np.uint16(8)) + np.uint16(1)).astype(jnp.float32)[..., None]
        octave = (packed & np.uint16(0xFF)).astype(jnp.uint32)[..., None]
        self.step = 1 / per_octave
        self._first = octave << np.uint32(MANTISSA)
        # Rounded up, so that no code of an octave is read as one of the octave below.
        width = jnp.ceil(np.float32(1 << MANTISSA) * self.step)
        self._width = width.astype(jnp.uint32)
        self._codes_per_bit = 1 / width

    @classmethod
    def spanning(cls, least, most):
        """Returns the finest grid from the octave of `least` to the end of that of `most`."""
        first, last = (bits_of(x)[..., 0] >> np.uint32(MANTISSA) for x in (least, most))
        octaves = (last - first + np.uint32(1)).astype(jnp.float32)
        per_octave = (np.float32(255.5) / octaves).astype(jnp.uint32)
        return cls((((per_octave - np.uint32(1)) << np.uint32(8)) | first).astype(jnp.uint16))

    def encode(self, x, dither):
        """Returns the codes of `x`, which can be above 255."""
        bits = jnp.maximum(bits_of(x.astype(jnp.float32)), self._first)
        above = (bits - self._first).astype(jnp.float32)
        return (above * self._codes_per_bit + dither).astype(jnp.uint32)

    def decode(self, codes):
        return from_bits(self._first + codes.astype(jnp.uint32) * self._width)


def bits_of(x):
    return jax.lax.bitcast_convert_type(x, jnp.uint32)


def from_bits(bits):
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def power_of_two(x):
    """Returns the largest power of two that is not above `x`."""
    return from_bits(bits_of(x) & ~_FRACTION)


def mantissa(x):
    """Returns `x` over that power, at least 1 and below 2, and 1 for 0."""
    return from_bits((bits_of(x) & _FRACTION) | _ONE)
