"""Compiles whole steps for an H100 and a TPU v5e without having one, and reads the programs.

A step is the update and its application in one jit, parameters and state donated. For each card,
storage and tree this reports the kernels per leaf, the bytes of main memory that they move per
parameter, scratch memory, copies, collectives, and the CPU seconds that the compiler takes. These
are properties of the program. Nothing runs, so nothing is said of time on the card.

A compiler can abort its process or take hours, so each case compiles in a process of its own. A
case that ends so is reported as failed, and the others go on.

    pip install -e ".[accelerators]" && python -m studies.accelerators

CONTRIBUTING.md says how to install the extra. It takes twenty minutes.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from studies._lib.cards import CARDS, devices_of, environment, problem
from studies._lib.trees import CASES as TREES
from studies._lib.trees import Shape
from studies._lib.programs import read_program
from studies._lib.report import (
    RESULTS,
    check_writable,
    filled,
    load,
    markdown,
    options,
    provenance,
    run,
    save,
)
from studies.step_report import versions
from optax_adadelta import adadelta, stochastic_round

PART = "accelerators"
ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
OUTPUT = RESULTS / "accelerators.json"
PACKAGES = ("optax_adadelta", "jax", "jaxlib", "optax", *sum(CARDS.values(), ()))
LIMIT = 300  # seconds for a case, after which its process is stopped
LONG = 10  # seconds of compiling, after which a case is not compiled again
WORKER = [sys.executable, "-m", "studies.accelerators", "--work"]
FEW = 1000  # parameters, of which bytes per parameter say nothing
RULES = {
    "float32": adadelta(),
    "16 bits": adadelta(state_bits=16),
    "8 bits": adadelta(state_bits=8),
    "optax": optax.adadelta(1.0, 0.95),
}
STORAGES = ("float32", "16 bits", "8 bits")


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


def cpu_seconds() -> float:
    """Returns the seconds of this process and of those that it started and that ended."""
    return sum(os.times()[:4])


def compile_step(case: Case) -> dict[str, Any]:
    """Returns the facts of a compiled step."""
    mesh = Mesh(devices_of(case.card, case.devices), ("data",))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))

    def on_card(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = rows if leaf.ndim and case.devices > 1 else whole
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    rule = RULES[case.rule]
    if case.chain == "clip":
        rule = optax.chain(optax.clip_by_global_norm(1.0), rule)
    elif case.chain == "stochastic_round":
        rule = optax.chain(rule, stochastic_round())

    def step(params, state, grads):
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    shapes = [jax.ShapeDtypeStruct(shape, jnp.dtype(case.dtype)) for shape in case.shapes]
    params, state = jax.tree.map(on_card, (shapes, jax.eval_shape(rule.init, shapes)))
    # The first program takes longer to compile.
    jax.jit(jnp.negative).lower(on_card(jax.ShapeDtypeStruct((8,), jnp.float32))).compile()
    taken = []
    for _ in range(case.repeats):
        jax.clear_caches()
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)
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


def work(cases: list[list[Any]], compile_case: Callable[..., dict[str, Any]]) -> None:
    """Compiles the cases and prints a line of JSON for each; its parent reads them."""
    for case in cases:
        signal.alarm(LIMIT)
        try:
            facts = compile_case(*case)
        except Exception as error:
            facts = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        print(json.dumps(facts), flush=True)


def compiled(
    cases: Sequence[tuple], together: bool = False, worker: list[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yields the facts of each case, or how it failed.

    Each case has a process of its own; `together`, a process goes on with the next case until one
    ends it. A process runs `worker`, a command that calls `work`.
    """
    remaining = list(cases)
    while remaining:
        batch = remaining if together else remaining[:1]
        done = subprocess.run(
            worker or WORKER,
            cwd=ROOT,
            input=json.dumps(batch),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=environment(),
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if len(lines) < len(batch):
            lines.append({"failed": ended(done.returncode, done.stderr)})
        yield from lines
        remaining = remaining[len(lines) :]


def ended(code: int, stderr: str) -> str:
    """Returns why a process that did not report ended."""
    if code == -signal.SIGALRM:
        return f"no program after {LIMIT} s"
    if code < 0:
        checks = [line for line in stderr.splitlines() if "Check fail" in line]
        said = f": {checks[0].partition('] ')[2][:200]}" if checks else ""
        return f"{signal.Signals(-code).name}{said}"
    return f"exit {code}: {(stderr.splitlines() or [''])[-1][:200]}"


def jobs(card: str, smoke: bool, repeats: int) -> Iterator[tuple[str, str, str, Case]]:
    """Yields the section of the report, the name, the rule and the case of all that is compiled."""
    for name, setting in (SMOKE if smoke else SETTINGS).items():
        for rule in RULES:
            yield "cases", name, rule, Case(card, rule, *setting)._replace(repeats=repeats)
    for shape in ODD[:1] if smoke else ODD:
        for rule in STORAGES:
            yield "odd shapes", str(shape), rule, Case(card, rule, [shape])


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "kernels per leaf": lambda facts: f"{facts['kernels on leaves'] / facts['leaves']:.3g}",
    "bytes per parameter": lambda facts: per_parameter(facts, "bytes", ".1f"),
    "scratch": lambda facts: per_parameter(facts, "scratch", ".1f"),
    "copies": lambda facts: f"{facts['copies']}",
    "collectives": lambda facts: f"{facts['collectives']}",
    "compile, CPU s": lambda facts: f"{facts['compile']:.1f}",
}


