"""Mutation testing: plants one small fault at a time and asks whether a test notices it.

`python tests/mutation.py --file _equation.py` runs all faults of one file, `--every 10` a tenth of
them. A result is written as soon as it is there, so a run that was stopped goes on where it was.
The tests run in a child of this process for each fault, which saves importing JAX. Programs that
the unmutated tests compiled are kept in JAX's compilation cache, and children only read it.

At the end there is a list of the faults that no test noticed. For each, write a test, or name it in
`mutation_equivalent.toml` with the reason why it changes no behaviour.

Two maintained tools were tried on `_dither.py`, with the test modules that FIRST names. A noticed
fault takes about 1 s of CPU time here.

- mutmut 3.8.1 takes 1 to 4 s. It makes no faults in decorated functions, in the fields of classes
  or outside functions. 13 % of the faults here are in such places, among them all of `_update.py`.
  By default its tests hang, because it forks after JAX has started threads, and it counts a hang as
  noticed. It runs only the tests that called the faulty function. But JAX calls a function only to
  trace it: 56 tests in `test_storage.py` need `Decay.average`, and 29 of them call it.
- cosmic-ray 8.7.0 takes 3 s, because it starts Python for each fault. It writes the fault into the
  source file, and a killed run leaves it there. It has one command for all faults, so it cannot
  begin with the likeliest tests. It also changes the `|` of annotations.

In both, a comment on a line leaves out all faults of that line; none can be left out alone. For the
whole package they make 5079 and 5184 faults, and `faults.py` 2227.
"""

import argparse
import collections
import hashlib
import importlib.machinery
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import sys
import time
import tomllib

# Imported before the forks; none of them starts a backend, which would not survive a fork.
import chex  # noqa: F401
import hypothesis  # noqa: F401
import jax
import optax  # noqa: F401
import pytest
import tqdm
from faults import faults

TESTS = pathlib.Path(__file__).resolve().parent
ROOT = TESTS.parent
PACKAGE = ROOT / "optax_adadelta"
FILES = ("_[!_]*.py", "convert/_*.py", "_*/*.py")
# These read programs or files, not behaviour, or start processes that do not see the fault.
NOT_RUN = ("package", "pages", "peers", "plots", "frameworks", "examples", "recipes", "studies")
NOT_RUN += ("recipes_from_projects", "studies_programs", "studies_reproductions", "studies_steps")
NOT_RUN += ("studies_training",)
# The test modules that are the likeliest to notice a fault, by the mutated file or its folder. They
# run first, so that a fault that is noticed takes a second or two.
FIRST = {
    "_equation": "equation properties rates storage numerics",
    "_update": "transform storage nadadelta pairing",
    "_hyperparameters": "hyperparameters mistakes transform storage",
    "_validation": "mistakes pairing plain_state transform convert",
    "_mismatch": "mistakes pairing",
    "_clip": "clip",
    "_dither": "dither storage stochastic_round",
    "_bits": "storage stochastic_round convert",
    "_optimizer": "pairing transform hyperparameters mistakes storage",
    "_state": "transform plain_state convert mistakes",
    "_dtypes": "pairing transform plain_state storage",
    "_sharding": "sharded_state transform rates samples",
    "_storage": "storage nadadelta plain_state convert derivatives state_is_data",
    "_nadadelta": "nadadelta",
    "_scale": "nadadelta",
    "_stochastic_round": "stochastic_round",
    "_plateau": "plateau plateau_runs",
    "_best": "plateau_runs",
    "_injected": "plateau_runs summaries",
    "convert": "convert convert_torch convert_keras convert_optax",
}


def module_of(path):
    return pathlib.Path(path).stem.removeprefix("test_")


def first_modules(file):
    """Returns what FIRST names for a file of the package, or for the folder that it is in."""
    parts = reversed(pathlib.PurePath(file).with_suffix("").parts)
    return next((FIRST[part].split() for part in parts if part in FIRST), [])


