"""What quantized averages cost in accuracy: the same gradients, stored in many ways.

65,536 coordinates take 2,000 steps on gradients that do not depend on the parameters. Each has a
mean, noise and a scale between 1e-8 and 1e2. A quarter are zero in 95 % of the steps. Halfway, all
fall tenfold. There are three arrangements. In "mixed", neighbours have unrelated scales. In "rows",
the 128 of a row have scales within about a decade. "Heavy tails" is "mixed" with gradients from
Student's t distribution with three degrees of freedom, without a mean, a tenth of them mostly zero.

The error is that of the sum of all updates, compared with averages in float32: the root of the sum
of squares, relative to that of the exact sum. It takes two minutes.

Measured are the package's storages and those of other optimizers. The results also have the forms
that were tried before the package's own were chosen; they are measured no more.
"""

import argparse
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from optax_adadelta import scale_by_adadelta
from studies._lib.results import Report, Reports, Results, markdown
from studies._lib.storages import EPS, STORAGES
from studies._lib.study import Study, run

RHOS = (0.9, 0.95, 0.99)
ARRANGEMENTS = ("mixed", "rows", "heavy tails")
SHIPPED = {f"state_bits={bits}": bits for bits in STORAGES.values() if bits}
BLOCK = 128
TINY = float(np.finfo(np.float32).tiny)
Code = Callable[[jax.Array, jax.Array], jax.Array]


class Variant(NamedTuple):
    """A way to store both averages, nothing packed: codes return what would be read back.

    Attributes:
      bytes: per parameter.
      codes: of E[g^2] and of E[dx^2], functions of the values and of uniform random numbers.
      plus: what is added to the averages before they are stored.
    """

    bytes: float
    codes: tuple[Code, Code]
    plus: float = 0.0


def exact(x, u):
    """Float32."""
    del u
    return x


def bfloat16(x, u):
    """Bfloat16, rounded to nearest."""
    del u
    return x.astype(jnp.bfloat16).astype(jnp.float32)


def factored(x, u):
    """The mean of each row and of each column, as Adafactor keeps them."""
    del u
    rows, columns = (x.mean(axis=axis, keepdims=True) for axis in (1, 0))
    return rows * columns / jnp.maximum(x.mean(keepdims=True), TINY)


def linear(x, u):
    """Multiples of a 255th of the largest of a row."""
    step = jnp.maximum(x.max(axis=1, keepdims=True) / 255, TINY)
    return step * jnp.floor(x / step + u)


def e4m3_root(x, u):
    """The root as a float of 4 bits of exponent and 3 of mantissa, scaled to a row's largest."""
    root = jnp.sqrt(x)
    scale = root.max(axis=1, keepdims=True) / 448
    root = root / scale
    step = jnp.maximum(jnp.exp2(jnp.floor(jnp.log2(root))), 2.0**-6) / 8
    return jnp.square(scale * step * jnp.floor(root / step + u))


def dynamic_map() -> np.ndarray:
    """Returns the 256 values of bitsandbytes' unsigned dynamic map.

    From its description (Dettmers, arXiv 1511.04561 and 2110.02861): leading zeros are a power of
    ten, the bits after the first one a fraction, here the middles of equal parts of [0.1, 1].
    """
    values = [0.0, 1.0]
    for decade in range(7):
        parts = 2 ** (7 - decade)
        values += [10.0**-decade * (0.1 + 0.9 * (i + 0.5) / parts) for i in range(parts)]
    return np.sort(np.array(values, np.float32))


def dynamic(x, u):
    """The dynamic map, scaled to a row's largest."""
    values = jnp.asarray(dynamic_map())
    scale = jnp.maximum(x.max(axis=1, keepdims=True), TINY)
    x = x / scale
    above = jnp.clip(jnp.searchsorted(values, x), 1, values.size - 1)
    low, high = values[above - 1], values[above]
    return scale * jnp.where((1 - u) * (high - low) < x - low, high, low)


FACTORED = 4 + 4 * (512 + 128) / (512 * 128)
OF_BLOCKS = 2 + 8 / BLOCK  # Each average has a float32 for each block.
ALTERNATIVES = {
    "bfloat16, to nearest": Variant(4, (bfloat16, bfloat16)),
    "factored E[dx²], E[g²] float32": Variant(FACTORED, (exact, factored)),
    "factored E[g²], E[dx²] float32": Variant(FACTORED, (factored, exact)),
    "8 bits, linear in blocks": Variant(OF_BLOCKS, (linear, linear)),
    "8 bits, bitsandbytes' dynamic map in blocks": Variant(OF_BLOCKS, (dynamic, dynamic)),
    "8 bits, fp8 e4m3 of the root of E + eps in blocks": Variant(
        OF_BLOCKS, (e4m3_root, e4m3_root), EPS
    ),
}


def random_gradients(rows: int, steps: int) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Returns gradients of scale 1 for all steps, and each coordinate's scale, by arrangement."""
    random = np.random.default_rng(0)
    shape = (rows, BLOCK)

    def drawn(noise: Callable[..., Any], mean: Any, share: float, name: str) -> jax.Array:
        rarely = random.random(shape) < share
        made = np.empty((steps, *shape), np.float32)
        for step, g in enumerate(tqdm(made, desc=f"Drawing {name}", unit="step")):
            g[:] = (mean + noise()) * (1 if 2 * step < steps else 0.1)
            g[rarely & (random.random(shape) > 0.05)] = 0
        return jnp.asarray(made)

    mean = 0.3 * random.standard_normal(shape, np.float32)
    normal = drawn(lambda: random.standard_normal(shape, np.float32), mean, 0.25, "normal noise")
    heavy = drawn(lambda: random.standard_t(3, shape), 0, 0.1, "heavy tails")
    mixed = jnp.asarray(10 ** random.uniform(-8, 2, shape), jnp.float32)
    rows_alike = 10 ** (random.uniform(-8, 2, (rows, 1)) + 0.5 * random.standard_normal(shape))
    return {
        "mixed": (normal, mixed),
        "rows": (normal, jnp.asarray(rows_alike, jnp.float32)),
        "heavy tails": (heavy, mixed),
    }


