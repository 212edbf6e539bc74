"""The time of a step, the memory that it takes, and what the compiler says of its program."""

import itertools
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from studies._lib.programs import read_program
from studies._lib.results import Report

Run = Callable[[int], float]  # Makes so many steps in a row, and returns the seconds of a step.


class Contender(NamedTuple):
    """A step to be timed, and numbers of its compiled program, if there is one."""

    run: Run
    facts: Report = {}  # noqa: RUF012


def timed(step: Callable[[], Any], wait: Callable[[], Any] = lambda: None) -> Run:
    """Returns what makes so many of the steps, waits for them, and returns their seconds."""

    def run(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            step()
        wait()
        return (time.perf_counter() - start) / count

    return run


def repeated(step: Callable[..., tuple], carry: tuple, *rest: Any) -> Run:
    """Returns what makes so many steps of a function that returns its first arguments anew."""
    kept = list(carry)

    def once() -> None:
        kept[:] = step(*kept, *rest)

    return timed(once, lambda: jax.block_until_ready(kept))


def in_turns(
    contenders: dict[str, Contender], rounds: int, samples: int = 1, steps: int = 1
) -> dict[str, Report]:
    """Returns the times of each. In each round, each has a turn, whose first step does not count.

    A turn has so many samples, each of so many steps.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    peaks = {name: peak(contender.run) for name, contender in contenders.items()}
    for _ in range(rounds):
        for name, contender in contenders.items():
            contender.run(1)
            times[name] += [contender.run(steps) for _ in range(samples)]
    report = {}
    for name, taken in times.items():
        low, median, high = statistics.quantiles(taken, n=4, method="inclusive")
        report[name] = {
            "seconds": median,
            "quartiles": [low, high],
            "least": min(taken),
            "peak bytes": peaks[name],
            **contenders[name].facts,
        }
    return report


def memory() -> tuple[int, int] | None:
    """Returns the bytes held now and at most, of the device or of the process, where it is told."""
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


def peak(run: Run) -> int | None:
    """Returns how many bytes more the process holds in three steps than before, on Linux."""
    run(1)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Forgets the maximum.
    except OSError:
        return None
    if jax.default_backend() != "cpu":
        return None  # A device does not forget its maximum.
    before, _ = memory()
    run(3)
    return max(0, memory()[1] - before)


def cpu_seconds() -> float:
    """Returns the seconds of this process and of those that it started and that ended."""
    return sum(os.times()[:4])


def compiled(
    step: Callable, params: Any, state: Any, *rest: Any, builds: int = 1
) -> tuple[Any, Report]:
    """Returns the program of a step, its first two arguments donated, and what is known of it."""
    leaves = jax.tree.leaves(params)
    size = sum(p.size for p in leaves)
    run, stages = jax.jit(step, donate_argnums=(0, 1)), []
    for _ in range(builds):
        jax.clear_caches()
        clock = [time.perf_counter()]
        traced = run.trace(params, state, *rest)
        clock.append(time.perf_counter())
        lowered, cpu = traced.lower(), cpu_seconds()
        clock.append(time.perf_counter())
        program = lowered.compile()
        clock.append(time.perf_counter())
        taken = [after - before for before, after in itertools.pairwise(clock)]
        stages.append([*taken, cpu_seconds() - cpu])
    names, cost = ("trace", "lower", "compile", "compile CPU seconds"), program.cost_analysis()
    return program, {
        **dict(zip(names, map(statistics.median, zip(*stages, strict=True)), strict=True)),
        "bytes per parameter": cost["bytes accessed"] / size,
        "roots per parameter": cost.get("transcendentals", 0) / size,
        "scratch bytes per parameter": program.memory_analysis().temp_size_in_bytes / size,
        "state bytes per parameter": sum(s.nbytes for s in jax.tree.leaves(state)) / size,
        **read_program(program.as_text(), [p.size for p in leaves]),
    }