def per_parameter(facts: dict[str, Any], key: str, form: str) -> str:
    """Returns the bytes per parameter, if there are enough parameters to say."""
    count = facts["parameters on a device"]
    return f"{facts[key] / count:{form}}" if count >= FEW else "-"


def table(card: str, found: dict[str, Any]) -> str:
    """Returns what was found for a card as Markdown."""
    rows = []
    for name, case in found["cases"].items():
        cells = [
            " / ".join("fails" if "failed" in case[rule] else cell(case[rule]) for rule in RULES)
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
    odd = ", ".join(found["odd shapes"])
    return (
        f"{card}, {' / '.join(RULES)}:\n\n{markdown(['leaf', *COLUMNS], rows)}\n\n"
        f"Other shapes that were compiled with {', '.join(STORAGES)}: {odd}. "
        f"Failed: {'; '.join(failed) or 'none'}."
    )


def tables(report: dict[str, Any]) -> str:
    """Returns all that was found as Markdown."""
    said = f"{versions(report)}. Made by `{report['command']}`."
    return "\n\n".join([said, *(table(card, found) for card, found in report["cards"].items())])


def main() -> None:
    """Reads the options, compiles, writes, and prints the results."""
    parser = options(__spec__.name, __doc__, "accelerators.json", PAGE)
    add = parser.add_argument
    text = "compilations of each case; the shortest counts (default: %(default)s)"
    add("--repeats", type=int, default=3, help=text)
    add("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(json.load(sys.stdin), lambda *case: compile_step(Case(*case)))
        return
    if given.table:
        report = load(given.output)
        page = filled(PAGE.read_text("utf-8"), PART, tables(report))
        PAGE.write_text(page, encoding="utf-8")
        print(f"{given.output} is in {PAGE}")
        return
    if given.repeats < 1:
        parser.error("--repeats must be at least 1")
    if problems := list(filter(None, map(problem, CARDS))):
        parser.error("; ".join(problems) + " (CONTRIBUTING.md says how)")

    todo = [job for card in CARDS for job in jobs(card, given.smoke, given.repeats)]
    jax.config.update("jax_platforms", "cpu")
    check_writable(given.output)
    report = provenance(parser, given, PACKAGES) | {"cards": {}}
    progress = tqdm(todo, unit="case")
    results = compiled([case for *_, case in todo], together=given.smoke)
    for (section, name, rule, case), facts in zip(progress, results, strict=True):
        progress.set_description(f"{case.card}, {name}, {rule}")
        found = report["cards"].setdefault(case.card, {})
        found.setdefault(section, {}).setdefault(name, {})[rule] = facts
        save(given.output, report)
    print(tables(report))
    print(f"All of it: {given.output}")


if __name__ == "__main__":
    run(main)
