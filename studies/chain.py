"""What clipping before Adadelta costs, and how to make many small leaves cheap.

A step is the update and its application, with parameters and state donated. The kinds of step take
turns in one process: Adadelta alone, after Optax's clip by the global norm, after ours, inside
optax.flatten, and on parameters kept as one flat array. It takes ten minutes and 8 GB.
"""

import argparse

import numpy as np
import optax

from optax_adadelta import clip_by_global_norm
from studies._lib import cases
from studies._lib.cases import CASES, SMOKE, Shape
from studies._lib.contenders import CLIP, gradients_of, of_optax
from studies._lib.results import Report, Reports, Results, markdown, said
from studies._lib.storages import RULES
from studies._lib.study import Study, run
from studies._lib.timing import in_turns

ALONE, OURS, OPTAXS = "adadelta()", "clip_by_global_norm", "optax.clip_by_global_norm"
FLATTEN, FLAT = "optax.flatten", "one flat array"
FEW = 1000  # parameters, of which nanoseconds per parameter say nothing


def measure_case(shapes: list[Shape], rounds: int) -> Report:
    """Returns the measurements of one tree."""
    rule, gradients = RULES["float32"], gradients_of(shapes)
    flat = np.concatenate([g.ravel() for g in gradients])
    steps = {
        ALONE: of_optax(rule, gradients),
        OURS: of_optax(optax.chain(clip_by_global_norm(CLIP), rule), gradients),
        OPTAXS: of_optax(optax.chain(optax.clip_by_global_norm(CLIP), rule), gradients),
        FLATTEN: of_optax(optax.flatten(rule), gradients),
        FLAT: of_optax(rule, [flat]),
    }
    return {"steps": in_turns(steps, rounds, samples=3 if flat.size > 1e6 else 20)}


def measure(given: argparse.Namespace, results: Results) -> None:
    chosen = SMOKE if given.smoke else {name: CASES[name] for name in given.cases}
    rounds = 2 if given.smoke else given.rounds
    cases.measure_each("chain", chosen, lambda shapes: measure_case(shapes, rounds), results)


def clip_table(report: Report) -> str:
    """Returns nanoseconds and bytes per parameter, without and with each clip."""
    rows = []
    for name, case in report["cases"].items():
        if case["parameters"] >= FEW:
            steps = [case["steps"][kind] for kind in (ALONE, OURS, OPTAXS)]
            seconds = [step["seconds"] for step in steps]
            row = [f"{1e9 * s / case['parameters']:.2f}" for s in seconds]
            row.append(" / ".join(f"{step['bytes per parameter']:.0f}" for step in steps))
            rows.append([name, *row, f"{seconds[2] / seconds[1]:.2f}"])
    head = [f"`{ALONE}`", f"after `{OURS}`", f"after `{OPTAXS}`"]
    return markdown(["case", *head, "bytes per parameter", "times as fast as with Optax's"], rows)


def leaves_table(report: Report) -> str:
    """Returns milliseconds per step for the tree, flattened in the step, and kept flat."""
    rows = []
    for name, case in report["cases"].items():
        seconds = [case["steps"][kind]["seconds"] for kind in (ALONE, FLATTEN, FLAT)]
        row = [
            *(f"{1e3 * s:.2f}" for s in seconds),
            *(f"{seconds[0] / s:.2f}" for s in seconds[1:]),
        ]
        rows.append([name, str(case["leaves"]), *row])
    head = ["leaves", "tree, ms", f"`{FLATTEN}`, ms", f"{FLAT}, ms"]
    return markdown(["case", *head, f"`{FLATTEN}`: times as fast", f"{FLAT}: times as fast"], rows)


def tables(reports: Reports) -> dict[str, str]:
    made = {}
    for report in reports.values():
        jax_version = ".".join(report["versions"]["jax"].split(".")[:2])
        made[f"clip {jax_version}"] = f"{said(report)}.\n\n{clip_table(report)}"
        made[f"leaves {jax_version}"] = f"{said(report)}.\n\n{leaves_table(report)}"
    return made


STUDY = Study(
    "chain",
    __doc__,
    "performance",
    measure,
    tables,
    options=lambda parser: cases.options(parser, rounds=15),
    files="chain-*",
)

if __name__ == "__main__":
    run(STUDY)
