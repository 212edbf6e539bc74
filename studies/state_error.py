"""What quantized averages cost in accuracy: the same gradients, stored in many ways.

65,536 coordinates take 2,000 steps on gradients that do not depend on the parameters. Each has a
mean, noise and a scale between 1e-8 and 1e2. A quarter are zero in 95 % of the steps. Halfway, all
fall tenfold. There are three arrangements. In "mixed", neighbours have unrelated scales. In "rows",
the 128 of a row have scales within about a decade. "Heavy tails" is "mixed" with gradients from
Student's t distribution with three degrees of freedom, without a mean, a tenth of them mostly zero.

The error is that of the sum of all updates, compared with averages in float32: the root of the sum
of squares, relative to that of the exact sum. It takes a minute.

Measured are the package's storages. The results also have the forms of other optimizers and those
that were tried before the package's own were chosen; these are measured no more.
"""

import argparse
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from optax_adadelta import scale_by_adadelta, scale_by_nadadelta
from studies._lib.results import Report, Reports, Results, markdown
from studies._lib.storages import EPS, STORAGES
from studies._lib.study import Study, run

RHOS = (0.9, 0.95, 0.99)
ARRANGEMENTS = ("mixed", "rows", "heavy tails")
SHIPPED = {f"state_bits={bits}": ("adadelta", bits) for bits in STORAGES.values() if bits}
SHIPPED |= {f"nadadelta, {name}": ("nadadelta", bits) for name, (_, bits) in SHIPPED.items()}
BLOCK = 128  # of coordinates in a row


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


def make(name: str, rho: Any, bits: int | None) -> optax.GradientTransformation:
    """Returns the package's optimizer."""
    if name == "nadadelta":
        return scale_by_nadadelta(rho, state_bits=bits)
    return scale_by_adadelta(rho, EPS, state_bits=bits)


@functools.partial(jax.jit, static_argnames=("name", "bits"))
def moved_by(gradients, scale, rho, name, bits):
    """Returns the sum of the package's updates."""
    optimizer = make(name, rho, bits)

    def step(carry, g):
        state, moved = carry
        dx, state = optimizer.update(scale * g, state)
        return (state, moved + dx), None

    zeros = jnp.zeros_like(scale)
    return jax.lax.scan(step, (optimizer.init(zeros), zeros), gradients)[0][1]


def bytes_of_state(name: str, bits: int) -> float:
    """Returns the bytes of the averages and the trace, per parameter."""
    state = make(name, RHOS[0], bits).init(jnp.zeros((8, BLOCK)))
    parts = state.e_g, state.e_x, state.trace
    return sum(leaf.nbytes for leaf in jax.tree.leaves(parts)) / (8 * BLOCK)


def measure(given: argparse.Namespace, results: Results) -> None:
    found = results.load("state_error").get("results", {})
    arrangements = random_gradients(*((32, 20) if given.smoke else (512, 2000)))

    def everywhere(*optimizer):
        return {
            name: {rho: np.asarray(moved_by(*drawn, rho, *optimizer)) for rho in RHOS}
            for name, drawn in arrangements.items()
        }

    exactly = {name: everywhere(name, None) for name, _ in SHIPPED.values()}
    for name, (optimizer, bits) in tqdm(SHIPPED.items(), desc="Comparing", unit="storage"):
        moved, truth = everywhere(optimizer, bits), exactly[optimizer]
        found[name] = {"bytes per parameter": bytes_of_state(optimizer, bits), "shipped": True} | {
            arrangement: {f"rho {rho}": error(moved[arrangement][rho], true[rho]) for rho in RHOS}
            for arrangement, true in truth.items()
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
    rows = []
    for name, row in reports["state_error"]["results"].items():
        errors = (cell(row[arrangement]["rho 0.95"]) for arrangement in ARRANGEMENTS)
        state = f"**`{name}`**" if row["shipped"] else name
        rows.append([state, *errors, f"{row['bytes per parameter']:.3g}"])
    head = ["state", *(f"{name}, %" for name in ARRANGEMENTS), "bytes per parameter"]
    return {"state errors": markdown(head, rows)}


def cell(result: Report) -> str:
    """Returns an error in percent with two digits."""
    if result["diverged"]:
        return "diverges"
    percent = result["percent"]
    return f"{percent:.{max(1 - math.floor(math.log10(percent)), 0)}f}" if percent else "0"


STUDY = Study("state_error", __doc__, "quantization", measure, tables)

if __name__ == "__main__":
    run(STUDY)
