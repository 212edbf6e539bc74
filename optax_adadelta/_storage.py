"""How a leaf's two averages are kept in few bits, and how they are read again."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_adadelta._equation import Decay, Scalar, floored, squarable, squared_update, update
from optax_adadelta._grid import MANTISSA, Grid, bits_of, from_bits, mantissa, power_of_two
from optax_adadelta._placement import in_blocks, out_of_blocks, zeros_in_blocks, zeros_like
from optax_adadelta._rounding import Dither

# The largest float16. What is kept has fewer octaves than a float32, so that it has more codes
# in each; larger gradients are held to this one, whose square is below the largest code.
_MOST = 65504.0**2
_SMALL = 4096
_BLOCK = 128


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "grid"],
    meta_fields=["code", "shape", "block"],
)
@dataclasses.dataclass(frozen=True)
class LowBits:
    """One average of one leaf in few bits.

    Attributes:
      codes: with 16 bits uint16 of the parameter's shape; with 8 bits uint8 in blocks along the
        last axis, ``[..., blocks, block]``.
      grid: with 8 bits what the codes of a block mean, uint16 ``[..., blocks]``; else None.
      code: what is kept how, ``"e16"``, ``"s8"`` or ``"q8"``.
      shape: the parameter's shape.
      block: how many elements share a grid; 1 with 16 bits.
    """

    codes: jax.Array
    grid: jax.Array | None
    code: str
    shape: tuple[int, ...]
    block: int


def is_low(leaf: Any) -> bool:
    """Returns whether a leaf of the state is a :class:`LowBits`."""
    return isinstance(leaf, LowBits)


class Averages(NamedTuple):
    """The two averages of a leaf: as they are kept, or as real numbers."""

    e_g: Any
    e_x: Any


def zeros(p: Any, bits: int) -> Averages | None:
    """Returns the averages of a parameter before the first step, if it is large enough for it."""
    shape = p.shape
    if bits == 16:
        return Averages(
            *(LowBits(zeros_like(p, jnp.uint16), None, "e16", shape, 1) for _ in range(2))
        )
    if math.prod(shape) < _SMALL:
        return None
    blocks, block = _blocks(shape)
    codes = [zeros_in_blocks(p, jnp.uint8, blocks, block) for _ in range(2)]
    return Averages(
        *(
            LowBits(one, jnp.max(one, axis=-1).astype(jnp.uint16), code, shape, block)
            for one, code in zip(codes, ("s8", "q8"), strict=True)
        )
    )


def decoded(e_g: Any, e_x: Any, eps: Scalar) -> Averages:
    """Returns the averages of a leaf as real numbers of the parameter's shape."""
    if not is_low(e_g):
        return Averages(e_g, e_x)
    storage = _STORAGES[e_g.code]
    averages = storage.decode(Averages(e_g, e_x), floored(eps), eps.dtype)
    return Averages(*(jnp.maximum(storage.restored(x, e_g, None), 0) for x in averages))


def advance(
    g: jax.Array,
    terms: list[tuple[Scalar, jax.Array]],
    old: Averages,
    rho: Decay,
    eps: Scalar,
    dithers: tuple[Dither, ...],
) -> tuple[jax.Array, LowBits, LowBits]:
    """One step of Algorithm 1 for one leaf whose averages are kept in few bits.

    The update is computed from the averages as they are kept. Each of `terms` is a weight and an
    array as it came, of which `g` is the sum: a bound for that sum can be had from them without
    an array of its own.
    """
    storage = _STORAGES[old.e_g.code]
    eps = floored(eps)
    laid_out = [(weight, storage.laid_out(x, old.e_g)) for weight, x in terms]
    grids = storage.next_grids(old, laid_out, rho, eps)
    held, g_sq = squarable(storage.laid_out(g, old.e_g), _MOST)
    kept, averages = storage.step(old, grids, g_sq, rho, eps, dithers)
    dx = update(held, g_sq, *averages, rho, eps)
    return storage.restored(dx, old.e_g, g), *kept


class _Sixteen:
    """Each average as an unsigned float of 6 exponent and 10 mantissa bits.

    What is kept is `E + 2**-32`, so that zero is a code and tiny averages are evenly spaced.
    """

    unit = np.float32(2.0**-32)
    first = np.uint32(unit.view(np.uint32))
    shift = np.uint32(MANTISSA - 10)

    def laid_out(self, x, kept: LowBits):
        return x

    def restored(self, x, kept: LowBits, like):
        return x

    def next_grids(self, old: Averages, terms, rho: Decay, eps):
        return None

    def step(self, old: Averages, grids, g_sq, rho: Decay, eps, dithers):
        """Returns the averages after a step, as they are kept and as they are read from that.

        The second is computed from the first as it was kept, so that a compiler can write each
        where the old one lies.
        """
        e_g, e_x = (self._decode(kept, g_sq.dtype) for kept in old)
        kept_g = self._encode(rho.average(e_g, g_sq), old.e_g, dithers[0])
        e_g = self._decode(kept_g, g_sq.dtype)
        e_x = rho.average(e_x, squared_update(g_sq, e_g, e_x, eps))
        kept_x = self._encode(e_x, old.e_x, dithers[1])
        return Averages(kept_g, kept_x), Averages(e_g, self._decode(kept_x, g_sq.dtype))

    def decode(self, kept: Averages, eps, dtype) -> Averages:
        del eps
        return Averages(*(self._decode(one, dtype) for one in kept))

    def _encode(self, average, kept, dither: Dither):
        bits = bits_of(average.astype(jnp.float32) + self.unit) - self.first
        bits += dither.bits(kept.shape) >> (np.uint32(32) - self.shift)
        # A NaN leaves the average as it was. As the last operation, the choice also keeps XLA from
        # computing the codes anew in every loop that reads them, when the old ones are gone.
        new = (bits >> self.shift).astype(jnp.uint16)
        codes = jnp.where(average <= _MOST, new, kept.codes)
        return dataclasses.replace(kept, codes=codes)

    def _decode(self, kept, dtype):
        bits = (kept.codes.astype(jnp.uint32) << self.shift) + self.first
        return (from_bits(bits) - self.unit).astype(dtype)


