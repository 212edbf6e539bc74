"""Time and memory of a step with averages in float32, 16 and 8 bits.

A step is the update and its application, with parameters and state donated. The three storages
take turns in one process with optax.adadelta and two bounds. On a CPU, the floor is the float32
step as one loop in C. On every device, the bound is the speed at which JAX adds one to a large
array in place. A step has to move 28, 20 or 16 bytes per parameter: it reads the gradient, and
reads and writes the parameter and the state. The compiler reports scratch memory. Compile times are
CPU seconds.

Memory is measured in a fresh process for each storage and for optax.adadelta, with one leaf of 100M
parameters and its gradient. It is read from the device's allocator or, on a CPU, from Linux.

    pip install -e ".[examples]" && python -m studies.state_step

It takes six minutes and 9 GB, on a machine that does nothing else.
"""

import functools
import gc
import signal
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from studies._lib.trees import CASES as TREES
from studies._lib.trees import Shape
from studies._lib.contenders import EPS, RHO, optimizers
from studies._lib.floor import floor
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
from studies.step_report import versions
from optax_adadelta import adadelta

PAGE = DOCS / "performance.md"
PART = "state steps"
FORMS = {"float32": None, "16 bits": 16, "8 bits": 8}
RULES = {form: adadelta(rho=RHO, eps=EPS, state_bits=bits) for form, bits in FORMS.items()}
RULES["optax"] = optimizers()["optax"]
CASES: dict[str, list[Shape]] = {
    "2 leaves of 2048 x 4096": 2 * [(2048, 4096)],
    "1 leaf of 10000 x 10000": [(10000, 10000)],
    **{name: TREES[name] for name in ("12-layer transformer", "ResNet-50", "2 leaves of 8M")},
}
SMOKE: dict[str, list[Shape]] = {"2 of 64 x 128": 2 * [(64, 128)], "1 of 5000": [(5000,)]}
SIDE = 10_000  # of the leaf whose memory is measured
ADDED = 64_000_000  # of float32 in the large array: five times the cache of an H200


