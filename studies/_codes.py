"""Ways to store Adadelta's two averages in few bits, each as a function from values to values.

Nothing is packed: a function returns the value that would be read back. A code is a function
`(x, u) -> x` of nonnegative numbers and a dither `u`, uniform over [0, 1). A store is a function
`(e_g, e_x, dithers, spare) -> (e_g, e_x, spare)` of both averages, where `spare` is additional
state.
"""

import jax
import jax.numpy as jnp
import numpy as np

EPS = 1e-6
BLOCK = 128
# The plastic number's inverse and its square, and the golden ratio's inverse, modulo 1.
WEYL, LATTICE = (0xC13FA9A9, 0x91E10DA5), 0x9E3779B9


def weyl(count, index):
    """An element's own offset and the multiples of an irrational number, for each average."""
    return tuple(unit(index * np.uint32(LATTICE) + count * np.uint32(stride)) for stride in WEYL)


def random(count, index):
    """A hash of the index and the count, as good as random."""
    once = mixed(index ^ mixed(count))
    return unit(once), unit(mixed(once + np.uint32(12345)))


def counter(count, index):
    """The low bits of index and count as they are, a slow ramp."""
    return tuple(unit((index + count * np.uint32(n)) << np.uint32(19)) for n in (1, 3))


def nearest(count, index):
    """No dither."""
    del count
    return (jnp.full(index.shape, 0.5),) * 2


def down(count, index):
    """No dither, and never up."""
    del count
    return (jnp.zeros(index.shape),) * 2


def mixed(x):
    """Another uint32 for each, every bit of which depends on all bits of `x`."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x21F0AAAD)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x735A2D97)
    return x ^ (x >> np.uint32(15))


def unit(bits):
    """uint32 as numbers in [0, 1)."""
    return (bits >> np.uint32(8)).astype(jnp.float32) * np.float32(2.0**-24)


def power(x):
    """The largest power of two that is not above a positive float32."""
    return from_bits(bits(x) & np.uint32(0x7F800000))


def bits(x):
    return jax.lax.bitcast_convert_type(x, jnp.uint32)


def from_bits(x):
    return jax.lax.bitcast_convert_type(x, jnp.float32)


def on_grid(x, step, u):
    """One of the two multiples of the step beside `x`, the upper if `u` is large enough."""
    return step * jnp.floor(x / step + u)


def between(low, high, x, u):
    """One of the two values, the upper as often as `x` is close to it."""
    return jnp.where((1 - u) * (high - low) < x - low, high, low)


def in_blocks(code, block=BLOCK):
    """The code for arrays cut into rows of `block` elements."""

    def blockwise(x, u):
        return code(x.reshape(-1, block), u.reshape(-1, block)).reshape(x.shape)

    return blockwise


def short_float(mantissa, least):
    """Floats of so many bits of mantissa; what is kept is `x + least`."""

    def code(x, u):
        x = x + np.float32(least)
        return on_grid(x, power(x) / 2**mantissa, u) - np.float32(least)

    return code


def bfloat16(x, u):
    del u
    return x.astype(jnp.bfloat16).astype(jnp.float32)


def octave_grid(x, codes, whole):
    """The step at each `x`, and the largest value on the grid of its row."""
    octave = (bits(x) >> np.uint32(23)).astype(jnp.int32)
    first = octave.min(axis=1, keepdims=True)
    # One code is the upper end of the last octave.
    n = jnp.maximum((codes - 1) // (octave.max(axis=1, keepdims=True) - first + 1), 1)
    if whole:
        n = power(n.astype(x.dtype)).astype(jnp.int32)
    above, rest = (codes - 1) // n, (codes - 1) % n
    power_of_top = from_bits((first + above) << 23)
    return power(x) / n.astype(x.dtype), power_of_top * (1 + rest / n)


def octaves(codes=256, block=BLOCK, whole=False):
    """As many codes in each octave as a row's range has room for; `whole`: a power of two."""

    def code(x, u):
        step, top = octave_grid(x, codes, whole)
        return jnp.minimum(on_grid(x, step, u), top)

    return in_blocks(code, block)


