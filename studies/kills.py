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

from studies._lib import report as _report
from studies._lib.stamps import stamp

FOLDER, PAGE = _report.DOCS / "many_devices", _report.DOCS / "many_devices.md"
PROGRAM = Path(__file__).parents[1] / "examples" / "distributed.py"
STORAGES = {"full precision": None, "16 bits": 16, "8 bits": 8}
SAVE_EVERY = 50
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


def killed(run: Run, moment: str, step: int, victim: int) -> dict[str, Any]:
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


def measure(
    name: str, bits: int | None, count: int, kills: int, options: argparse.Namespace, bar
) -> dict[str, Any]:
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


def draw(runs: list[dict[str, Any]], steps: int) -> Any:
    """Returns the picture: how far each life of each run got."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(9, 5.6), dpi=130, layout="constrained")
    for axes, run in zip(figure.subplots(2, 2, sharey=True).flat, runs, strict=True):
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
    return figure


def table(runs: list[dict[str, Any]]) -> str:
    """Returns the counts as a table."""
    rows = []
    for run in runs:
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
    return _report.markdown([*head, "others ended within", "same bits at the end"], rows)


def main() -> None:
    """Reads the options, runs the program, and writes numbers, picture and table."""
    parser = _report.options(__spec__.name, __doc__)
    add = parser.add_argument
    text = "kills of runs of one process, for the three storages together (default: %(default)s)"
    add("--kills", type=int, default=51, help=text)
    text = "kills of a run of two processes (default: %(default)s)"
    add("--group-kills", type=int, default=8, help=text)
    add("--steps", type=int, default=2000, help="steps of each run (default: %(default)s)")
    text = "devices of each process (default: %(default)s)"
    add("--cpu-devices", type=int, default=2, metavar="N", help=text)
    text = "folder for numbers and picture (default: docs/many_devices)"
    add("--output", type=Path, default=FOLDER, help=text)
    text = "train nothing; draw again, and put the table into docs/many_devices.md (default: off)"
    add("--draw-only", action="store_true", help=text)
    options = parser.parse_args()
    if min(options.kills // 3, options.group_kills) < 2 or options.steps < SAVE_EVERY:
        parser.error("--kills must be at least 6, --group-kills 2, and --steps 50")

    file = options.output / "kills.json"
    if not options.draw_only:
        from tqdm import tqdm

        _report.check_writable(file)
        random.seed(0)
        kinds = [(name, bits, 1, options.kills // 3) for name, bits in STORAGES.items()]
        kinds.append(("8 bits, two processes", 8, 2, options.group_kills))
        with tqdm(total=sum(kind[3] for kind in kinds), desc="Killing", unit="kill") as bar:
            runs = [measure(*kind, options, bar) for kind in kinds]
        made = _report.provenance(parser, options, (*_report.PACKAGES, "orbax-checkpoint"))
        _report.save(file, {**made, "steps": options.steps, "runs": runs})
    report = _report.load(file)
    picture = file.with_suffix(".png")
    draw(report["runs"], report["steps"]).savefig(picture)
    stamp(picture, Path(__file__), report)
    print(table(report["runs"]))
    print(f"Numbers: {file}\nPicture: {picture}")
    if options.output == FOLDER and PAGE.exists():
        page = _report.filled(PAGE.read_text("utf-8"), "kills", table(report["runs"]))
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    _report.run(main)
