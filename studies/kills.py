"""Kill a training run again and again, and check that it still ends with the same parameters.

It runs examples/distributed.py, which saves checkpoints with Orbax, and kills it with SIGKILL at
random moments: half of the kills after any step, the other half while it writes a checkpoint. Then
it starts the same command again. Three things are checked:

- each restart goes on from the newest checkpoint that was complete, never from a torn one;
- the final parameters and optimizer state equal those of an undisturbed run, bit for bit;
- if one process of a group is killed, the others end by themselves, with an error.

It takes seven minutes on two cores. Linux and macOS only.

Needs: pip install -e ".[frameworks]"
"""

import argparse
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from tqdm import tqdm

from studies._lib.results import ROOT, Report, Reports, Results, markdown
from studies._lib.storages import STORAGES
from studies._lib.study import Study, at_least
from studies._lib.study import run as run_study

PROGRAM = ROOT / "examples" / "distributed.py"
SAVE_EVERY = 50
SMOKE_STEPS = 200
# A process without a sign of life for so many seconds counts as dead.
TIMEOUT = 10
# A kill comes up to so many seconds later. A save takes about as long.
LONGEST_DELAY = 0.04
# A program that does nothing for so long has failed.
PATIENCE = 120
COLORS = {"kept": "#BBBBBB", "step": "#0072B2", "save": "#D55E00"}


