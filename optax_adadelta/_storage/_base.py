"""The protocol of a storage, and what the quantized storages have in common."""

import abc
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_adadelta._dither import Dither, fourth
from optax_adadelta._equation import Constants, Decay, Epsilons, Scalar, clip_to_squarable, delta
from optax_adadelta._serialization import exportable
from optax_adadelta._sharding import zeros_like

LEAST_QUANTIZED_EPS = 1e-12


@exportable("optax_adadelta.diagnostics.Averages")
class Averages(NamedTuple):
    """E[g^2] and E[dx^2], of one leaf or of a whole tree."""

    e_g: Any
    e_x: Any


class Quantization(NamedTuple):
    """What a step needs to read the codes of a leaf and to write them."""

    before: Epsilons  # what the codes are relative to before the step
    after: Epsilons  # and after it
    gain: Scalar | None  # dx divided by the update in units; None if both units are equal
    dither: Dither


def unit_of(eps: jax.typing.ArrayLike) -> jax.Array:
    """Returns the float32 scalar that codes are relative to if the optimizer has this eps."""
    return jnp.maximum(jnp.asarray(eps).astype(jnp.float32), LEAST_QUANTIZED_EPS)


def gain_of(units: Epsilons) -> jax.Array:
    """Returns dx divided by the update in these units."""
    return jnp.sqrt(units.x) / jnp.sqrt(units.g)