def fixed(first, *segments):
    """A grid of segments, `(octaves, codes in each)`, from `first` up, in units of EPS.

    Segments become coarser. It is one grid for all elements, so it needs no blocks.
    """
    start = int(np.float32(first).view(np.uint32))
    lines, octave, last = [], 0, 0
    for octaves, codes in segments:
        lines.append((codes, last - codes * octave))
        octave, last = octave + octaves, last + octaves * codes

    def code(x, u):
        at = jnp.maximum(bits(x / np.float32(EPS)), start) - np.uint32(start)
        at = at.astype(jnp.float32) * np.float32(2.0**-23)
        place = [n * at + offset for n, offset in lines]
        index = jnp.minimum(jnp.floor(jnp.min(jnp.stack(place), axis=0) + u), last)
        at = jnp.max(jnp.stack([(index - offset) / n for n, offset in lines]), axis=0)
        below = jnp.floor(at + 1e-3)
        power = from_bits(((below.astype(jnp.uint32)) << 23) + np.uint32(start))
        return power * (1 + jnp.maximum(at - below, 0)) * np.float32(EPS)

    return code


def logarithmic(codes=256, block=BLOCK):
    """Codes evenly spaced in the logarithm, from the least to the largest of a row."""

    def code(x, u):
        log = jnp.log2(x)
        least = log.min(axis=1, keepdims=True)
        width = jnp.maximum((log.max(axis=1, keepdims=True) - least) / (codes - 1), 1e-6)
        below = jnp.clip(jnp.floor((log - least) / width), 0, codes - 2)
        return between(*(jnp.exp2(least + k * width) for k in (below, below + 1)), x, u)

    return in_blocks(code, block)


@in_blocks
def linear(x, u):
    """Multiples of a 255th of the largest of a row."""
    step = jnp.maximum(x.max(axis=1, keepdims=True) / 255, jnp.finfo(x.dtype).tiny)
    return on_grid(x, step, u)


@in_blocks
def e4m3_root(x, u):
    """The root as a float of 4 bits of exponent and 3 of mantissa, scaled to a row's largest."""
    root = jnp.sqrt(x)
    scale = root.max(axis=1, keepdims=True) / 448
    root = root / scale
    return jnp.square(scale * on_grid(root, jnp.maximum(power(root), 2.0**-6) / 8, u))


def dynamic_map():
    """The 256 values of bitsandbytes' unsigned dynamic map.

    From its description (Dettmers, arXiv 1511.04561 and 2110.02861): leading zeros are a power of
    ten, the bits after the first one a fraction, here the middles of equal parts of [0.1, 1].
    """
    values = [0.0, 1.0]
    for decade in range(7):
        parts = 2 ** (7 - decade)
        values += [10.0**-decade * (0.1 + 0.9 * (i + 0.5) / parts) for i in range(parts)]
    return np.sort(np.array(values, np.float32))


@in_blocks
def dynamic(x, u):
    """The dynamic map, scaled to a row's largest."""
    values = jnp.asarray(dynamic_map())
    scale = jnp.maximum(x.max(axis=1, keepdims=True), jnp.finfo(x.dtype).tiny)
    x = x / scale
    above = jnp.clip(jnp.searchsorted(values, x), 1, values.size - 1)
    return scale * between(values[above - 1], values[above], x, u)


def exact(x, u):
    del u
    return x


def factored(x, u):
    """The mean of each row and of each column, as Adafactor keeps them."""
    del u
    rows, columns = (x.mean(axis=axis, keepdims=True) for axis in (1, 0))
    return rows * columns / jnp.maximum(x.mean(keepdims=True), jnp.finfo(x.dtype).tiny)


def each(code_g, code_x=None, plus=0.0):
    """Both averages by themselves, or `E + plus`."""

    def store(e_g, e_x, dithers, spare):
        codes = (code_g, code_x or code_g)
        kept = (f(e + plus, u) for f, e, u in zip(codes, (e_g, e_x), dithers, strict=True))
        return *(jnp.maximum(e - plus, 0) for e in kept), spare

    return store


def ratio(code_s, code_q=None, moving=True, after=False):
    """`S = E[g^2] + eps` and the ratio `q = (E[dx^2] + eps) / S`.

    With `moving` what is coded is q times the power of two below the S that is kept; with `after`
    the ratio is to that S.
    """

    def store(e_g, e_x, dithers, spare):
        s = e_g + EPS
        kept = code_s(s, dithers[0])
        q = (e_x + EPS) / (kept if after else s)
        by = power(kept) if moving else jnp.ones_like(kept)
        q = (code_q or code_s)(q * by, dithers[1]) / by
        return jnp.maximum(kept - EPS, 0), jnp.maximum(q * kept - EPS, 0), spare

    return store
