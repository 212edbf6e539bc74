"""Time and memory of a step with averages in each storage.

A step is the update and its application, with parameters and state donated. The storages take turns
in one process with optax.adadelta and a bound: the speed at which JAX adds one to a large array in
place. A step has to read the gradient, and to read and write the parameter and the state: 28, 20 or
16 bytes per parameter. The compiler reports scratch memory. Compile times are CPU seconds.

Memory is measured in a fresh process for each storage and for optax.adadelta, with one leaf of 100M
parameters and its gradient. It is read from the device's allocator or, on a CPU, from Linux.

It takes six minutes and 9 GB, on a machine that does nothing else.
"""

import argparse
import signal
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import jax
import jax.numpy as jnp

from studies._lib import cases
from studies._lib.cases import CASES as TREES
from studies._lib.cases import Shape
from studies._lib.contenders import bound, gradients_of, of_optax, step_of
from studies._lib.results import RESULTS, Report, Reports, Results, load, markdown, said
from studies._lib.storages import BESIDE_NADADELTA, NADADELTAS, RULES, STORAGES
from studies._lib.study import Study, run
from studies._lib.timing import in_turns, memory

CASES: dict[str, list[Shape]] = {
    "2 leaves of 2048 x 4096": 2 * [(2048, 4096)],
    "1 leaf of 10000 x 10000": [(10000, 10000)],
    **{name: TREES[name] for name in ("12-layer transformer", "ResNet-50", "2 leaves of 8M")},
}
SMOKE: dict[str, list[Shape]] = {"2 of 64 x 128": 2 * [(64, 128)], "1 of 5000": [(5000,)]}
SIDE = 10_000  # of the leaf whose memory is measured
MANY = 50_000_000  # parameters, which leave no room for nadadelta and what stands beside it


def held(rule: str, side: int) -> Report | None:
    """Returns what this process, which must be fresh, holds beyond a square and its gradient."""
    step = jax.jit(step_of(RULES[rule]), donate_argnums=(0, 1))
    for shape in ((64, 128), (side, side)):  # What is loaded for the first does not count.
        params, grads = jax.block_until_ready((jnp.ones(shape), jnp.full(shape, 0.1)))
        if (before := memory()) is None:
            return None
        state = jax.block_until_ready(RULES[rule].init(params))
        after = memory()
        for _ in range(3):
            params, state = jax.block_until_ready(step(params, state, grads))
        report = {"state": after[0] - before[0], "peak": memory()[1] - before[0]}
        del state
    return report


def measure_case(shapes: list[Shape], rounds: int) -> Report:
    """Returns the measurements of one tree."""
    gradients = gradients_of(shapes)
    size = sum(g.size for g in gradients)
    rules = RULES | NADADELTAS | BESIDE_NADADELTA if 1e6 < size < MANY else RULES
    steps = {name: of_optax(rule, gradients, builds=1) for name, rule in rules.items()}
    steps["bound"] = bound(1)
    report = in_turns(steps, rounds, steps=3 if jax.default_backend() == "cpu" else 20)
    report["bytes a second"] = 1 / report.pop("bound")["seconds"]
    for facts in map(report.get, STORAGES):
        facts["times float32"] = facts["seconds"] / report["float32"]["seconds"]
        facts["moved bytes per parameter"] = 12 + 2 * facts["state bytes per parameter"]
        least = facts["moved bytes per parameter"] * size / report["bytes a second"]
        facts["of the bound"] = least / facts["seconds"]
    return report


def measure(given: argparse.Namespace, results: Results) -> None:
    chosen, rounds = (SMOKE, 2) if given.smoke else (CASES, given.rounds)
    side = SIDE // 5 if given.smoke else SIDE
    # First, for once this process uses a GPU it leaves little of its memory to others.
    kept: Report = {"parameters": side**2}
    for rule in RULES:
        ignore = (signal.signal, (signal.SIGINT, signal.SIG_IGN))  # Ctrl-C is for this process.
        with ProcessPoolExecutor(1, get_context("spawn"), *ignore) as pool:
            kept[rule] = pool.submit(held, rule, side).result()
    of_optax(RULES["float32"], gradients_of([(8,)]))  # The first program takes longer to compile.
    cases.measure_each(
        "state_step", chosen, lambda shapes: measure_case(shapes, rounds), results, memory=kept
    )