@functools.partial(jax.jit, static_argnames="bits")
def through_package(gradients, scale, rho, bits):
    """Returns the sum of the package's updates."""
    optimizer = scale_by_adadelta(rho, EPS, state_bits=bits)

    def step(carry, g):
        state, moved = carry
        dx, state = optimizer.update(scale * g, state)
        return (state, moved + dx), None

    zeros = jnp.zeros_like(scale)
    return jax.lax.scan(step, (optimizer.init(zeros), zeros), gradients)[0][1]


@functools.partial(jax.jit, static_argnames="variant")
def through_variant(gradients, scale, rho, variant):
    """Returns the sum of the updates with averages that are stored so."""

    def step(carry, given):
        (e_g, e_x, moved), (key, g) = carry, given
        g = scale * g
        e_g = rho * e_g + (1 - rho) * g**2
        dx = jnp.sqrt(e_x + EPS) / jnp.sqrt(e_g + EPS) * g
        averages = e_g, rho * e_x + (1 - rho) * dx**2
        kept = [
            jnp.maximum(code(e + variant.plus, u) - variant.plus, 0)
            for code, e, u in zip(
                variant.codes, averages, jax.random.uniform(key, (2, *g.shape)), strict=True
            )
        ]
        return (*kept, moved + dx), None

    zeros, keys = jnp.zeros_like(scale), jax.random.split(jax.random.key(0), len(gradients))
    return jax.lax.scan(step, (zeros, zeros, zeros), (keys, gradients))[0][2]


def bytes_of_state(bits: int) -> float:
    """Returns the bytes of both averages, per parameter."""
    state = scale_by_adadelta(state_bits=bits).init(jnp.zeros((8, BLOCK)))
    return sum(leaf.nbytes for leaf in jax.tree.leaves((state.e_g, state.e_x))) / (8 * BLOCK)


def measure(given: argparse.Namespace, results: Results) -> None:
    found = results.load("state_error").get("results", {})
    arrangements = random_gradients(*((32, 20) if given.smoke else (512, 2000)))

    def everywhere(moves, how):
        return {
            name: {rho: np.asarray(moves(*drawn, rho, how)) for rho in RHOS}
            for name, drawn in arrangements.items()
        }

    exactly = everywhere(through_package, None)
    for name in tqdm((*SHIPPED, *ALTERNATIVES), desc="Comparing", unit="variant"):
        if name in SHIPPED:
            size = bytes_of_state(SHIPPED[name])
            moved = everywhere(through_package, SHIPPED[name])
        else:
            size = ALTERNATIVES[name].bytes
            moved = everywhere(through_variant, ALTERNATIVES[name])
        found[name] = {"bytes per parameter": size, "shipped": name in SHIPPED} | {
            arrangement: {f"rho {rho}": error(moved[arrangement][rho], true[rho]) for rho in RHOS}
            for arrangement, true in exactly.items()
        }
    found = dict(sorted(found.items(), key=place))
    results.save("state_error", {**results.made, "results": found})


def error(moved, exact) -> Report:
    """Returns the squared distance over the square of what is true, and its root in percent."""
    moved, exact = (x.astype(np.float64) for x in (moved, exact))
    nmse = float(np.sum((moved - exact) ** 2) / np.sum(exact**2))
    if not math.isfinite(nmse):
        return {"NMSE": None, "percent": None, "diverged": True}
    return {"NMSE": nmse, "percent": 100 * nmse**0.5, "diverged": nmse > 1}


def place(result) -> tuple:
    """Returns where a row belongs: the largest state first, then the smallest error."""
    row = result[1]
    nmse = [row[arrangement]["rho 0.95"]["NMSE"] for arrangement in ARRANGEMENTS]
    return -int(row["bytes per parameter"]), math.inf if None in nmse else max(nmse)


def tables(reports: Reports) -> dict[str, str]:
    rhos = " / ".join(map(str, RHOS))
    errors = (f"{name}, % at rho {rhos}" for name in ARRANGEMENTS)
    nmse = "NMSE at rho 0.95, " + " / ".join(ARRANGEMENTS)
    rows = []
    for name, row in reports["state_error"]["results"].items():
        cells = [f"**`{name}`**" if row["shipped"] else name, f"{row['bytes per parameter']:.3g}"]
        cells += [" / ".join(map(cell, row[a].values())) for a in ARRANGEMENTS]
        found = (row[a]["rho 0.95"]["NMSE"] for a in ARRANGEMENTS)
        cells.append(" / ".join("-" if x is None else f"{x:.1e}" for x in found))
        rows.append(cells)
    return {"state errors": markdown(["state", "bytes per parameter", *errors, nmse], rows)}


def cell(result: Report) -> str:
    """Returns an error in percent with two digits."""
    if result["diverged"]:
        return "diverges"
    percent = result["percent"]
    return f"{percent:.{max(1 - math.floor(math.log10(percent)), 0)}f}" if percent else "0"


STUDY = Study("state_error", __doc__, "quantization", measure, tables)

if __name__ == "__main__":
    run(STUDY)