class Storage(abc.ABC):
    """A way to store the two averages of a leaf, as two arrays of the parameter's shape."""

    bits: int | None  # as `state_bits` names it
    dtypes: tuple[np.dtype, ...]
    quantized: bool
    # Below these values, the codes are too coarse for the equation.
    least_rho: float = 0.0
    least_eps: float = 0.0

    def init(self, p: Any, dtype: np.dtype) -> Averages:
        """Returns averages of zero for a parameter whose averages, as floats, have this dtype."""
        stored = dtype if dtype in self.dtypes else self.dtypes[0]
        return Averages(zeros_like(p, stored), zeros_like(p, stored))

    @abc.abstractmethod
    def init_trace(self, p: Any, dtype: np.dtype) -> jax.Array:
        """Returns a trace of zero for a parameter whose updates, in full width, have this dtype."""

    @abc.abstractmethod
    def dtype(self, g: jax.Array, e_g: jax.Array) -> np.dtype:
        """Returns the dtype in which a step is computed, from a gradient and a stored average."""

    @abc.abstractmethod
    def read(self, stored: Averages, eps: Epsilons | None) -> Averages:
        """Returns stored averages as floats, none of them negative."""

    @abc.abstractmethod
    def write(self, averages: Averages, eps: Epsilons | None) -> Averages:
        """Returns averages as they are stored, rounded to nearest."""

    @abc.abstractmethod
    def step(
        self,
        g: jax.Array,
        stored: Averages,
        constants: Constants,
        quantization: Quantization | None,
    ) -> tuple[jax.Array, Averages]:
        """Makes one step of Algorithm 1; returns `dx`, with the sign of `g`, and the averages."""

    @abc.abstractmethod
    def delta(
        self,
        g: jax.Array,
        stored: Averages,
        constants: Constants,
        quantization: Quantization | None,
    ) -> jax.Array:
        """Returns `dx` once more, from the averages after the step."""

    @abc.abstractmethod
    def read_trace(self, trace: jax.Array, eps: Epsilons | None) -> jax.Array:
        """Returns a stored trace as numbers."""

    @abc.abstractmethod
    def write_trace(self, trace: jax.Array, eps: Epsilons | None) -> jax.Array:
        """Returns a trace as it is stored, rounded to nearest."""

    @abc.abstractmethod
    def step_trace(
        self,
        g: jax.Array,
        dx: jax.Array,
        trace: jax.Array,
        momentum: Scalar,
        quantization: Quantization | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns `momentum * trace + dx`, as numbers and as it is stored."""

    @abc.abstractmethod
    def disguised(
        self, g: jax.Array, stored: Averages, trace: jax.Array
    ) -> tuple[jax.Array, Averages]:
        """Returns a gradient and the averages; a compiler does not see that they are the same."""


def disguised(x: jax.Array, trace: jax.Array) -> jax.Array:
    """Returns `x`, in a form that a compiler cannot know to be `x`."""
    like = trace if jnp.iscomplexobj(x) else trace.real
    return x + jnp.zeros_like(like) * like


class Quantized(Storage):
    """A storage of codes, unsigned integers of `bits` bits, for averages in units of eps.

    The equation contains the averages only as E[g^2] + eps and E[dx^2] + eps. In units of eps
    these sums start at 1, and the equation is the same with an eps of 1.
    """

    quantized = True
    least_rho = 0.5
    least_eps = LEAST_QUANTIZED_EPS
    largest: float  # the largest E[g^2]

    @abc.abstractmethod
    def encode(self, averages: Averages) -> Averages:
        """Returns the codes of averages, rounded to nearest."""

    @abc.abstractmethod
    def decode(self, codes: Averages, dtype: np.dtype) -> Averages:
        """Returns the averages, none of them negative. Codes of zero are averages of zero."""

    @abc.abstractmethod
    def advance(
        self, g_sq: jax.Array, codes: Averages, rho: Decay, rescaling: Epsilons, dither: Dither
    ) -> Averages:
        """Returns the codes after a step; a NaN in `g_sq` leaves its codes as they are.

        `rescaling` is the eps that `codes` are relative to, divided by the new one.
        """

    @abc.abstractmethod
    def encode_trace(self, trace: jax.Array, eps: Scalar, dither: jax.Array | None) -> jax.Array:
        """Returns the codes of a real trace, rounded to nearest without `dither`.

        `eps` is the one beside E[dx^2].
        """

    @abc.abstractmethod
    def decode_trace(self, codes: jax.Array, eps: Scalar) -> jax.Array:
        """Returns the float32 trace that codes stand for. Codes of zero are a trace of zero."""

    def init_trace(self, p: Any, dtype: np.dtype) -> jax.Array:
        # Complex numbers have no codes.
        return zeros_like(
            p, dtype if jnp.issubdtype(dtype, jnp.complexfloating) else self.dtypes[0]
        )

    def read_trace(self, trace, eps):
        return trace if jnp.iscomplexobj(trace) else self.decode_trace(trace, eps.x)

    def write_trace(self, trace, eps):
        if jnp.iscomplexobj(trace):
            return trace
        # A NaN has no code.
        trace = jnp.where(jnp.isnan(trace), 0, trace)
        return _without_derivative(self.encode_trace, trace, eps.x, None)

    def disguised(self, g, stored, trace):
        if jnp.iscomplexobj(trace):
            return disguised(g, trace), stored
        zero = trace.astype(jnp.int32) >> self.bits
        codes = (code + zero.astype(code.dtype) for code in stored)
        return g + zero.astype(g.dtype), Averages(*codes)

    def step_trace(self, g, dx, trace, momentum, quantization):
        if jnp.iscomplexobj(dx):
            return 2 * (momentum * trace + dx,)
        return _without_derivative(self._step_trace, g, dx, trace, momentum, quantization)

    def _step_trace(
        self,
        g: jax.Array,
        dx: jax.Array,
        codes: jax.Array,
        momentum: Scalar,
        quantization: Quantization,
    ) -> tuple[jax.Array, jax.Array]:
        old = self.decode_trace(codes, quantization.before.x).astype(dx.dtype)
        dither = fourth(quantization.dither.bits(dx.shape))
        eps, unknown = quantization.after.x, jnp.isnan(g)
        new = self.encode_trace(momentum * old + dx, eps, dither)
        # As the averages do, the trace stays as it is where the gradient is NaN.
        codes = jax.lax.select(unknown, codes, new)
        trace = self.decode_trace(codes, eps).astype(dx.dtype)
        return jnp.where(unknown, g, trace), codes

    def dtype(self, g: jax.Array, e_g: jax.Array) -> np.dtype:
        del e_g
        return np.dtype(np.float64 if jnp.finfo(g.dtype).bits > 32 else np.float32)

    def read(self, stored, eps):
        e_g, e_x = self.decode(stored, np.dtype(np.float32))
        return Averages(eps.g * e_g, eps.x * e_x)

    def write(self, averages, eps):
        return _without_derivative(self._write, averages, eps)

    def _write(self, averages: Averages, eps: Epsilons) -> Averages:
        e_g, e_x = (a / unit.astype(a.dtype) for a, unit in zip(averages, eps, strict=True))
        # A NaN has no code. With these averages the coordinate stands still until E[g^2] decays.
        e_g = jnp.where(jnp.isnan(e_g), self.largest, e_g)
        return self.encode(Averages(e_g, jnp.where(jnp.isnan(e_x), 0, e_x)))

    def step(self, g, stored, constants, quantization):
        return _without_derivative(self._step, g, stored, constants.rho, quantization)

    def _step(
        self, g: jax.Array, stored: Averages, rho: Decay, quantization: Quantization
    ) -> tuple[jax.Array, Averages]:
        # dx is computed from the averages as they are stored. Then each result needs only its own
        # old codes and the new codes of the others, so a compiler can write them in place.
        g, g_sq, before, after = self._in_units(g, quantization)
        rescaling = Epsilons(before.g / after.g, before.x / after.x)
        stored = self.advance(g_sq, stored, rho, rescaling, quantization.dither)
        return self._delta(g, g_sq, stored, rho, quantization), stored

    def delta(self, g, stored, constants, quantization):
        def again(
            g: jax.Array, stored: Averages, rho: Decay, quantization: Quantization
        ) -> jax.Array:
            g, g_sq, _, _ = self._in_units(g, quantization)
            return self._delta(g, g_sq, stored, rho, quantization)

        return _without_derivative(again, g, stored, constants.rho, quantization)

    def _in_units(
        self, g: jax.Array, quantization: Quantization
    ) -> tuple[jax.Array, jax.Array, Epsilons, Epsilons]:
        """Returns `g` clamped, `g^2` in units of the new eps, and the old and the new eps."""
        dtype = jnp.finfo(g.dtype).dtype
        before, after = (eps.astype(dtype) for eps in (quantization.before, quantization.after))
        g, g_sq = clip_to_squarable(g, self.largest * after.g)
        return g, g_sq * (jnp.ones_like(after.g) / after.g), before, after

    def _delta(
        self,
        g: jax.Array,
        g_sq: jax.Array,
        stored: Averages,
        rho: Decay,
        quantization: Quantization,
    ) -> jax.Array:
        one = jnp.ones((), g_sq.dtype)
        constants = Constants.of(rho, Epsilons(one, one))
        dx = delta(g, g_sq, *self.decode(stored, g_sq.dtype), constants)
        return dx if quantization.gain is None else quantization.gain.astype(g.dtype) * dx


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _without_derivative(step: Callable[..., Any], *operands: Any) -> Any:
    return step(*operands)


@_without_derivative.defjvp
def _refuse(step: Callable[..., Any], primals: Any, tangents: Any) -> Any:
    del step, primals, tangents
    raise NotImplementedError(
        "A derivative was taken through quantized averages. They are integers, so it would be"
        " wrong. Use state_bits=None to differentiate through updates;"
        " convert.with_state_bits(state, None) converts a state."
    )
