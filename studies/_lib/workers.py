"""Compiles for devices that are not there, in processes of their own.

A compiler can abort its process or take hours. A case that ends so is reported as failed, and the
others go on.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from tqdm import tqdm

from studies._lib.cards import CARDS, environment, problem
from studies._lib.results import ROOT, Report, Results

LIMIT = 300  # seconds for a case, after which its process is stopped


def is_worker() -> bool:
    """Returns whether this process was started to compile."""
    return sys.argv[1:] == ["--work"]


def work(compile_case: Callable[..., Report]) -> None:
    """Compiles the cases that its parent sends, and prints a line of JSON for each."""
    for case in json.load(sys.stdin):
        signal.alarm(LIMIT)
        try:
            facts = compile_case(*case)
        except Exception as error:
            facts = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        print(json.dumps(facts), flush=True)


def compiled(
    worker: str | list[str], cases: Sequence[tuple], together: bool = False
) -> Iterator[Report]:
    """Yields the facts of each case, or how it failed.

    Args:
      worker: the name of a study that calls `work`, or a command that does.
      cases: the arguments of its `compile_case`.
      together: whether a process goes on with the next case until one ends it.
    """
    if isinstance(worker, str):
        worker = [sys.executable, "-m", f"studies.{worker}", "--work"]
    remaining = list(cases)
    while remaining:
        batch = remaining if together else remaining[:1]
        done = subprocess.run(
            worker,
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


def measure(
    study: str, jobs: list[tuple[tuple[str, ...], Any]], results: Results, together: bool
) -> None:
    """Compiles all jobs, each the place of its facts in the report and the case, and saves them."""
    if problems := list(filter(None, map(problem, CARDS))):
        raise SystemExit(f"{'; '.join(problems)} (studies/README.md says how)")
    jax.config.update("jax_platforms", "cpu")
    results.load(study)
    report = {**results.made, "cards": {}}
    found = compiled(study, [case for _, case in jobs], together)
    for ((*place, last), _), facts in zip(tqdm(jobs, unit="case"), found, strict=True):
        at = report["cards"]
        for key in place:
            at = at.setdefault(key, {})
        at[last] = facts
        results.save(study, report)
