"""Runs examples/distributed.py, kills it again and again, and compares what it ends with.

A kill comes after any step, or while a checkpoint is written. Linux and macOS only.
"""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from scripts import EXAMPLES

PROGRAM = EXAMPLES / "distributed.py"
SAVE_EVERY = 50
# A process without a sign of life for so many seconds counts as dead.
TIMEOUT = 10
# A kill comes up to so many seconds later. A save takes about as long.
LONGEST_DELAY = 0.04
# A program that does nothing for so long has failed.
PATIENCE = 120


class Run:
    """The program, started as one process or as several, which write to log files."""

    def __init__(self, folder: Path, steps: int, bits: int | None, count: int = 1):
        self.folder = folder
        self.logs = [folder.with_suffix(f".{i}.log") for i in range(count)]
        words = ["--folder", folder, "--steps", steps, "--save-every", SAVE_EVERY]
        words += ["--timeout", TIMEOUT, "--cpu-devices", 1]
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


def killed(run: Run, moment: str, step: int, victim: int) -> float:
    """Kills a process of a run after a step, or within the save that follows it.

    Returns how many seconds the other processes took to end.
    """
    # At the first step the program is compiled, so nothing is killed before the second.
    run.wait_until(lambda: run.last_step() > max(step, run.before))
    assert run.first_step() == run.before, "It began with another checkpoint than the newest."
    if moment == "save":
        run.wait_until(run.is_torn)
    time.sleep(random.uniform(0, LONGEST_DELAY))
    start, last = time.perf_counter(), run.last_step()
    run.processes[victim].send_signal(signal.SIGKILL)
    codes = run.end()
    assert codes.pop(victim) == -signal.SIGKILL, "The run ended before the kill."
    assert 0 not in codes
    # No more steps are lost than between two saves.
    assert max(run.before, last - SAVE_EVERY) <= run.complete()
    return time.perf_counter() - start


def tree_in(folder: Path, step: int) -> Any:
    """Returns the parameters and the state of a checkpoint, on one device."""
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

    def same(a, b):
        return a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()

    return jax.tree.all(jax.tree.map(same, one, other))
