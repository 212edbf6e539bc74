"""What quantized averages cost in accuracy: the same gradients, stored in many ways.

65,536 coordinates take 2,000 steps on gradients that do not depend on the parameters. Each has a
mean, noise and a scale between 1e-8 and 1e2. A quarter are zero in 95 % of the steps. Halfway, all
fall tenfold. There are three arrangements. In "mixed", neighbours have unrelated scales. In "rows",
the 128 of a row have scales within about a decade. "Heavy tails" is "mixed" with gradients from
Student's t distribution with three degrees of freedom, without a mean, a tenth of them mostly zero.

The error is that of the sum of all updates, compared with averages in float32: the root of the sum
of squares, relative to that of the exact sum.

    pip install -e ".[examples]" && python -m studies.state_error
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from studies import _codes as codes
from studies._lib.report import (
    DOCS,
    check_writable,
    filled,
    load,
    markdown,
    options,
    provenance,
    run,
    save,
)
from studies._lib.report import RESULTS as FOLDER
from optax_adadelta import scale_by_adadelta

PAGE = DOCS / "quantization.md"
RESULTS = FOLDER / "state_error.json"
PART = "state errors"
RHOS = (0.9, 0.95, 0.99)
ARRANGEMENTS = ("mixed", "rows", "heavy tails")
SHIPPED = {"state_bits=16": 16, "state_bits=8": 8}


class Variant(NamedTuple):
    """A way to store the averages: bytes per parameter, what is stored, and the dither."""

    bytes: float
    store: Callable[..., Any]
    dither: Callable[..., Any] = codes.weyl


def in_blocks(bits: float, head: int = 4, block: int = codes.BLOCK) -> float:
    """Bytes per parameter: the bits of both averages, and the bytes that each block adds."""
    return bits / 8 + head / block


E, D = "E[g²]", "E[dx²]"
FLOAT16 = codes.each(codes.short_float(10, codes.EPS), codes.short_float(11, codes.EPS))
OCTAVES = codes.octaves()
TAPERED = (codes.fixed(1.0, (33, 6), (28, 2)), codes.fixed(0.5, (10, 18), (37, 2)))
FACTORED = 4 + 4 * (512 + 128) / (512 * 128)
ALTERNATIVES = {
    "bfloat16, to nearest": Variant(4, codes.each(codes.bfloat16)),
    "16 bits, 10 of mantissa for both": Variant(4, codes.each(codes.short_float(10, codes.EPS))),
    "16 bits, random dither": Variant(4, FLOAT16, codes.random),
    "16 bits, to nearest": Variant(4, FLOAT16, codes.nearest),
    f"factored {D}, {E} float32": Variant(FACTORED, codes.each(codes.exact, codes.factored)),
    f"factored {E}, {D} float32": Variant(FACTORED, codes.each(codes.factored, codes.exact)),
    "8 bits, random dither": Variant(2, codes.ratio(*TAPERED), codes.random),
    "8 bits, to nearest": Variant(2, codes.ratio(*TAPERED), codes.nearest),
    "8 bits, 5 and 16 codes in each octave": Variant(
        2, codes.ratio(codes.fixed(1.0, (51, 5)), codes.fixed(0.5, (15, 16)))
    ),
    "8 bits, three segments in each grid": Variant(
        2,
        codes.ratio(
            codes.fixed(1.0, (30, 6), (10, 4), (35, 1)), codes.fixed(0.5, (9, 18), (8, 8), (29, 1))
        ),
    ),
    f"8 bits, {D} + eps itself": Variant(
        2, codes.each(TAPERED[0], codes.fixed(1.0, (10, 18), (37, 2)), plus=codes.EPS)
    ),
    "8 bits, the ratio itself": Variant(
        2, codes.ratio(TAPERED[0], codes.fixed(2.0**-40, (63, 4)), moving=False)
    ),
    "8 bits, octaves of blocks of 128": Variant(in_blocks(16), codes.ratio(OCTAVES)),
    "8 bits, octaves of blocks of 128, to nearest": Variant(
        in_blocks(16), codes.ratio(OCTAVES), codes.nearest
    ),
    "8 bits, linear in blocks": Variant(in_blocks(16, 8), codes.each(codes.linear)),
    "8 bits, bitsandbytes' dynamic map in blocks": Variant(
        in_blocks(16, 8), codes.each(codes.dynamic)
    ),
    "8 bits, fp8 e4m3 of the root of E + eps in blocks": Variant(
        in_blocks(16, 8), codes.each(codes.e4m3_root, plus=codes.EPS)
    ),
    f"8 bits for {E}, 4 for the ratio, in blocks": Variant(
        in_blocks(12), codes.ratio(codes.octaves(256), codes.octaves(16))
    ),
}


def random_gradients(rows: int, steps: int) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Gradients of scale 1 for all steps, and a scale for each coordinate, by arrangement."""
    random = np.random.default_rng(0)
    shape = (rows, codes.BLOCK)

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
    """The sum of the package's updates."""
    optimizer = scale_by_adadelta(rho, codes.EPS, state_bits=bits)

    def step(carry, g):
        state, moved = carry
        dx, state = optimizer.update(scale * g, state)
        return (state, moved + dx), None

    first = optimizer.init(scale), jnp.zeros_like(scale)
    return jax.lax.scan(step, first, gradients)[0][1]


