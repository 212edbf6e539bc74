"""Averages in 16 bits each."""

import jax
import jax.numpy as jnp
import numpy as np

from optax_adadelta._bits import ONE, bits_of, from_bits, shifted_right
from optax_adadelta._dither import HALF, second
from optax_adadelta._equation import Epsilons, squared_update
from optax_adadelta._storage._base import Averages, Quantized

_LARGEST_TRACE = np.int32(0x7F7F0000).view(np.float32)


class SixteenBits(Quantized):
    """Codes of `E[g^2] + 1` and `E[dx^2] + 1`, in units of eps: the upper bits of a float32.

    E[dx^2] + 1 has 2048 codes in each of 32 octaves, because its errors add up over the steps. A
    trace is the upper half of a float32, with its sign, whatever eps is.
    """

    bits = 16
    dtypes = (np.dtype(np.uint16),)

    def __init__(self, octaves: int) -> None:
        """Makes a storage with as many octaves for E[g^2] + 1: 64, or 128 with half the codes."""
        self.largest = 2.0 ** min(octaves, 127)
        # Right shifts of the bits of a float32.
        self._shifts = Averages(np.int32({64: 13, 128: 14}[octaves]), np.int32(12))

    def encode(self, averages):
        return Averages(*map(_encode, averages, self._shifts, (HALF, HALF)))

    def decode(self, codes, dtype):
        return Averages(
            *(_decode(c, shift, dtype) for c, shift in zip(codes, self._shifts, strict=True))
        )

    def advance(self, g_sq, codes, rho, rescaling, dither):
        e_g, e_x = map(jnp.multiply, rescaling, self.decode(codes, g_sq.dtype))
        unknown, bits = jnp.isnan(g_sq), dither.bits(g_sq.shape)
        # Each select comes last on purpose: it keeps XLA from computing the codes again in every
        # loop that reads them.
        e_g_codes = _encode(rho.average(e_g, g_sq), self._shifts.e_g, bits)
        e_g_codes = jax.lax.select(unknown, codes.e_g, e_g_codes)
        e_g = _decode(e_g_codes, self._shifts.e_g, g_sq.dtype)
        one = jnp.ones_like(g_sq)
        e_x = rho.average(e_x, squared_update(g_sq, e_g, e_x, Epsilons(one, one)))
        e_x_codes = _encode(e_x, self._shifts.e_x, second(bits))
        return Averages(e_g_codes, jax.lax.select(unknown, codes.e_x, e_x_codes))

    def encode_trace(self, trace, eps, dither):
        del eps
        trace = jax.lax.clamp(-_LARGEST_TRACE, trace.astype(jnp.float32), _LARGEST_TRACE)
        fraction = shifted_right(HALF if dither is None else dither, 16)
        return shifted_right(bits_of(trace) + fraction, 16).astype(jnp.uint16)

    def decode_trace(self, codes, eps):
        del eps
        return from_bits(codes.astype(jnp.int32) << 16)


def _encode(average: jax.Array, shift: np.int32, dither: jax.Array | np.int32) -> jax.Array:
    last = (ONE + (np.int32(2**16 - 1) << shift)).view(np.float32)
    x = jax.lax.clamp(np.float32(1), (average + 1).astype(jnp.float32), last)
    fraction = shifted_right(dither, 32 - shift)
    return ((bits_of(x) + (fraction - ONE)) >> shift).astype(jnp.uint16)


def _decode(codes: jax.Array, shift: np.int32, dtype: np.dtype) -> jax.Array:
    return (from_bits((codes.astype(jnp.int32) << shift) + ONE) - 1).astype(dtype)
