"""Compiles whole steps for an H100 and a TPU v5e without having one, and reads the programs.

A step is the update and its application in one jit, parameters and state donated. For each card,
storage and tree this reports the kernels per leaf, the bytes of main memory that they move per
parameter, scratch memory, copies, collectives, and the CPU seconds that the compiler takes. These
are properties of the program. Nothing runs, so nothing is said of time on the card.

Each case compiles in a process of its own.

Needs: the extra `accelerators`, as README.md says
"""

import argparse
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from optax_adadelta import stochastic_round
from studies._lib import workers
from studies._lib.cards import CARDS, devices_of
from studies._lib.cases import CASES as TREES
from studies._lib.cases import Shape
from studies._lib.contenders import step_of
from studies._lib.programs import read_program
from studies._lib.results import Report, Reports, Results, markdown, said
from studies._lib.storages import NADADELTAS, RULES, STORAGES
from studies._lib.study import Study, at_least, run
from studies._lib.timing import cpu_seconds

LONG = 10  # seconds of compiling, after which a case is not compiled again
FEW = 1000  # parameters, of which bytes per parameter say nothing


class Case(NamedTuple):
    """A step to compile; `chain` is "alone", "clip" or "stochastic_round"."""

    card: str
    rule: str
    shapes: list[Shape]
    dtype: str = "float32"
    chain: str = "alone"
    devices: int = 1
    repeats: int = 1


LARGE: Shape = (4096, 2048)
ONE_LEAF: list[Shape] = [(), (8192,), (784, 500), (3, 3, 64, 128), (50304, 768), (1, 1_000_000)]
ONE_LEAF.append(LARGE)
# What follows the card and the rule in a case, by the name that it has in the tables.
SETTINGS: dict[str, tuple] = {str(shape): ([shape],) for shape in ONE_LEAF}
SETTINGS |= {
    "12-layer transformer": (TREES["12-layer transformer"],),
    f"{LARGE}, clipped": ([LARGE], "float32", "clip"),
    f"{LARGE}, bfloat16, stochastic_round": ([LARGE], "bfloat16", "stochastic_round"),
    f"{LARGE}, complex64": ([LARGE], "complex64"),
    f"{LARGE}, four devices": ([LARGE], "float32", "alone", 4),
    f"{LARGE}, four devices, clipped": ([LARGE], "float32", "clip", 4),
}
ODD: list[Shape] = [(), (1,), (7,), (127,), (128,), (129,), (1023,), (65_537,), (1_000_003,)]
ODD += [(0,), (0, 3), (1, 1), (1_000_000, 1), (1, 1_000_000), (5, 3), (512, 512), (999, 1001)]
ODD += [(1, 1, 1), (7, 1, 9), (3, 3, 64, 128), (7, 7, 3, 64), (2, 3, 5, 7, 11), (50_304, 768)]
SMOKE = {name: SETTINGS[name] for name in ("()", "(8192,)")}


def compile_step(*given: Any) -> Report:
    """Returns the facts of a compiled step."""
    case = Case(*given)
    mesh = Mesh(devices_of(case.card, case.devices), ("data",))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))

    def on_card(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = rows if leaf.ndim and case.devices > 1 else whole
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    rule = {**RULES, **NADADELTAS}[case.rule]
    if case.chain == "clip":
        rule = optax.chain(optax.clip_by_global_norm(1.0), rule)
    elif case.chain == "stochastic_round":
        rule = optax.chain(rule, stochastic_round())
    shapes = [jax.ShapeDtypeStruct(shape, jnp.dtype(case.dtype)) for shape in case.shapes]
    params, state = jax.tree.map(on_card, (shapes, jax.eval_shape(rule.init, shapes)))
    # The first program takes longer to compile.
    jax.jit(jnp.negative).lower(on_card(jax.ShapeDtypeStruct((8,), jnp.float32))).compile()
    taken = []
    for _ in range(case.repeats):
        jax.clear_caches()
        lowered = jax.jit(step_of(rule), donate_argnums=(0, 1)).lower(params, state, params)
        start = cpu_seconds()
        program = lowered.compile()
        taken.append(cpu_seconds() - start)
        if sum(taken) > LONG:
            break
    sizes = [math.prod(p.sharding.shard_shape(p.shape)) for p in params]
    return {
        "leaves": len(sizes),
        "parameters on a device": sum(sizes),
        **read_program(program.as_text(), sizes),
        "scratch": program.memory_analysis().temp_size_in_bytes,
        "compile": round(min(taken), 2),
    }


def jobs(smoke: bool, repeats: int) -> Iterator[tuple[tuple[str, ...], Case]]:
    """Yields all that is compiled, with the place of its facts in the report."""
    for card in CARDS:
        for name, setting in (SMOKE if smoke else SETTINGS).items():
            for rule in RULES:
                case = Case(card, rule, *setting)._replace(repeats=repeats)
                yield (card, "cases", name, rule), case
        for shape in ODD[:1] if smoke else ODD:
            for rule in STORAGES:
                yield (card, "odd shapes", str(shape), rule), Case(card, rule, [shape])


def measure(given: argparse.Namespace, results: Results) -> None:
    todo = list(jobs(given.smoke, given.repeats))
    workers.measure("accelerators", todo, results, together=given.smoke)


COLUMNS: dict[str, Callable[[Report], str]] = {
    "kernels per leaf": lambda facts: f"{facts['kernels on leaves'] / facts['leaves']:.3g}",
    "bytes per parameter": lambda facts: bytes_per_parameter(facts),
    "compile, CPU s": lambda facts: f"{facts['compile']:.1f}",
}


def bytes_per_parameter(facts: Report) -> str:
    """Returns the bytes per parameter, if there are enough parameters to say."""
    count = facts["parameters on a device"]
    return f"{facts['bytes'] / count:.1f}" if count >= FEW else "-"


def table(card: str, found: Report) -> str:
    """Returns what was found for a card as Markdown."""
    rows, rules = [], list(next(iter(found["cases"].values())))
    for name, case in found["cases"].items():
        cells = [
            " / ".join("fails" if "failed" in case[rule] else cell(case[rule]) for rule in rules)
            for cell in COLUMNS.values()
        ]
        rows.append([name, *cells])
    failed = [
        f"{name} with {rule} ({facts['failed']})"
        for section in found.values()
        for name, case in section.items()
        for rule, facts in case.items()
        if "failed" in facts
    ]
    text = f"{len(found['odd shapes'])} other shapes were compiled. Failed: "
    text += "; ".join(failed) or "none"
    return f"{card}, {' / '.join(rules)}:\n\n{markdown(['leaf', *COLUMNS], rows)}\n\n{text}."


def tables(reports: Reports) -> dict[str, str]:
    report = reports["accelerators"]
    parts = [table(card, found) for card, found in report["cards"].items()]
    text = "\n\n".join([f"{said(report)}.", *parts])
    return {"accelerators": text}


def options(parser: argparse.ArgumentParser) -> None:
    text = "compilations of each case; the shortest counts (default: %(default)s)"
    parser.add_argument("--repeats", type=at_least(1), default=3, help=text)


STUDY = Study("accelerators", __doc__, "performance", measure, tables, options=options)

if __name__ == "__main__":
    workers.work(compile_step) if workers.is_worker() else run(STUDY)
