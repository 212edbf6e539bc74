"""The bits of float32 numbers, as integers: each octave is `2**23` of them, evenly spaced."""

import jax
import jax.numpy as jnp
import numpy as np

OCTAVE = 1 << 23
ONE = np.float32(1).view(np.int32)


def bits_of(x: jax.Array) -> jax.Array:
    """Returns the bits of a float32 array as int32."""
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def from_bits(bits: jax.Array) -> jax.Array:
    """Returns the float32 array that has these bits, given as int32 or uint32."""
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def shifted_right(bits: jax.Array | np.int32, places: int | np.int32) -> jax.Array:
    """Returns int32 bits moved to the right, with zeros on the left."""
    return jax.lax.shift_right_logical(bits, jnp.full_like(bits, places))


def power_of_two(x: jax.Array) -> jax.Array:
    """Returns the largest power of two that is at most `x`, for positive normal `x`; else 0."""
    return from_bits(bits_of(x) & np.int32(-OCTAVE))


def mantissa(x: jax.Array) -> jax.Array:
    """Returns `x / power_of_two(x)`, which is at least 1 and below 2."""
    return from_bits((bits_of(x) & np.int32(OCTAVE - 1)) | ONE)
