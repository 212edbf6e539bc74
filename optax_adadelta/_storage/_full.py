"""Averages in full precision."""

import numpy as np

from optax_adadelta._equation import clip_to_squarable, delta, equation
from optax_adadelta._sharding import zeros_like
from optax_adadelta._storage._base import Averages, Storage, disguised


class FullPrecision(Storage):
    """Float32 arrays, or float64 arrays for float64 and complex128 parameters."""

    bits = None
    dtypes = (np.dtype(np.float32), np.dtype(np.float64))
    quantized = False

    def dtype(self, g, e_g):
        del g
        return e_g.dtype

    def read(self, stored, eps):
        del eps
        return stored

    def write(self, averages, eps):
        del eps
        return averages

    def step(self, g, stored, constants, quantization):
        del quantization
        dx, e_g, e_x = equation(g, stored.e_g, stored.e_x, constants)
        return dx, Averages(e_g, e_x)

    def delta(self, g, stored, constants, quantization):
        del quantization
        return delta(*clip_to_squarable(g), stored.e_g, stored.e_x, constants)

    def init_trace(self, p, dtype):
        return zeros_like(p, dtype)

    def read_trace(self, trace, eps):
        del eps
        return trace

    def write_trace(self, trace, eps):
        del eps
        return trace

    def step_trace(self, g, dx, trace, momentum, quantization):
        del g, quantization
        return 2 * (momentum * trace + dx,)

    def disguised(self, g, stored, trace):
        return disguised(g, trace), Averages(*(disguised(average, trace) for average in stored))
