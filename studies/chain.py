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
from studies._lib.results import Report, Reports, Results, markdown
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


def compared(reports: Reports, slow: str, *fast: str, few: int = 0) -> str:
    """Returns how many times as fast as one kind of step others are, on each machine."""
    machines = {}
    for report in reports.values():  # The newest JAX of each machine comes last.
        machines[report["machine"].rpartition(", ")[2]] = report["cases"]
    rows = []
    for name, case in reports[next(iter(reports))]["cases"].items():
        steps = [found[name]["steps"] if name in found else None for found in machines.values()]
        cells = [
            f"{s[slow]['seconds'] / s[kind]['seconds']:.2f}" if s else ""
            for kind in fast
            for s in steps
        ]
        if case["parameters"] >= few:
            rows.append([name, *cells, str(case["leaves"])])
    kinds = [f"{kind}, " if len(fast) > 1 else "" for kind in fast]
    head = [f"{kind}{machine}" for kind in kinds for machine in machines]
    return markdown(["times as fast", *head, "leaves"], rows)


def tables(reports: Reports) -> dict[str, str]:
    return {
        "clip": compared(reports, OPTAXS, OURS, few=FEW),
        "leaves": compared(reports, ALONE, FLAT, FLATTEN),
    }


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
