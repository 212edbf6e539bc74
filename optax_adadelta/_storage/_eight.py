"""Averages in 8 bits each."""

import jax
import jax.numpy as jnp
import numpy as np

from optax_adadelta._bits import mantissa, power_of_two
from optax_adadelta._dither import centered, second
from optax_adadelta._equation import Epsilons, Scalar, squared_update
from optax_adadelta._storage._base import Averages, Quantized
from optax_adadelta._storage._grid import NEAREST, Grid, Segment

S_GRID = Grid(1.0, Segment(octaves=33, codes=6), Segment(octaves=28, codes=2))
WIDE_S_GRID = Grid(1.0, Segment(octaves=53, codes=4), Segment(octaves=21, codes=2))
_Z_GRID = Grid(0.5, Segment(octaves=10, codes=18), Segment(octaves=37, codes=2))
_TRACE_GRID = Grid(1.0, Segment(octaves=18, codes=7))
_NEGATIVE = 128  # added to the code of a negative trace


class EightBits(Quantized):
    """Codes of `s = E[g^2] + 1` and of the ratio of `x = E[dx^2] + 1` to it, in units of eps.

    E[dx^2] itself has no code, because every step multiplies it by a factor that depends on the
    gradient: each step would round it again, and the errors would grow. The ratio `x / s` hardly
    changes in a step, so it mostly keeps its code. But its range is as wide as that of s, and a
    wide range leaves few codes per octave. So the code is that of `z = x / s * 2^k`, where `2^k` is
    the power of two in the *stored* s. It has the small range of x, and when k changes, z moves by
    whole octaves.
    """

    bits = 8
    dtypes = (np.dtype(np.uint8),)

    def __init__(self, s_grid: Grid) -> None:
        """Makes a storage whose codes of s are those of a grid."""
        self._s_grid = s_grid
        self.largest = 2.0**s_grid.octaves

    def encode(self, averages):
        s, x = ((average + 1).astype(jnp.float32) for average in averages)
        s = jnp.minimum(s, self.largest)
        s_codes = self._s_grid.encode(s, NEAREST)
        z_codes = _Z_GRID.encode(self._z(s, x, s_codes), NEAREST)
        return Averages(s_codes.astype(jnp.uint8), z_codes.astype(jnp.uint8))

    def decode(self, codes, dtype):
        s, z = self._s_grid.decode(codes.e_g), _Z_GRID.decode(codes.e_x)
        # Rounding can put x a little below 1.
        e_g, e_x = s - 1, jnp.maximum(z * mantissa(s) - 1, 0)
        return Averages(e_g.astype(dtype), e_x.astype(dtype))

    def advance(self, g_sq, codes, rho, rescaling, dither):
        one = jnp.ones_like(g_sq)
        e_g, e_x = map(jnp.multiply, rescaling, self.decode(codes, g_sq.dtype))
        e_g = rho.average(e_g, g_sq)
        e_x = rho.average(e_x, squared_update(g_sq, e_g, e_x, Epsilons(one, one)))
        s, x = ((average + one).astype(jnp.float32) for average in (e_g, e_x))
        bits = dither.bits(g_sq.shape)
        s_codes = self._s_grid.encode(s, centered(bits))
        z_codes = _Z_GRID.encode(self._z(s, x, s_codes), centered(second(bits)))
        unknown = jnp.isnan(g_sq)
        z_codes = jax.lax.select(unknown, codes.e_x, z_codes.astype(jnp.uint8))
        # This adds zero, but XLA does not know that. So it stores z first, while it can still read
        # the old s, and then writes the new s in place of the old one.
        s_codes += z_codes.astype(jnp.int32) >> 8
        s_codes = jax.lax.select(unknown, codes.e_g, s_codes.astype(jnp.uint8))
        return Averages(s_codes, z_codes)

    def _z(self, s: jax.Array, x: jax.Array, s_codes: jax.Array) -> jax.Array:
        return x / s * power_of_two(self._s_grid.decode(s_codes))

    def encode_trace(self, trace, eps, dither):
        size = (jnp.abs(trace) / _trace_unit(eps).astype(trace.dtype)).astype(jnp.float32) + 1
        codes = _TRACE_GRID.encode(size, NEAREST if dither is None else centered(dither))
        return jnp.where(trace < 0, codes + np.int32(_NEGATIVE), codes).astype(jnp.uint8)

    def decode_trace(self, codes, eps):
        size = (_TRACE_GRID.decode(codes & np.uint8(_NEGATIVE - 1)) - 1) * _trace_unit(eps)
        return jnp.where(codes < _NEGATIVE, size, -size)


def _trace_unit(eps: Scalar) -> jax.Array:
    """Returns what a trace of code 7 is; the codes are evenly spaced up to it."""
    return jnp.sqrt(eps) * np.float32(1 / 16)
