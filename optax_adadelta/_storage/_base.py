"""The protocol of a storage, and what the quantized storages have in common."""

import abc
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_adadelta._dither import Dither
from optax_adadelta._equation import Decay, Scalar, clip_to_squarable, delta
from optax_adadelta._serialization import exportable
from optax_adadelta._sharding import zeros_like

# Below these values, the codes are too coarse for the equation.
MIN_QUANTIZED_RHO = 0.5
MIN_QUANTIZED_EPS = 1e-12


@exportable("optax_adadelta.diagnostics.Averages")
class Averages(NamedTuple):
    """E[g^2] and E[dx^2], of one leaf or of a whole tree."""

    e_g: Any
    e_x: Any


class Quantization(NamedTuple):
    """What all quantized leaves have in common in one step."""

    stored_unit: jax.Array  # what the codes are relative to before the step
    unit: jax.Array  # and after it
    dither: Dither


def unit_of(eps: jax.typing.ArrayLike) -> jax.Array:
    """Returns the float32 scalar that codes are relative to if the optimizer has this eps."""
    return jnp.maximum(jnp.asarray(eps).astype(jnp.float32), MIN_QUANTIZED_EPS)


class Storage(abc.ABC):
    """A way to store the two averages of a leaf, as two arrays of the parameter's shape."""

    dtypes: tuple[np.dtype, ...]
    quantized: bool

    def init(self, p: Any, dtype: np.dtype) -> Averages:
        """Returns averages of zero for a parameter whose averages, as floats, have this dtype."""
        stored = dtype if dtype in self.dtypes else self.dtypes[0]
        return Averages(zeros_like(p, stored), zeros_like(p, stored))

    @abc.abstractmethod
    def dtype(self, g: jax.Array, e_g: jax.Array) -> np.dtype:
        """Returns the dtype in which a step is computed, from a gradient and a stored average."""

    @abc.abstractmethod
    def read(self, stored: Averages, unit: jax.typing.ArrayLike | None) -> Averages:
        """Returns stored averages as floats, none of them negative."""

    @abc.abstractmethod
    def write(self, averages: Averages, unit: jax.Array | None) -> Averages:
        """Returns averages as they are stored, rounded to nearest."""

    @abc.abstractmethod
    def step(
        self,
        g: jax.Array,
        stored: Averages,
        rho: Decay,
        eps: Scalar,
        quantization: Quantization | None,
    ) -> tuple[jax.Array, Averages]:
        """Makes one step of Algorithm 1; returns `dx`, with the sign of `g`, and the averages."""


class Quantized(Storage):
    """A storage of integer codes for averages in units of eps.

    The equation contains the averages only as E[g^2] + eps and E[dx^2] + eps. In units of eps
    these sums start at 1, and the equation is the same with an eps of 1.
    """

    quantized = True
    largest: float  # the largest E[g^2]

    @abc.abstractmethod
    def encode(self, averages: Averages) -> Averages:
        """Returns the codes of averages, rounded to nearest."""

    @abc.abstractmethod
    def decode(self, codes: Averages, dtype: np.dtype) -> Averages:
        """Returns the averages, none of them negative. Codes of zero are averages of zero."""

    @abc.abstractmethod
    def advance(
        self, g_sq: jax.Array, codes: Averages, rho: Decay, rescaling: jax.Array, dither: Dither
    ) -> Averages:
        """Returns the codes after a step; a NaN in `g_sq` leaves its codes as they are.

        `rescaling` is the eps that `codes` are relative to, divided by the new one.
        """

    def dtype(self, g: jax.Array, e_g: jax.Array) -> np.dtype:
        del e_g
        return np.dtype(np.float64 if jnp.finfo(g.dtype).bits > 32 else np.float32)

    def read(self, stored: Averages, unit: jax.typing.ArrayLike | None) -> Averages:
        unit = jnp.asarray(unit, jnp.float32)
        return Averages(*(unit * average for average in self.decode(stored, unit.dtype)))

    def write(self, averages: Averages, unit: jax.Array | None) -> Averages:
        return _without_derivative(self._write, averages, unit)

    def _write(self, averages, unit):
        e_g, e_x = (average / unit.astype(average.dtype) for average in averages)
        # A NaN has no code. With these averages the coordinate stands still until E[g^2] decays.
        e_g = jnp.where(jnp.isnan(e_g), self.largest, e_g)
        return self.encode(Averages(e_g, jnp.where(jnp.isnan(e_x), 0, e_x)))

    def step(self, g, stored, rho, eps, quantization):
        del eps
        return _without_derivative(self._step, g, stored, rho, quantization)

    def _step(self, g, stored, rho, quantization):
        # dx is computed from the averages as they are stored. Then each result needs only its own
        # old codes and the new codes of the others, so a compiler can write them in place.
        dtype = jnp.finfo(g.dtype).dtype
        old, new = quantization.stored_unit.astype(dtype), quantization.unit.astype(dtype)
        one = jnp.ones_like(new)
        g, g_sq = clip_to_squarable(g, self.largest * new)
        g_sq *= one / new
        stored = self.advance(g_sq, stored, rho, old / new, quantization.dither)
        return delta(g, g_sq, *self.decode(stored, dtype), rho, one), stored


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _without_derivative(step: Callable[..., Any], *operands: Any) -> Any:
    return step(*operands)


@_without_derivative.defjvp
def _refuse(step, primals, tangents):
    del step, primals, tangents
    raise NotImplementedError(
        "A derivative was taken through quantized averages. They are integers, so it would be"
        " wrong. Use state_bits=None to differentiate through updates;"
        " convert.with_state_bits(state, None) converts a state."
    )