class Planted:
    """Imports one module of the package from another text."""

    def __init__(self, fault):
        self.path, self.text = str(PACKAGE / fault.file), fault.text

    def find_spec(self, name, path=None, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin == self.path:
            spec.loader.get_code = lambda _: compile(self.text, self.path, "exec")
        return spec


class Order:
    """A pytest plugin that sorts the tests, and keeps how long they took and which one failed."""

    def __init__(self, first=(), seconds=None):
        self.first, self.before = {name: i for i, name in enumerate(first)}, seconds or {}
        self.seconds, self.failed = collections.Counter(), None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        def key(item):
            module = self.first.get(module_of(item.path), len(self.first))
            return self.first.get(item.nodeid, module), self.before.get(item.nodeid, 0.0)

        items.sort(key=key)

    def pytest_collectreport(self, report):
        if report.failed:
            self.failed = self.failed or report.nodeid

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration
        self.pytest_collectreport(report)


def check(fault, order, seconds, quick, log, sender):
    """Runs the tests in this process, a child, and sends the exit status and what `Order` kept."""
    signal.alarm(seconds)  # ends the process, whatever it is in
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    if fault is not None:
        sys.meta_path.insert(0, Planted(fault))
    paths = [path for path in sorted(TESTS.glob("test_*.py")) if module_of(path) not in NOT_RUN]
    soon = {module_of(name.partition("::")[0]) for name in order.first}
    # Not every plugin's own assertions can be rewritten, for some are imported already.
    quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    options = ["-x", "-q", "-n0", "-p", "no:cacheprovider", *quiet, "-m", "devices or not slow"]
    # In two parts, because it takes a while to import all modules.
    for part in (True,) if quick else (True, False):
        modules = [str(path) for path in paths if (module_of(path) in soon) is part]
        status = int(pytest.main([*options, *modules], plugins=[order])) if modules else 0
        if status != 0:
            break
    sender.send((status, order.failed, order.seconds))


def start(*args):
    """Starts a child that runs `check`; returns the end of the pipe that it sends to."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    context.Process(target=check, args=(*args, sender), daemon=True).start()
    sender.close()
    return receiver


def result(receiver):
    """Returns the exit status of the tests, None if they did not end, the failed one, all times."""
    try:
        return receiver.recv()
    except EOFError:
        return None, None, {}


def unmutated(work):
    """Runs the tests without a fault, and returns how long each took with the programs cached."""
    for what in ("fill the compilation cache", "use it"):
        print(f"The unmutated tests {what}.", flush=True)
        status, failed, seconds = result(start(None, Order(), 3600, False, work / "unmutated.txt"))
        if status != 0:
            raise SystemExit(f"The unmutated tests fail at {failed}: see {work / 'unmutated.txt'}")
        read_only()
    return seconds


def read_only():
    """Keeps the programs of faults out of the compilation cache."""
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)


def run(todo, order, timeout, quick, processes):
    """Runs the tests on each fault; yields it, whether and where it was noticed, and the seconds.

    `order` returns the `Order` of a fault. It is called when the fault's turn comes, so that it can
    begin with the tests that noticed the faults before.
    """
    todo, running = collections.deque(todo), {}
    while todo or running:
        while todo and len(running) < processes:
            fault = todo.popleft()
            receiver = start(fault, order(fault), timeout, quick, os.devnull)
            running[receiver] = fault, time.monotonic()
        receiver = multiprocessing.connection.wait(list(running))[0]
        fault, began = running.pop(receiver)
        status, failed, _ = result(receiver)
        yield fault, status != 0, failed, time.monotonic() - began


def report(every, results, equivalent):
    """Prints the score of each file and the faults that no test noticed; returns whether none."""
    scores, unnoticed = collections.defaultdict(collections.Counter), []
    for fault in every:
        noticed = results.get(fault.digest)
        what = {None: "not run", True: "noticed", False: "unnoticed"}[noticed]
        scores[fault.file]["equivalent" if fault.name in equivalent else what] += 1
        unnoticed += [fault] if noticed is False and fault.name not in equivalent else []
    for file, score in scores.items():
        share = score["noticed"] / max(score["noticed"] + score["unnoticed"], 1)
        print(f"{file:24} {share:4.0%}", *(f"{n:4} {what}" for what, n in sorted(score.items())))
    for fault in unnoticed:
        print(f"\noptax_adadelta/{fault.file}:{fault.number}: {fault.line}\n    {fault.change}")
    for key in equivalent - {fault.name for fault in every}:
        if key[0] in scores:
            print("\nmutation_equivalent.toml has one that does not exist:", *key, sep="\n    ")
    return not unnoticed


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", action="append", help="as _equation.py; may be given twice")
    parser.add_argument("--every", type=int, default=1, help="takes each K-th fault")
    parser.add_argument("--quick", action="store_true", help="runs only what FIRST names")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "results" / "mutation")
    return parser.parse_args()


def check_names(paths, given):
    """Raises an error for a file or a test module that is named but does not exist."""
    files = {path.relative_to(PACKAGE).as_posix() for path in paths}
    modules = {module_of(path) for path in TESTS.glob("test_*.py")}
    named = set(NOT_RUN).union(*(names.split() for names in FIRST.values()))
    for missing in (*sorted(set(given or ()) - files), *sorted(named - modules)):
        raise SystemExit(f"{missing} does not exist, or is not mutated: see --file, FIRST, NOT_RUN")


def main():
    options = arguments()
    paths = [path for pattern in FILES for path in sorted(PACKAGE.glob(pattern))]
    check_names(paths, options.file)
    options.work.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    tqdm.tqdm.monitor_interval = 0  # a thread would not survive a fork
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", str(options.work / "cache"))
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

    every = [fault for path in paths for fault in faults(path, PACKAGE)]
    every = [fault for fault in every if fault.file in (options.file or [fault.file])]
    listed = tomllib.loads((TESTS / "mutation_equivalent.toml").read_text(encoding="utf-8"))
    equivalent = {(entry["file"], entry["line"], entry["change"]) for entry in listed["fault"]}

    # Results of other sources or other tests are in another file.
    state = hashlib.sha256(jax.__version__.encode())
    for path in sorted({*PACKAGE.rglob("*.py"), *TESTS.glob("*.py")} - {TESTS / "mutation.py"}):
        state.update(path.read_bytes())
    journal = options.work / f"{state.hexdigest()[:16]}.jsonl"
    if not journal.exists():
        seconds = unmutated(options.work)
        journal.write_text(json.dumps({"seconds": seconds}) + "\n", encoding="utf-8")
    read_only()
    with journal.open(encoding="utf-8") as lines:
        first, *entries = map(json.loads, lines)
    seconds, results = first["seconds"], {e["fault"]: e["noticed"] for e in entries}
    failed_at = collections.defaultdict(collections.Counter)
    for entry in entries:
        failed_at[entry["file"]][entry["failed"]] += 1

    def order(fault):
        tests = [test for test, _ in failed_at[fault.file].most_common() if test]
        return Order(tests + first_modules(fault.file), seconds)

    todo = [fault for fault in every[:: options.every] if fault.name not in equivalent]
    todo = [fault for fault in todo if fault.digest not in results]
    timeout = int(3 * sum(seconds.values()) + 60)
    done = run(todo, order, timeout, options.quick, options.processes)
    with journal.open("a", encoding="utf-8") as out:
        for fault, noticed, failed, took in tqdm.tqdm(done, total=len(todo), unit="fault"):
            results[fault.digest] = noticed
            failed_at[fault.file][failed] += 1
            if not noticed and options.quick:
                continue  # another test may notice it
            entry = {"fault": fault.digest, "noticed": noticed, "failed": failed}
            entry |= {"file": fault.file, "line": fault.line, "change": fault.change}
            out.write(json.dumps(entry | {"took": round(took, 1)}) + "\n")
            out.flush()
    raise SystemExit(0 if report(every, results, equivalent) else 1)


if __name__ == "__main__":
    main()
