"""How long a step of Adadelta takes in this package, Optax, Keras on JAX and torch.

A step is the update and its application, with parameters and state donated. The packages take turns
in one process, with a floor: a compiled loop that reads and writes each number once. Packages that
are not installed are left out.

    pip install -e ".[peers]" && python -m studies.step

It takes twenty minutes and 12 GB. step_report.py makes tables and a picture of the results.
"""

import gc
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from studies._lib.trees import CASES, SMOKE, Shape
from studies._lib.contenders import (
    Contender,
    eager,
    eager_update,
    of_keras,
    of_optax,
    of_torch,
    optimizers,
)
from studies._lib.floor import floor
from studies._lib.report import RESULTS, check_writable, options, provenance, run, save
from studies._step_training import trainers

PACKAGES = ("optax_adadelta", "jax", "jaxlib", "optax", "keras", "torch", "numpy")
SETTINGS = ("alone", "clipped", "eager")
# torch writes and compiles a kernel a tree, which for hundreds of leaves takes many minutes.
LEAVES_COMPILED = 170


def installed(name: str) -> bool:
    """Returns whether the package can be imported."""
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def contenders(setting: str, gradients: list[np.ndarray]) -> dict[str, Callable[[], Contender]]:
    """Returns what makes each contender of that setting."""
    made: dict[str, Callable[[], Contender]] = {}
    clipped = setting == "clipped"
    for name, optimizer in optimizers(clipped).items():
        if setting == "eager":
            made[name] = lambda o=optimizer: eager(o, gradients)
            made[f"{name}, update alone"] = lambda o=optimizer: eager_update(o, gradients)
        else:
            made[name] = lambda o=optimizer: of_optax(o, gradients)
    if setting != "eager" and installed("keras"):
        made["keras"] = lambda: of_keras(gradients, clipped)
    if installed("torch"):
        modes = ["for-loop", "foreach"]
        if setting == "alone" and len(gradients) <= LEAVES_COMPILED:
            modes.append("compiled")
        for mode in modes:
            made[f"torch {mode}"] = lambda mode=mode: of_torch(gradients, mode, clipped)
    return made


def peak(once: Callable[[], Any]) -> int | None:
    """Returns how many bytes more the process holds in a step than before, where Linux tells."""

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])

    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = status("VmRSS")
    except OSError:
        return None
    for _ in range(3):
        once()
    return max(0, status("VmHWM") - before)


def in_turns(steps: dict[str, Contender], rounds: int, turn: int, progress: tqdm) -> dict[str, Any]:
    """Returns what was measured: in each round each has a turn, whose first step does not count."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for contender in steps.values():
        contender.once()
    scratch = {name: peak(contender.once) for name, contender in steps.items()}
    for _ in range(rounds):
        for name, contender in steps.items():
            contender.once()
            times[name] += [contender.once() for _ in range(turn)]
        progress.update()
    report = {}
    for name, taken in times.items():
        begun, done = zip(*taken, strict=True)
        low, median, high = statistics.quantiles(done, n=4)
        report[name] = {
            "seconds": median,
            "quartiles": [low, high],
            "least": min(done),
            "seconds until begun": statistics.median(begun),
            "peak bytes": scratch[name],
            **steps[name].facts,
        }
    return report


def measure(
    shapes: list[Shape], settings: list[str], rounds: int, progress: tqdm
) -> dict[str, Any]:
    """Returns the measurements of one tree."""
    rng = np.random.default_rng(0)
    gradients = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    size = sum(g.size for g in gradients)
    turn = 3 if size > 1e6 else 20
    what, least = floor(gradients)
    report: dict[str, Any] = {"parameters": size, "leaves": len(shapes), "floor is": what}
    for setting in settings:
        steps = {name: make() for name, make in contenders(setting, gradients).items()}
        steps["floor"] = Contender(lambda: 2 * (least(),), {})
        report[setting] = in_turns(steps, rounds, turn, progress)
        del steps
        gc.collect()
        jax.clear_caches()
    return report


def main() -> None:
    """Reads the options, measures, writes, and prints the results."""
    parser = options(__spec__.name, __doc__, "step-BACKEND-jax-VERSION.json")
    add = parser.add_argument
    text = "some of: " + ", ".join(CASES) + " (default: all)"
    add("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=text)
    add("--rounds", type=int, default=15, help="turns of each (default: %(default)s)")
    given = parser.parse_args()
    cases = SMOKE if given.smoke else {name: CASES[name] for name in given.cases}
    rounds = 1 if given.smoke else given.rounds
    output = given.output or (RESULTS / f"step-{jax.default_backend()}-jax-{jax.__version__}.json")

    check_writable(output)
    report = provenance(parser, given, PACKAGES) | {"cases": {}}
    small = [name for name, shapes in cases.items() if sum(map(np.prod, shapes)) < 1e6]
    turns = rounds * (2 * len(cases) + len(small) + 1)
    with tqdm(total=turns, unit="turn") as progress:
        for name, shapes in cases.items():
            progress.set_description(name)
            settings = SETTINGS if name in small else SETTINGS[:2]
            report["cases"][name] = measure(shapes, settings, rounds, progress)
            save(output, report)
        progress.set_description("training")
        steps = trainers(cases["8-6-4"]) if given.smoke else trainers()
        report["training"] = in_turns(steps, rounds, 20, progress)
    save(output, report)

    for name, case in report["cases"].items():
        ours, theirs, least = (
            case["alone"][who]["seconds"] for who in ("optax_adadelta", "optax", "floor")
        )
        print(
            f"{name}: {1e9 * ours / case['parameters']:.2f} ns per parameter, {theirs / ours:.1f}"
            f" times as fast as Optax, {ours / least:.1f} times the floor"
        )
    print(f"All of it: {output}")


if __name__ == "__main__":
    run(main)