@functools.partial(jax.jit, static_argnames=("store", "dither"))
def through_store(gradients, scale, rho, store, dither):
    """The sum of the updates, each computed from the averages as they are kept."""
    eps, new = codes.EPS, 1 - rho
    zeros = jnp.zeros_like(scale)
    index = jnp.arange(scale.size, dtype=jnp.uint32).reshape(scale.shape)

    def step(carry, given):
        e_g, e_x, spare, moved = carry
        count, g = given
        g = scale * g
        e_g = rho * e_g + new * g**2
        e_x = rho * e_x + new * g**2 / (e_g + eps) * (e_x + eps)
        e_g, e_x, spare = store(e_g, e_x, dither(count, index), spare)
        # E[dx^2] + eps from before the step over E[g^2] + eps, both from the averages after it.
        dx = g * jnp.sqrt((e_x + rho * eps) / (rho * (e_g + eps) + new * g**2))
        return (e_g, e_x, spare, moved + dx), None

    counts = jnp.arange(len(gradients), dtype=jnp.uint32)
    return jax.lax.scan(step, (zeros, zeros, (zeros, zeros), zeros), (counts, gradients))[0][3]


def bytes_of_state(bits: int, scale) -> float:
    state = scale_by_adadelta(state_bits=bits).init(scale)
    return sum(leaf.nbytes for leaf in jax.tree.leaves((state.e_g, state.e_x))) / scale.size


def run_all(smoke: bool) -> dict:
    """The errors of every variant, in every arrangement, for every rho."""
    arrangements = random_gradients(*((32, 20) if smoke else (512, 2000)))

    def everywhere(moves, *static):
        return {
            name: {rho: np.asarray(moves(*given, rho, *static)) for rho in RHOS}
            for name, given in arrangements.items()
        }

    exact = everywhere(through_package, None)
    results = {}
    for name in tqdm((*SHIPPED, *ALTERNATIVES), desc="Comparing", unit="variant"):
        if name in SHIPPED:
            size = bytes_of_state(SHIPPED[name], arrangements["mixed"][1])
            moved = everywhere(through_package, SHIPPED[name])
        else:
            size, store, dither = ALTERNATIVES[name]
            moved = everywhere(through_store, store, dither)
        results[name] = {"bytes per parameter": size, "shipped": name in SHIPPED} | {
            arrangement: {f"rho {rho}": error(moved[arrangement][rho], true[rho]) for rho in RHOS}
            for arrangement, true in exact.items()
        }
    return dict(sorted(results.items(), key=place))


def error(moved, exact) -> dict:
    """The squared distance over the square of what is true, its root in percent, if finite."""
    moved, exact = (x.astype(np.float64) for x in (moved, exact))
    nmse = float(np.sum((moved - exact) ** 2) / np.sum(exact**2))
    if not math.isfinite(nmse):
        return {"NMSE": None, "percent": None, "diverged": True}
    return {"NMSE": nmse, "percent": 100 * nmse**0.5, "diverged": nmse > 1}


def place(result) -> tuple:
    """Where a row belongs: the largest state first, then the smallest error at rho 0.95."""
    row = result[1]
    nmse = [row[arrangement]["rho 0.95"]["NMSE"] for arrangement in ARRANGEMENTS]
    return -int(row["bytes per parameter"]), math.inf if None in nmse else max(nmse)


def table(report: dict) -> str:
    """The results as Markdown."""
    rhos = " / ".join(map(str, RHOS))
    errors = (f"{name}, % at rho {rhos}" for name in ARRANGEMENTS)
    nmse = "NMSE at rho 0.95, " + " / ".join(ARRANGEMENTS)
    head = ["state", "bytes per parameter", *errors, nmse]
    rows = []
    for name, row in report["results"].items():
        cells = [f"**`{name}`**" if row["shipped"] else name, f"{row['bytes per parameter']:.3g}"]
        cells += [" / ".join(map(cell, row[a].values())) for a in ARRANGEMENTS]
        nmse = (row[a]["rho 0.95"]["NMSE"] for a in ARRANGEMENTS)
        cells.append(" / ".join("-" if x is None else f"{x:.1e}" for x in nmse))
        rows.append(cells)
    return markdown(head, rows)


def cell(result: dict) -> str:
    """An error in percent with two digits."""
    if result["diverged"]:
        return "diverges"
    percent = result["percent"]
    return f"{percent:.{max(1 - math.floor(math.log10(percent)), 0)}f}" if percent else "0"


def with_table(page: str, report: dict) -> str:
    """The page with its table made anew."""
    return filled(page, PART, table(report))


def main() -> None:
    """Reads the options, compares, writes, and prints the results."""
    parser = options(__spec__.name, __doc__, "state_error.json", PAGE)
    given = parser.parse_args()

    if given.table:
        report = load(given.output)
        PAGE.write_text(with_table(PAGE.read_text("utf-8"), report), encoding="utf-8")
        print(f"The table is in {PAGE}")
        return
    check_writable(given.output)
    report = provenance(parser, given) | {"results": run_all(given.smoke)}
    save(given.output, report)
    print(table(report))
    print("Errors are of the sum of the updates, root of squares, against averages in float32.")
    print(f"Results: {given.output}")


if __name__ == "__main__":
    run(main)