def stepper(rule: optax.GradientTransformation) -> Callable:
    """Returns the step as a user writes it, in one donated jit."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def memory() -> tuple[int, int] | None:
    """Returns the bytes held now and at most since the start, where that can be read."""
    stats = jax.local_devices()[0].memory_stats()
    if stats is not None:
        return stats["bytes_in_use"], stats["peak_bytes_in_use"]
    # Not getrusage: its maximum begins with what the process that started this one had held.
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    now, most = (1024 * int(status.partition(f)[2].split()[0]) for f in ("VmRSS:", "VmHWM:"))
    return now, most


def held(form: str, side: int) -> dict[str, float] | None:
    """Returns what this process, which must be fresh, holds beyond a square and its gradient."""
    step = stepper(RULES[form])
    for shape in ((64, 128), (side, side)):  # What is loaded for the first does not count.
        params, grads = jax.block_until_ready((jnp.ones(shape), jnp.full(shape, 0.1)))
        if (before := memory()) is None:
            return None
        state = jax.block_until_ready(RULES[form].init(params))
        after = memory()
        for _ in range(3):
            params, state = jax.block_until_ready(step(params, state, grads))
        report = {"state": after[0] - before[0], "peak": memory()[1] - before[0]}
        del state
    return report


def repeated(step: Callable, carry: tuple, *rest: Any) -> Callable[[int], float]:
    """Returns what makes so many steps one after another and gives the seconds of each."""
    kept = list(carry)

    def run(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            kept[:] = step(*kept, *rest)
        jax.block_until_ready(kept)
        return (time.perf_counter() - start) / count

    return run


def built(form: str, grads: list[jax.Array]) -> tuple[Callable[[int], float], dict[str, float]]:
    """Returns the repeated step of that form, and what is known of it before it runs."""
    step, size = stepper(RULES[form]), sum(g.size for g in grads)
    params = jax.tree.map(jnp.zeros_like, grads)
    state = jax.block_until_ready(RULES[form].init(params))
    start = time.process_time()
    program = step.lower(params, state, grads).compile()
    facts = {
        "compile": time.process_time() - start,
        "scratch bytes per parameter": program.memory_analysis().temp_size_in_bytes / size,
        "state bytes per parameter": sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / size,
    }
    return repeated(step, (params, state), grads), facts


def measure(shapes: list[Shape], rounds: int, added: int, progress: tqdm) -> dict[str, Any]:
    """Returns the measurements of one tree; in each round each has a turn."""
    rng = np.random.default_rng(0)
    gradients = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    size, on_cpu = sum(g.size for g in gradients), jax.default_backend() == "cpu"
    report: dict[str, Any] = {"parameters": size, "leaves": len(shapes)}
    grads, steps = [jnp.asarray(g) for g in gradients], {}
    for form in RULES:
        steps[form], report[form] = built(form, grads)
        progress.update()
    if on_cpu:
        report["floor is"], least = floor(gradients)
        steps["floor"] = lambda count: statistics.mean(least() for _ in range(count))
    add = jax.jit(lambda x: (x + 1,), donate_argnums=0)
    steps["add"] = repeated(add, (jnp.zeros(added),))
    times = {name: [] for name in steps}
    for _ in range(rounds):
        for name, repeat in steps.items():
            repeat(1)
            times[name].append(repeat(3 if on_cpu else 20))
        progress.update()
    for name, taken in times.items():
        low, median, high = statistics.quantiles(taken, n=4, method="inclusive")
        report.setdefault(name, {}).update({"seconds": median, "quartiles": [low, high]})
    report["bytes a second"] = 8 * added / report.pop("add")["seconds"]
    for facts in map(report.get, FORMS):
        facts["times float32"] = facts["seconds"] / report["float32"]["seconds"]
        facts["moved bytes per parameter"] = 12 + 2 * facts["state bytes per parameter"]
        bound = facts["moved bytes per parameter"] * size / report["bytes a second"]
        facts["of the bound"] = bound / facts["seconds"]
    return report


COLUMNS = (
    ("times float32", "times float32", 1, ".2f"),
    ("% of the bound", "of the bound", 100, ".0f"),
    ("state, bytes per parameter", "state bytes per parameter", 1, ".2f"),
    ("scratch", "scratch bytes per parameter", 1, ".2f"),
    ("compile, CPU s", "compile", 1, ".1f"),
)


def tables(report: dict[str, Any]) -> str:
    """Returns what was measured on one machine as Markdown."""
    timed = [*RULES, *(["floor"] if "floor" in next(iter(report["cases"].values())) else [])]
    rows = []
    for name, case in report["cases"].items():
        row, size = [name], case["parameters"]
        for who in timed:
            ns = [1e9 * s / size for s in (case[who]["seconds"], *case[who]["quartiles"])]
            row.append("{:.3g} ({:.3g} to {:.3g})".format(*ns))
        for _, key, scale, form in COLUMNS:
            row.append(" / ".join(f"{scale * case[who][key]:{form}}" for who in FORMS))
        rows.append(row)
    speed = 1e-9 * statistics.median(c["bytes a second"] for c in report["cases"].values())
    said = f"{versions(report)}. Made by `{report['command']}`. The bound: {speed:.3g} GB/s."
    head = ["ns per parameter (quartiles)", *timed, *(head for head, *_ in COLUMNS)]
    speeds, kept = markdown(head, rows), report["memory"]
    if kept["float32"] is None:
        return f"{said}\n\n{speeds}\n\nWhat a process holds cannot be read on this platform."
    rows = [[who, *(f"{1e-6 * kept[who][key]:.0f}" for key in ("state", "peak"))] for who in RULES]
    head = f"{1e-6 * kept['parameters']:.0f}M parameters, MB beyond them and their gradients"
    return f"{said}\n\n{speeds}\n\n{markdown([head, 'after init', 'at most, in 3 steps'], rows)}"


def with_tables(page: str, reports: list[dict[str, Any]]) -> str:
    """Returns the page with its tables made anew."""
    return filled(page, PART, "\n\n".join(map(tables, reports)))


def main() -> None:
    """Reads the options, measures, writes, and prints the results."""
    parser = options(__spec__.name, __doc__, "state_step-BACKEND-jax-VERSION.json", PAGE)
    add = parser.add_argument
    add("--rounds", type=int, default=12, help="turns of each, at least 2 (default: %(default)s)")
    given = parser.parse_args()
    if given.rounds < 2:
        parser.error("--rounds must be at least 2, for quartiles")
    if given.table:
        reports = load_all("state_step-*.json", RESULTS)
        PAGE.write_text(with_tables(PAGE.read_text("utf-8"), reports), encoding="utf-8")
        print(f"{len(reports)} results are in {PAGE}")
        return

    cases, rounds = (SMOKE, 2) if given.smoke else (CASES, given.rounds)
    check_writable(given.output or RESULTS / "state_step.json")
    side, added = (SIDE // 5, ADDED // 1000) if given.smoke else (SIDE, ADDED)
    with tqdm(total=len(RULES) + len(cases) * (len(RULES) + rounds), unit="turn") as progress:
        # First, for once this process uses a GPU it leaves little of its memory to others.
        kept: dict[str, Any] = {"parameters": side**2}
        for form in RULES:
            progress.set_description(f"memory, {form}")
            ignore = (signal.signal, (signal.SIGINT, signal.SIG_IGN))  # Ctrl-C is for this process.
            with ProcessPoolExecutor(1, get_context("spawn"), *ignore) as pool:
                kept[form] = pool.submit(held, form, side).result()
            progress.update()
        report = provenance(parser, given) | {"memory": kept, "cases": {}}
        name = f"state_step-{jax.default_backend()}-jax-{jax.__version__}.json"
        output = given.output or RESULTS / name
        built("float32", [jnp.zeros(8)])  # The first program takes longer to compile.
        for name, shapes in cases.items():
            progress.set_description(name)
            report["cases"][name] = measure(shapes, rounds, added, progress)
            gc.collect()
            jax.clear_caches()
            save(output, report)
    print(tables(report))
    print(f"All of it: {output}")


if __name__ == "__main__":
    run(main)
