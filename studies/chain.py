"""What clipping before Adadelta costs, and how to make many small leaves cheap.

A step is the update and its application, with parameters and state donated. The kinds of step take
turns in one process: Adadelta alone, after Optax's clip by the global norm, after ours, inside
optax.flatten, and on parameters kept as one flat array.

    python -m studies.chain

It takes ten minutes and 8 GB. With `--table` it fills the tables of docs/performance.md.
"""

import gc
from typing import Any

import jax
import numpy as np
import optax
from tqdm import tqdm

from studies._lib.trees import CASES, SMOKE, Shape
from studies._lib.contenders import CLIP, EPS, RHO, Contender, of_optax
from studies._lib.report import (
    DOCS,
    RESULTS,
    check_writable,
    filled,
    load_all,
    markdown,
    options,
    provenance,
    run,
    save,
)
from studies.step import in_turns
from studies.step_report import versions
from optax_adadelta import adadelta, clip_by_global_norm

PAGE = DOCS / "performance.md"
ALONE, OURS, OPTAXS = "adadelta()", "clip_by_global_norm", "optax.clip_by_global_norm"
FLATTEN, FLAT = "optax.flatten", "one flat array"
FEW = 1000  # parameters, of which nanoseconds per parameter say nothing


def contenders(gradients: list[np.ndarray]) -> dict[str, Contender]:
    """Returns each kind of step."""
    rule = adadelta(rho=RHO, eps=EPS)
    flat = [np.concatenate([g.ravel() for g in gradients])]
    return {
        ALONE: of_optax(rule, gradients),
        OURS: of_optax(optax.chain(clip_by_global_norm(CLIP), rule), gradients),
        OPTAXS: of_optax(optax.chain(optax.clip_by_global_norm(CLIP), rule), gradients),
        FLATTEN: of_optax(optax.flatten(rule), gradients),
        FLAT: of_optax(rule, flat),
    }


def measure(shapes: list[Shape], rounds: int, progress: tqdm) -> dict[str, Any]:
    """Returns the measurements of one tree."""
    rng = np.random.default_rng(0)
    gradients = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    size = sum(g.size for g in gradients)
    steps = in_turns(contenders(gradients), rounds, 3 if size > 1e6 else 20, progress)
    gc.collect()
    jax.clear_caches()
    return {"parameters": size, "leaves": len(shapes), "steps": steps}


def clip_table(report: dict[str, Any]) -> str:
    """Returns nanoseconds and bytes per parameter, without and with each clip."""
    rows = []
    for name, case in report["cases"].items():
        if case["parameters"] < FEW:
            continue
        steps = [case["steps"][kind] for kind in (ALONE, OURS, OPTAXS)]
        seconds = [step["seconds"] for step in steps]
        rows.append(
            [
                name,
                *(f"{1e9 * s / case['parameters']:.2f}" for s in seconds),
                " / ".join(f"{step['bytes per parameter']:.0f}" for step in steps),
                f"{seconds[2] / seconds[1]:.2f}",
            ]
        )
    head = [f"`{ALONE}`", f"after `{OURS}`", f"after `{OPTAXS}`"]
    return markdown(["case", *head, "bytes per parameter", "times as fast as with Optax's"], rows)


def leaves_table(report: dict[str, Any]) -> str:
    """Returns milliseconds per step for the tree, flattened in the step, and kept flat."""
    rows = []
    for name, case in report["cases"].items():
        seconds = [case["steps"][kind]["seconds"] for kind in (ALONE, FLATTEN, FLAT)]
        rows.append(
            [
                name,
                str(case["leaves"]),
                *(f"{1e3 * s:.2f}" for s in seconds),
                *(f"{seconds[0] / s:.2f}" for s in seconds[1:]),
            ]
        )
    head = ["leaves", "tree, ms", f"`{FLATTEN}`, ms", f"{FLAT}, ms"]
    return markdown(["case", *head, f"`{FLATTEN}`: times as fast", f"{FLAT}: times as fast"], rows)


def parts(report: dict[str, Any]) -> dict[str, str]:
    """Returns the page's generated parts by name."""
    jax_version = ".".join(report["versions"]["jax"].split(".")[:2])
    said = f"{versions(report)}. Made by `{report['command']}`."
    return {
        f"clip {jax_version}": f"{said}\n\n{clip_table(report)}",
        f"leaves {jax_version}": f"{said}\n\n{leaves_table(report)}",
    }


def with_tables(page: str, reports: list[dict[str, Any]]) -> str:
    """Returns the page with the tables of these results."""
    for report in reports:
        for name, text in parts(report).items():
            page = filled(page, name, text)
    return page


def main() -> None:
    """Reads the options, measures or fills the page, and prints the results."""
    parser = options(__spec__.name, __doc__, "chain-BACKEND-jax-VERSION.json", PAGE)
    add = parser.add_argument
    text = "some of: " + ", ".join(CASES) + " (default: all)"
    add("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=text)
    add("--rounds", type=int, default=15, help="turns of each (default: %(default)s)")
    given = parser.parse_args()
    if given.table:
        page = with_tables(PAGE.read_text(encoding="utf-8"), load_all("chain-*.json"))
        PAGE.write_text(page, encoding="utf-8")
        return

    cases = SMOKE if given.smoke else {name: CASES[name] for name in given.cases}
    rounds = 1 if given.smoke else given.rounds
    output = given.output or (RESULTS / f"chain-{jax.default_backend()}-jax-{jax.__version__}.json")
    check_writable(output)
    report = provenance(parser, given) | {"cases": {}}
    with tqdm(total=rounds * len(cases), unit="turn") as progress:
        for name, shapes in cases.items():
            progress.set_description(name)
            report["cases"][name] = measure(shapes, rounds, progress)
            save(output, report)
    for name, case in report["cases"].items():
        seconds = {kind: step["seconds"] for kind, step in case["steps"].items()}
        print(
            f"{name}: {seconds[OPTAXS] / seconds[OURS]:.2f} times as fast with this clip as with"
            f" Optax's, {seconds[ALONE] / seconds[FLAT]:.1f} times as {FLAT}"
        )
    print(f"All of it: {output}")


if __name__ == "__main__":
    run(main)