def table(report: Report) -> str:
    """Returns what was measured on one machine as Markdown."""
    first, rows = next(iter(report["cases"].values())), []
    others = [who for who in (*RULES, "floor") if who in first and who != "float32"]
    storages = [storage for storage in STORAGES if storage in first]
    for name, case in report["cases"].items():
        full, size = case["float32"]["seconds"], case["parameters"]
        row = [f"{case[who]['seconds'] / full:.2f}" for who in others]
        row.append(f"{1e9 * full / size:.3g}")
        for key, scale, form in (("of the bound", 100, ".0f"), ("compile CPU seconds", 1, ".1f")):
            row.append(" / ".join(f"{scale * case[who][key]:{form}}" for who in storages))
        rows.append([name, *row])
    speed = 1e-9 * statistics.median(c["bytes a second"] for c in report["cases"].values())
    head = ["times float32", *others, "float32, ns", "% of the bound", "compile, CPU s"]
    kept, text = report["memory"], f"{said(report)}. The bound: {speed:.3g} GB/s."
    text += f"\n\n{markdown(head, rows)}"
    if kept["float32"] is None:
        return f"{text}\n\nWhat a process holds cannot be read on this platform."
    held = {
        who: [f"{1e-6 * kept[who][key]:.0f}" for key in ("state", "peak")]
        for who in RULES
        if who in kept
    }
    many = f"{1e-6 * kept['parameters']:.0f}M parameters"
    peaks = ", ".join(f"{state} to {peak} ({who})" for who, (state, peak) in held.items())
    return f"{text}\n\nMB of state of {many}, and the peak of three steps: {peaks}."


def table_of_nadadelta(report: Report) -> str:
    """Returns the steps of nadadelta and of what stands beside it, on one machine."""
    names, rows = ["float32", *NADADELTAS, *BESIDE_NADADELTA], []
    cases = {name: case for name, case in report["cases"].items() if names[-1] in case}
    for name in names if cases else ():
        cells = [f"{1e9 * c[name]['seconds'] / c['parameters']:.2f}" for c in cases.values()]
        cells += [f"{c[name]['compile CPU seconds']:.1f}" for c in cases.values()]
        rows.append([{"float32": "adadelta, float32"}.get(name, name), *cells])
    head = [f"{what}, {name}" for what in ("ns", "compile, CPU s") for name in cases]
    return f"{said(report)}.\n\n{markdown(['', *head], rows)}" if cases else ""


# Computed from the documented block sizes, one float32 per block and average; not measured here.
OTHERS = {
    "`optax.adadelta`, bfloat16 parameters": "4, but small changes of the averages are lost",
    "8-bit Adam of bitsandbytes and torchao": "2.03, in blocks of 256",
}


def span(values: list[float]) -> str:
    """Returns the least and the largest of the values with two digits."""
    if not values:
        return "-"
    low, high = (f"{f(values):.2g}" for f in (min, max))
    return low if low == high else f"{low} to {high}"


def summary(reports: Reports, errors: Report) -> str:
    """Returns a row for each storage: its bytes, its error and its time on each processor."""
    backends: dict[str, list[Report]] = {}
    for report in reports.values():
        cases = backends.setdefault(report["machine"].rpartition(", ")[2], [])
        cases += report["cases"].values()
    codes = {name: f"state_bits={bits}" if bits else "" for name, bits in STORAGES.items()}
    states = {name: f"`adadelta({code})`" for name, code in codes.items()}
    rows = []
    for name, state in (states | {"optax": "`optax.adadelta`"}).items():
        known = [[c for c in cases if name in c] for cases in backends.values()]
        if not any(known):
            continue
        size = next(filter(None, known))[0][name]["state bytes per parameter"]
        measured = errors.get(codes.get(name), {}).values()
        percent = [rhos["rho 0.95"]["percent"] for rhos in measured if isinstance(rhos, dict)]
        times = [
            span([case[name]["seconds"] / case["float32"]["seconds"] for case in cases])
            for cases in known
        ]
        rows.append([state, f"{size:.3g}", span(percent), *times])
    rows += [[name, size, *["-"] * (1 + len(backends))] for name, size in OTHERS.items()]
    head = ["state", "bytes per parameter", "error of a path at rho 0.95, %"]
    return markdown([*head, *(f"time of a step, {name}" for name in backends)], rows)


def tables(reports: Reports) -> dict[str, str]:
    errors = load(RESULTS / "state_error.json")["results"]
    steps = "\n\n".join(map(table, reports.values()))
    beside = "\n\n".join(filter(None, map(table_of_nadadelta, reports.values())))
    return {
        "state steps": steps,
        "storages": summary(reports, errors),
        "nadadelta steps": beside,
    }


STUDY = Study(
    "state_step",
    __doc__,
    "performance",
    measure,
    tables,
    options=lambda parser: cases.options(parser, rounds=12, cases=False),
    files="state_step-*",
)

if __name__ == "__main__":
    run(STUDY)
