"""Compares Adadelta with other optimizers on seven small tasks, without tuning and with tuning.

Every method has the same steps, initial weights and minibatches. First come the methods with their
usual settings, then ideas that could make Adadelta's default better, then methods whose learning
rate is chosen from the same seven factors of the usual one. The choice is by the validation error
of two seeds. The reported errors come from five other seeds. The results also have some methods
with five times the steps on three tasks, which are measured no more.

The results of a task are in one file, which is saved after every method. A run that was stopped
goes on where it was. All seven tasks take up to an hour on two cores.

The settings of nadadelta were chosen on the seven tasks, by the rule in _compare_choice.py. Then
they were verified on the tasks of _lib/unseen.py.

A new method is an entry in _lib/methods.py, a new task one in _lib/tasks.py.
"""

import argparse

import jax
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from studies import _compare_choice, _compare_report
from studies._lib import data
from studies._lib.methods import FACTORS, METHODS, TUNED, VERIFIED
from studies._lib.results import Report, Reports, Results, rounded
from studies._lib.study import Study, run
from studies._lib.tasks import TASKS, Task
from studies._lib.training import Trainer
from studies._lib.unseen import UNSEEN

TUNING_SEEDS = (100, 101)
TRIALS = [(seed, factor) for seed in TUNING_SEEDS for factor in FACTORS]
EVERY_TASK = {**TASKS, **UNSEEN}


def options(parser: argparse.ArgumentParser) -> None:
    add, every = parser.add_argument, list(EVERY_TASK)
    text = f"tasks to train, of {', '.join(map(repr, every))} (default: all)"
    add("--only", nargs="+", choices=every, default=every, metavar="TASK", help=text)
    text = "methods to train without tuning, for a quick look; none is tuned (default: all)"
    add("--methods", nargs="+", choices=METHODS, metavar="METHOD", help=text)
    data.add_options(parser)


def file_of(task: str) -> str:
    """Returns the name of the file that has the results of a task."""
    return f"compare-{task.lower().replace(', ', '_').replace(' ', '_')}"


def by_task(reports: Reports) -> Reports:
    """Returns the reports by the names of their tasks, in their order."""
    return {name: reports[file_of(name)] for name in EVERY_TASK if file_of(name) in reports}


def unfinished(reports: Reports) -> list[str]:
    """Returns the tasks on which nothing was trained. Tables leave out methods with no results."""
    return [name for name in EVERY_TASK if name not in by_task(reports)]


def wanted(task: str) -> dict[str, tuple[str, ...]]:
    """Returns the methods to train on a task, and those to tune."""
    if task in UNSEEN:
        return {"methods": VERIFIED, "tuned": ()}
    return {"methods": (*METHODS,), "tuned": TUNED}


def measure(given: argparse.Namespace, results: Results) -> None:
    # Optax's own Adam and schedules, as of 0.2.8, need implicit promotion.
    with jax.numpy_dtype_promotion("standard"):
        for name in given.only:
            train_all(name, given, results)


def train_all(name: str, given: argparse.Namespace, results: Results) -> None:
    """Trains the methods on a task that are not in its file yet."""
    saved = results.load(file_of(name))
    task = EVERY_TASK[name](given)
    task = task.smaller() if given.smoke else task
    report = {**results.made, "task": task.facts(), "methods": {}, "tuned": {}}
    if saved.get("task") == report["task"]:
        report |= saved
    todo = {"methods": given.methods, "tuned": ()} if given.methods else wanted(name)
    todo = {
        part: [m for m in methods if not complete(report[part].get(m), task)]
        for part, methods in todo.items()
    }
    sizes = {"methods": task.steps, "tuned": (1 + -(-len(TRIALS) // task.seeds)) * task.steps}
    total = sum(sizes[part] * len(methods) for part, methods in todo.items())
    with tqdm(total=total, desc=f"Training, {name}", unit="step") as bar:
        for method in METHODS:
            trainer = trainer_of(task, method)
            for part, trained in (("methods", usual), ("tuned", tuned)):
                if method in todo[part]:
                    report[part][method] = rounded(trained(trainer, METHODS[method].rate, bar))
                    results.save(file_of(name), report)


def complete(result: Report | None, task: Task) -> bool:
    """Returns whether there is a result of every seed."""
    return result is not None and len(result["test error"]) == task.seeds


def trainer_of(task: Task, name: str) -> Trainer:
    """Returns what trains a network for each seed, all in one compiled program."""
    method = METHODS[name]
    return Trainer(
        task, lambda rate: method.make(rate, task.steps), method.evaluated, abreast=task.abreast
    )


def usual(trainer: Trainer, rate: float, bar: tqdm) -> Report:
    """Returns the results with this learning rate."""
    seeds = range(trainer.task.seeds)
    found = trainer.train({"rate": [rate] * len(seeds)}, seeds, bar.update)
    return {"learning rate": rate, **found}


def tuned(trainer: Trainer, rate: float, bar: tqdm) -> Report:
    """Returns the results with the learning rate that has the least validation error."""
    abreast, errors = trainer.task.seeds, []
    # Always as many at once, so that nothing compiles again.
    trials = np.resize(TRIALS, (-(-len(TRIALS) // abreast), abreast, 2))
    for seeds, factors in np.moveaxis(trials, 2, 1):
        found = trainer.train({"rate": rate * factors}, seeds.astype(int), bar.update)
        errors += found["validation error"].tolist()
    errors = np.reshape(errors[: len(TRIALS)], (len(TUNING_SEEDS), -1))
    # A network that diverged is worse than any other.
    best = FACTORS[int(np.nan_to_num(errors, nan=np.inf).mean(axis=0).argmin())]
    tried = {"learning rates": rate * np.array(FACTORS), "validation errors": errors}
    return usual(trainer, rate * best, bar) | {"tried": tried}


def tables(reports: Reports) -> dict[str, str]:
    found = by_task(reports)
    seven, unseen = ({name: found[name] for name in tasks} for tasks in (TASKS, UNSEEN))
    return {
        "seven tasks": _compare_report.table_of_errors(seven, _compare_report.SHOWN),
        "other tasks": _compare_report.table_of_errors(unseen, _compare_report.SHOWN),
        "every method, seven tasks": _compare_report.table_of_errors(seven),
        "every method, other tasks": _compare_report.table_of_errors(unseen),
        "choice": _compare_choice.table_of_choice(seven),
        "tasks": _compare_report.table_of_tasks({**seven, **unseen}),
    }


def pictures(reports: Reports) -> dict[str, Figure]:
    found = by_task(reports)
    return {"compare": _compare_report.draw({name: found[name] for name in TASKS})}


STUDY = Study(
    "compare",
    __doc__,
    "when_to_use",
    measure,
    tables,
    pictures=pictures,
    options=options,
    files="compare-*",
    missing=unfinished,
)

if __name__ == "__main__":
    run(STUDY)