class _Eight:
    """`S = E[g^2] + eps` and the ratio `q = (E[dx^2] + eps) / S`, each on a grid for a block.

    The ratio hardly changes from one step to the next, so it is seldom rounded and its errors do
    not compound as those of E[dx^2] would. But its range is that of S. So kept is `z = q 2^k` with
    `2^k <= S < 2^(k + 1)` from the code of S: that has the small range of E[dx^2] + eps, and a
    change of `k` moves it from one point of the grid to another, with no error at all.

    A grid has as many codes in each octave as there is room for in the range of its block, evenly
    spaced within the octave. That range is taken from the old codes and the largest gradient, so
    that one pass over the new averages is enough.
    """

    def laid_out(self, x, kept: LowBits):
        """Returns `x` in blocks."""
        return in_blocks(x, kept.codes.shape[-2], kept.block)

    def restored(self, x, kept: LowBits, like):
        """Returns `x`, which is in blocks, in the parameter's shape, sharded as `like` is."""
        return out_of_blocks(x, kept.shape, like)

    def step(self, old: Averages, grids, g_sq, rho: Decay, eps, dithers):
        """Returns the averages after a step, as they are kept and as they are read from that."""
        s_grid, z_grid = grids
        g_sq = jnp.where(jnp.isnan(g_sq), 0, g_sq)
        e_g, e_x = self.decode(old, eps, g_sq.dtype)
        e_g = rho.average(e_g, g_sq)
        e_x = rho.average(e_x, squared_update(g_sq, e_g, e_x, eps))
        s = e_g + eps
        shape = g_sq.shape
        s_code = s_grid.encode(s, dithers[0].fractions(shape))
        power = power_of_two(s_grid.decode(s_code))
        z = (e_x + eps) / s * power.astype(s.dtype)
        z_codes = _saturated(z_grid.encode(z, dithers[1].fractions(shape)))
        # Nothing is added, but XLA does not know it, and writes the first code after the second:
        # that needs the old one of the first, which may then be overwritten.
        s_codes = _saturated(s_code + (z_codes.astype(jnp.uint32) >> np.uint32(8)))
        kept = Averages(
            dataclasses.replace(old.e_g, codes=s_codes, grid=s_grid.packed),
            dataclasses.replace(old.e_x, codes=z_codes, grid=z_grid.packed),
        )
        return kept, self.decode(kept, eps, g_sq.dtype)

    def decode(self, kept: Averages, eps, dtype) -> Averages:
        """Returns the averages, which can lie below zero by what was rounded away.

        They are zero before the first step, when no eps is known, and so is `S`.
        """
        s, z = (Grid(one.grid).decode(one.codes) for one in kept)
        sums = s.astype(dtype), (z * mantissa(s)).astype(dtype)
        return Averages(*(jnp.where(x > 0, jnp.maximum(x - eps, -eps / 4), x) for x in sums))

    def next_grids(self, old: Averages, terms, rho: Decay, eps):
        """Returns grids that cover all that the averages of each block can be after this step."""
        old_share, new_share, eps = (x.astype(jnp.float32) for x in (rho.high, rho.complement, eps))
        g_sq = jnp.minimum(jnp.square(sum(weight * _largest(x) for weight, x in terms)), _MOST)
        (s_least, s_most), (z_least, z_most) = (
            [Grid(one.grid).decode(_of_block(end, one.codes)) for end in (jnp.min, jnp.max)]
            for one in old
        )
        # By 0.98 and 1.02 lies what the arithmetic rounds. E[dx^2] + eps at most doubles in a
        # step, but for eps, and z is at least half of it.
        s_least = 0.98 * jnp.maximum(old_share * s_least, eps)
        s_most = 1.02 * (old_share * s_most + new_share * g_sq + eps)
        s_grid = Grid.spanning(s_least, s_most)
        z_least = 0.49 * jnp.maximum(old_share * z_least, eps)
        z_most = 1.02 * (4 * z_most + 3 * eps)
        return s_grid, Grid.spanning(z_least, z_most * (1 + s_grid.step))


def _of_block(end, x):
    return end(x, axis=-1, keepdims=True)


def _largest(x):
    """Returns the largest modulus of each block or a little more, infinity where there is a NaN."""
    if jnp.iscomplexobj(x):
        return _largest(x.real) + _largest(x.imag)
    # XLA would write the array of the moduli to memory, and one of another dtype.
    most, least = (_of_block(end, x).astype(jnp.float32) for end in (jnp.max, jnp.min))
    largest = jnp.maximum(most, -least)
    return jnp.where(jnp.isnan(largest), jnp.inf, largest)


def _saturated(codes):
    return jnp.where(codes < 256, codes.astype(jnp.uint8), np.uint8(0xFF))


def _blocks(shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns how many blocks the last axis has, and how long they are; the last may be padded."""
    blocks = -(-shape[-1] // _BLOCK)
    even = [n for n in range(-(-blocks // 2), 2 * blocks + 1) if shape[-1] % n == 0]
    if even:
        blocks = min(even, key=lambda n: abs(n - blocks))
    return blocks, -(-shape[-1] // blocks)


_STORAGES = {"e16": _Sixteen(), "s8": _Eight()}
