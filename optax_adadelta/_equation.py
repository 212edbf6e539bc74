"""Algorithm 1 of the paper on one leaf, exact and finite for every gradient."""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Scalar: TypeAlias = jax.Array | np.floating
"""A strongly typed scalar, on the host or on a device."""


def equation(
    g: jax.Array, e_g: jax.Array, e_x: jax.Array, constants: "Constants"
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Makes one step of Algorithm 1 and returns `dx`, with the sign of `g`, and both averages.

    With `S = E[dx^2] + eps` from before the step, the paper's `dx^2` is `S g^2 / (E[g^2] + eps)`.
    After the step, `E[dx^2] + rho eps = S (rho + (1 - rho) g^2 / (E[g^2] + eps))`. All terms are
    positive, so `S` can be computed back from it without cancellation. Then each result depends
    only on `g`, on its own old value and on the *new* values of the results before it. So a
    compiler can write every result in place.
    """
    rho = constants.rho
    g, g_sq = clip_to_squarable(g)
    e_g = rho.average(e_g, g_sq)
    e_x = rho.average(e_x, squared_update(g_sq, e_g, e_x, constants.eps))
    return delta(g, g_sq, e_g, e_x, constants), e_g, e_x


def squared_update(g_sq: jax.Array, e_g: jax.Array, e_x: jax.Array, eps: "Epsilons") -> jax.Array:
    """Returns `dx^2` from the new `e_g` and the old `e_x`."""
    return g_sq / (e_g + eps.g) * (e_x + eps.x)


def delta(
    g: jax.Array, g_sq: jax.Array, e_g: jax.Array, e_x: jax.Array, constants: "Constants"
) -> jax.Array:
    """Returns `dx` from the new `e_g` and the new `e_x`."""
    rho, rho_eps = constants.rho, constants.rho_eps
    ratio = _root_ratio(e_x + rho_eps.x, rho.high * e_g + (rho.one_minus_rho * g_sq + rho_eps.g))
    return ratio.astype(g.dtype) * g


def rms_ratio(e_g: jax.Array, e_x: jax.Array, eps: "Epsilons") -> jax.Array:
    """Returns RMS[dx] / RMS[g]."""
    eps = eps.normal()
    return _root_ratio(e_x + eps.x, e_g + eps.g)


def _root_ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    # The quotient of the averages could underflow.
    return jnp.sqrt(a) / jnp.sqrt(b)


def clip_to_squarable(
    g: jax.Array, largest_square: Scalar | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns `g` clamped to the largest modulus whose square is finite, and that square.

    With `largest_square`, the square is also at most that. This keeps the averages finite. The
    first gradient that is clamped still gets its exact update: it alone makes up the average that
    it is divided by, so its size cancels.
    """
    largest = float(jnp.finfo(g.dtype).max)
    square = jax.lax.full((), 0.98 * largest, jnp.finfo(g.dtype).dtype)
    if largest_square is not None:
        square = jnp.minimum(largest_square, square)
    bound = jnp.sqrt(square)
    if not jnp.iscomplexobj(g):
        g = jax.lax.clamp(-bound, g, bound)
        return g, jnp.square(g)
    g_sq = sum(jnp.square(jnp.clip(part, -bound, bound)) for part in (g.real, g.imag))
    g = jax.lax.complex(*(jnp.clip(part, -largest, largest) for part in (g.real, g.imag)))
    # The modulus can overflow, a quarter of it cannot.
    quarter = jnp.maximum(jnp.abs(0.25 * g), 0.25 * bound)
    return (0.25 * bound / quarter).astype(g.dtype) * g, jnp.minimum(g_sq, square)


class Epsilons(NamedTuple):
    """The eps beside E[g^2] and the eps beside E[dx^2]. In the paper they are the same number."""

    g: Scalar
    x: Scalar

    def normal(self) -> "Epsilons":
        """Returns both, raised to 64 times the smallest normal number if they are below it.

        Then the product with a rho of 1/64 or more is a normal number.
        """
        least = 64 * jnp.finfo(self.x.dtype).tiny
        return Epsilons(*(jnp.maximum(e, jax.lax.full((), least, e.dtype)) for e in self))

    def times(self, rho: Scalar) -> "Epsilons":
        """Returns both, multiplied by `rho`."""
        return Epsilons(*(_normal_product(rho, e) for e in self))

    def astype(self, dtype: np.dtype) -> "Epsilons":
        """Returns both in `dtype`."""
        return Epsilons(*(e.astype(dtype) for e in self))


def _normal_product(rho: Scalar, eps: Scalar) -> jax.Array:
    # For a tiny rho the product underflows, and a coordinate that never moved would give 0 / 0.
    # jnp.maximum would lose the derivative with respect to rho.
    tiny = jax.lax.full((), jnp.finfo(eps.dtype).tiny, eps.dtype)
    product = rho * eps
    return product + jnp.where(product < tiny, tiny, jnp.zeros_like(tiny))


class Decay(NamedTuple):
    """The weights of a running average, `rho` for the old value and `1 - rho` for the new one.

    `rho` is kept as two numbers whose sum it is, `high + low`, and `one_minus_rho` as a third,
    because a float32 near one is too coarse. For rho = 0.9999, its rounding alone would bias every
    average by 2e-4.
    """

    high: Scalar
    low: Scalar
    one_minus_rho: Scalar

    def average(self, old: jax.Array, new: jax.Array) -> jax.Array:
        """Returns `rho * old + (1 - rho) * new`."""
        return self.high * old + (self.low * old + self.one_minus_rho * new)

    def astype(self, dtype: np.dtype) -> "Decay":
        """Returns the same weights in `dtype`; the rounding error of `high` goes to `low`."""
        high = self.high.astype(dtype)
        low = (self.high - high.astype(self.high.dtype)) + self.low
        return Decay(high, low.astype(dtype), self.one_minus_rho.astype(dtype))


class Constants(NamedTuple):
    """What the equation needs beside the gradient and the averages."""

    rho: Decay
    eps: Epsilons
    rho_eps: Epsilons

    @classmethod
    def of(cls, rho: Decay, eps: Epsilons) -> "Constants":
        """Returns the constants for these hyperparameters."""
        eps = eps.normal()
        return cls(rho, eps, eps.times(rho.high))