class Run:
    """The program, started as one process or as several, which write to log files."""

    def __init__(self, folder: Path, options: argparse.Namespace, bits: int | None, count: int = 1):
        self.folder = folder
        self.logs = [folder.with_suffix(f".{i}.log") for i in range(count)]
        words = ["--folder", folder, "--steps", options.steps, "--save-every", SAVE_EVERY]
        words += ["--timeout", TIMEOUT, "--cpu-devices", options.cpu_devices]
        words += ["--state-bits", bits] * (bits is not None)
        # The bar shows each step, so the log tells at which one the program was killed.
        env = {**os.environ, "TQDM_MININTERVAL": "0", "TQDM_MINITERS": "1"}
        # As long as this is bound, no other program is given the port. Process 0 may share it.
        self.port = socket.socket()
        self.port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.port.bind(("", 0))
        address = f"localhost:{self.port.getsockname()[1]}"
        group = ["--coordinator", address, "--processes", count]
        self.before = self.complete()
        self.processes = []
        for i, log in enumerate(self.logs):
            command = [sys.executable, PROGRAM, *words, *[*group, "--process", i] * (count > 1)]
            with log.open("wb") as output:
                self.processes.append(
                    subprocess.Popen(list(map(str, command)), stdout=output, stderr=output, env=env)
                )

    def complete(self) -> int:
        """Returns the step of the newest checkpoint that has its final name, or 0."""
        return max((int(p.name) for p in self.folder.glob("*") if p.name.isdigit()), default=0)

    def is_torn(self) -> bool:
        """Returns whether there is a checkpoint that is only partly written."""
        return any("tmp" in path.name for path in self.folder.glob("*"))

    def printed(self) -> str:
        """Returns what the first process printed so far."""
        return self.logs[0].read_text(errors="replace")

    def first_step(self) -> int:
        """Returns the step that the run began with."""
        return int(re.findall(r"first step: (\d+)", self.printed())[0])

    def last_step(self) -> int:
        """Returns the last step that the bar showed, or -1."""
        with self.logs[0].open("rb") as log:
            log.seek(max(0, self.logs[0].stat().st_size - 300))
            found = re.findall(rb"(\d+)/\d+ \[", log.read())
        return int(found[-1]) if found else -1

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Waits for the condition."""
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end or any(p.poll() is not None for p in self.processes):
                raise SystemExit(f"{PROGRAM.name} ended or hangs:\n{self.printed()[-2000:]}")
            time.sleep(0.001)

    def end(self, seconds: float = PATIENCE) -> list[int]:
        """Waits until all processes have ended, and returns their exit codes."""
        try:
            return [process.wait(seconds) for process in self.processes]
        finally:
            self.port.close()
            for process in self.processes:
                process.kill()


def killed(run: Run, moment: str, step: int, victim: int) -> Report:
    """Kills a process of a run after a step, or within the save that follows it."""
    # At the first step the program is compiled, so nothing is killed before the second.
    run.wait_until(lambda: run.last_step() > max(step, run.before))
    if (first := run.first_step()) != run.before:
        raise SystemExit(f"Step {run.before} was the newest checkpoint, but it began with {first}.")
    if moment == "save":
        run.wait_until(run.is_torn)
    time.sleep(random.uniform(0, LONGEST_DELAY))
    start, last = time.perf_counter(), run.last_step()
    run.processes[victim].send_signal(signal.SIGKILL)
    codes = run.end()
    newest = run.complete()
    others = [code for i, code in enumerate(codes) if i != victim]
    if codes[victim] != -signal.SIGKILL or 0 in others:
        raise SystemExit(f"The run ended before the kill: {codes}.")
    return {
        "moment": moment,
        "first": first,
        # The bar moves only when the step is saved.
        "killed at": max(last, newest),
        "newest": newest,
        "torn": run.is_torn(),
        "victim": victim,
        "seconds until the others ended": time.perf_counter() - start,
    }


def tree_in(folder: Path, step: int) -> Any:
    """Returns the parameters and the state of a checkpoint, on one device."""
    import jax
    import orbax.checkpoint as ocp

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    handler = ocp.StandardCheckpointHandler()
    with ocp.CheckpointManager(folder.resolve(), item_handlers=handler) as checkpoints:
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
            checkpoints.item_metadata(step).tree,
        )
        return checkpoints.restore(step, args=ocp.args.StandardRestore(target))


def are_equal(one: Any, other: Any) -> bool:
    """Returns whether two trees have the same bits."""
    import jax
    import numpy as np

    def same(a, b):
        return a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()

    return jax.tree.all(jax.tree.map(same, one, other))


def kill_again_and_again(
    name: str, bits: int | None, count: int, kills: int, options: argparse.Namespace, bar: tqdm
) -> Report:
    """Kills one training run again and again, and compares its end with an undisturbed run."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary, kind) for kind in ("undisturbed", "disturbed")]
        run = Run(folders[0], options, bits, count)
        if any(run.end()):
            raise SystemExit(run.printed())
        lives = []
        for i, step in enumerate(sorted(random.choices(range(options.steps * 9 // 10), k=kills))):
            run = Run(folders[1], options, bits, count)
            lives.append(killed(run, ("step", "save")[i % 2], step, i // 2 % count))
            bar.update()
        run = Run(folders[1], options, bits, count)
        if any(run.end()) or run.first_step() != run.before:
            raise SystemExit(run.printed())
        equal = are_equal(*(tree_in(folder, options.steps) for folder in folders))
    return {"name": name, "processes": count, "equal": equal, "lives": lives}


def measure(given: argparse.Namespace, results: Results) -> None:
    """Kills a run of each storage, and one of two processes."""
    results.load("kills")
    random.seed(0)
    each, of_group = (2, 2) if given.smoke else (given.kills // len(STORAGES), given.group_kills)
    given.steps = min(given.steps, SMOKE_STEPS) if given.smoke else given.steps
    *_, (last, bits) = STORAGES.items()
    kinds = [(name, bits, 1, each) for name, bits in STORAGES.items()]
    kinds.append((f"{last}, two processes", bits, 2, of_group))
    with tqdm(total=sum(kind[3] for kind in kinds), desc="Killing", unit="kill") as bar:
        runs = [kill_again_and_again(*kind, given, bar) for kind in kinds]
    results.save("kills", {**results.made, "steps": given.steps, "runs": runs})


def draw(reports: Reports) -> dict[str, Figure]:
    """Returns the picture: how far each life of each run got."""
    runs, steps = (reports["kills"][key] for key in ("runs", "steps"))
    figure = Figure(figsize=(9, 5.6), dpi=130, layout="constrained")
    panels = figure.subplots(-(-len(runs) // 2), 2, sharey=True).flat
    for axes, run in zip(panels, runs, strict=False):
        for number, life in enumerate(run["lives"], 1):
            first, kept = life["first"], max(life["first"], life["newest"])
            lost = "save" if life["torn"] else "step"
            axes.bar(number, kept - first, bottom=first, color=COLORS["kept"])
            axes.bar(number, life["killed at"] - kept, bottom=kept, color=COLORS[lost])
        axes.axhline(steps, color="black", linewidth=0.8, linestyle=":")
        axes.set(title=run["name"], xlabel="kill", ylabel="training step", ylim=(0, None))
        axes.set_xlim(0.4, len(run["lives"]) + 0.6)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    labels = {
        "kept": "in a complete checkpoint",
        "step": "lost, killed in a step",
        "save": "lost, killed in a save",
    }
    patches = [Patch(color=COLORS[key], label=label) for key, label in labels.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False)
    return {"kills": figure}


def tables(reports: Reports) -> dict[str, str]:
    """Returns the counts."""
    rows = []
    for run in reports["kills"]["runs"]:
        lives = run["lives"]
        seconds = [life["seconds until the others ended"] for life in lives]
        rows.append(
            [
                run["name"],
                str(run["processes"]),
                str(len(lives)),
                str(sum(life["torn"] for life in lives)),
                str(max(life["killed at"] - life["newest"] for life in lives)),
                f"{max(seconds):.1f} s" if run["processes"] > 1 else "-",
                "yes" if run["equal"] else "**no**",
            ]
        )
    head = ["run", "processes", "kills", "of these in a save", "most steps lost"]
    head += ["others ended within", "same bits at the end"]
    return {"kills": markdown(head, rows)}


def options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument
    text = "kills of runs of one process, for all storages together (default: %(default)s)"
    add("--kills", type=at_least(2 * len(STORAGES)), default=51, help=text)
    text = "kills of a run of two processes (default: %(default)s)"
    add("--group-kills", type=at_least(2), default=8, help=text)
    text = "steps of each run (default: %(default)s)"
    add("--steps", type=at_least(SAVE_EVERY), default=2000, help=text)
    text = "devices of each process (default: %(default)s)"
    add("--cpu-devices", type=int, default=2, metavar="N", help=text)


STUDY = Study("kills", __doc__, "many_devices", measure, tables, draw, options)

if __name__ == "__main__":
    run_study(STUDY)
