"""Algorithm 1 of the paper on one leaf, and how it stays exact and finite."""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Scalar: TypeAlias = jax.Array | np.floating
"""A strongly typed scalar, on the host or on a device."""


def equation(
    g: jax.Array, e_g: jax.Array, e_x: jax.Array, rho: "Decay", eps: Scalar
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One step of Algorithm 1 for one leaf; `dx` has the sign of `g`.

    With `S = E[dx^2] + eps` from before the step, the paper's `dx^2` is `S g^2 / (E[g^2] + eps)`.
    Then `E[dx^2] + rho eps = S (rho + (1 - rho) g^2 / (E[g^2] + eps))` after it, a sum of positive
    terms, which gives `S` back. So each result follows from `g`, its own old value and the *new*
    values of those before it, and a compiler can write all of them where the old ones lie.
    """
    eps = floored(eps)
    g, g_sq = squarable(g)
    e_g = rho.average(e_g, g_sq)
    e_x = rho.average(e_x, squared_update(g_sq, e_g, e_x, eps))
    return update(g, g_sq, e_g, e_x, rho, eps), e_g, e_x


def squared_update(g_sq: jax.Array, e_g: jax.Array, e_x: jax.Array, eps: Scalar) -> jax.Array:
    """Returns `dx^2` from the new `e_g` and the old `e_x`."""
    return g_sq / (e_g + eps) * (e_x + eps)


def update(
    g: jax.Array, g_sq: jax.Array, e_g: jax.Array, e_x: jax.Array, rho: "Decay", eps: Scalar
) -> jax.Array:
    """Returns `dx` from the new `e_g` and the new `e_x`."""
    # For a tiny rho the product underflows, and a coordinate that never moved would be 0 / 0.
    # The larger of the two would have no derivative by rho there.
    tiny = jnp.finfo(eps.dtype).tiny
    rho_eps = rho.high * eps
    rho_eps += jnp.where(rho_eps < tiny, tiny, jnp.zeros_like(tiny))
    ratio = _root_ratio(e_x + rho_eps, rho.high * e_g + (rho.complement * g_sq + rho_eps))
    return ratio.astype(g.dtype) * g


def rms_ratio(e_g: jax.Array, e_x: jax.Array, eps: Scalar) -> jax.Array:
    """Returns RMS[dx] / RMS[g]."""
    eps = floored(eps)
    return _root_ratio(e_x + eps, e_g + eps)


def _root_ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    # Not the root of the quotient, which can underflow.
    return jnp.sqrt(a) / jnp.sqrt(b)


def floored(eps: Scalar) -> jax.Array:
    """Returns `eps`, raised to where `rho * eps` is a normal number for rho of 1 / 64 and above."""
    return jnp.maximum(eps, 64 * jnp.finfo(eps.dtype).tiny)


def squarable(g: jax.Array, square: float | None = None) -> tuple[jax.Array, jax.Array]:
    """Returns `g`, held to a modulus whose square is at most `square` or finite, and that square.

    The averages then stay finite, and the first such gradient still gives its exact update,
    which depends on its quotient with an average that is all its own.
    """
    largest = float(jnp.finfo(g.dtype).max)
    square = 0.98 * largest if square is None else square
    bound = square**0.5
    if not jnp.iscomplexobj(g):
        g = jax.lax.clamp(g.dtype.type(-bound), g, g.dtype.type(bound))
        return g, jnp.square(g)
    g_sq = sum(jnp.square(jnp.clip(part, -bound, bound)) for part in (g.real, g.imag))
    g = jax.lax.complex(*(jnp.clip(part, -largest, largest) for part in (g.real, g.imag)))
    # The modulus itself can be infinite, a quarter of it cannot.
    quarter = jnp.maximum(jnp.abs(0.25 * g), 0.25 * bound)
    return (0.25 * bound / quarter).astype(g.dtype) * g, jnp.minimum(g_sq, square)


class Decay(NamedTuple):
    """The weights of a running average, `rho` of the old and `1 - rho` of the new.

    `rho` is the unevaluated sum `high + low`, and `complement` is not computed from it: a
    float32 near one is too coarse to hold `1 - rho`. For rho = 0.9999 rounding alone would
    put a bias of 2e-4 into every average.
    """

    high: Scalar
    low: Scalar
    complement: Scalar

    def average(self, old: jax.Array, new: jax.Array) -> jax.Array:
        """Returns `rho * old + (1 - rho) * new`."""
        return self.high * old + (self.low * old + self.complement * new)

    def astype(self, dtype: np.dtype) -> "Decay":
        """Returns the same weights in `dtype`, what `high` loses being kept in `low`."""
        high = self.high.astype(dtype)
        low = (self.high - high.astype(self.high.dtype)) + self.low
        return Decay(high, low.astype(dtype), self.complement.astype(dtype))
