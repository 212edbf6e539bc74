"""Compares Adadelta with other optimizers on seven small tasks, without tuning and with tuning.

Every method has the same steps, initial weights and minibatches. First come the methods with their
usual settings, then ideas that could make Adadelta's default better, then methods whose learning
rate is chosen from the same seven factors of the usual one. The choice is by the validation error
of two seeds. The reported errors come from five other seeds. Last, some methods are trained with
five times the steps on three tasks.

The results of a task are in one file, which is saved after every method. A run that was stopped
goes on where it was. All seven tasks take up to an hour on two cores. With --draw-only nothing is
trained. Then the tables go into docs/when_to_use.md, if the folder is docs/when_to_use.

Needs: pip install -e ".[examples]"
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from studies._lib import report as _report
from studies._lib.stamps import stamp
from studies import _compare_report
from studies._lib import data as _data
from studies._lib.methods import FACTORS, LONGER, METHODS, TUNED
from studies._lib.tasks import TASKS, load
from studies._lib.training import ABREAST, Trainer

FOLDER, PAGE = _report.DOCS / "when_to_use", _report.DOCS / "when_to_use.md"
SEEDS, TUNING_SEEDS = tuple(range(ABREAST)), (100, 101)
TASKS_LONGER, TIMES_LONGER = ("digits", "MNIST, dense", "airfoil"), 5
DIGITS = 6  # That are saved of each number.


def main() -> None:
    """Reads the options, trains, draws, and prints the tables."""
    options, made = read_options()
    if not options.draw_only:
        for name in options.only:
            run(name, options, made)
    files = {name: file_of(name, options) for name in TASKS}
    found = {name: _report.load(file) for name, file in files.items() if file.exists()}
    if missing := [name for name in TASKS if not complete(name, found.get(name, {}))]:
        print(f"There are no tables and picture yet. Not finished: {', '.join(missing)}")
    else:
        for title, table in _compare_report.tables(found).items():
            print(f"{title}\n\n{table}\n")
        picture = options.output / f"compare{'-smoke' * options.smoke}.png"
        _compare_report.draw(found).savefig(picture)
        stamp(picture, Path(__file__), *map(_report.load, sorted(files.values())))
        print(f"Picture: {picture}")
        if options.output.resolve() == FOLDER and not options.smoke:
            PAGE.write_text(with_tables(PAGE.read_text("utf-8"), found), encoding="utf-8")
            print(f"Tables: {PAGE}")
    print(f"Numbers: {options.output}")


def read_options() -> tuple[argparse.Namespace, dict[str, Any]]:
    """Returns the options, and what made the results."""
    parser = _report.options("studies.compare", __doc__)
    add = parser.add_argument
    text = f"tasks to train, of {', '.join(map(repr, TASKS))}; the others stay as they are"
    add("--only", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK", help=text)
    text = "methods to train without tuning, for a quick look; none is tuned (default: all)"
    add("--methods", nargs="+", choices=METHODS, metavar="METHOD", help=text)
    text = "the folder for numbers and picture (default: docs/when_to_use)"
    add("--output", type=Path, default=FOLDER, help=text)
    add("--draw-only", action="store_true", help="train nothing (default: off)")
    add("--smoke", action="store_true", help="quick check at small sizes (default: off)")
    _data.add_options(parser)
    options = parser.parse_args()
    packages = (*_report.PACKAGES, "scikit-learn")
    given = argparse.Namespace(**vars(options) | {"only": list(TASKS)})  # Changes no number.
    return options, {} if options.draw_only else _report.provenance(parser, given, packages)


def file_of(task: str, options: argparse.Namespace) -> Path:
    """Returns where the results of a task are."""
    name = task.lower().replace(", ", "_")
    return options.output / f"{name}{'-smoke' * options.smoke}.json"


def complete(name: str, report: dict[str, Any]) -> bool:
    """Whether every method has been trained on the task, tuned, and trained for longer."""
    wanted = {"methods": METHODS, "tuned": TUNED, "longer": LONGER if name in TASKS_LONGER else ()}
    return all({*report.get(part, {})} == {*methods} for part, methods in wanted.items())


def run(name: str, options: argparse.Namespace, made: dict[str, Any]) -> None:
    """Trains all methods on a task, and saves the results of each as soon as they are there."""
    file = file_of(name, options)
    _report.check_writable(file)
    task = load(name, options)
    report = {**made, "task": task.facts(), "methods": {}, "tuned": {}, "longer": {}}
    if file.exists() and (saved := _report.load(file))["task"] == report["task"]:
        report |= saved

    methods = [m for m in options.methods or METHODS if m not in report["methods"]]
    tuned = [] if options.methods else [m for m in TUNED if m not in report["tuned"]]
    longer = LONGER if name in TASKS_LONGER and not options.methods else ()
    longer = [m for m in longer if m not in report["longer"]]
    trials = [(factor, seed) for seed in TUNING_SEEDS for factor in FACTORS]
    runs = len(methods) + len(tuned) * (1 + -(-len(trials) // ABREAST))
    runs += TIMES_LONGER * len(longer)
    with tqdm(total=runs * task.steps, desc=f"Training, {name}", unit="step") as bar:
        # Methods to tune come together, because then they compile once.
        for method in sorted({*methods, *tuned}, key=list(METHODS).index):
            trainer, usual = Trainer(task, METHODS[method]), METHODS[method].rate
            if method in methods:
                found = trainer.train([usual] * len(SEEDS), SEEDS, bar.update)
                report["methods"][method] = rounded({"learning rate": usual, **found})
                _report.save(file, report)
            if method in tuned:
                report["tuned"][method] = tune(trainer, usual, trials, bar)
                _report.save(file, report)
        task = task._replace(steps=TIMES_LONGER * task.steps)
        for method in longer:
            usual = METHODS[method].rate
            found = Trainer(task, METHODS[method]).train([usual] * len(SEEDS), SEEDS, bar.update)
            report["longer"][method] = rounded({"learning rate": usual, **found})
            _report.save(file, report)


def tune(trainer: Trainer, usual: float, trials: list, bar: tqdm) -> dict[str, Any]:
    """Returns the results with the learning rate that has the least validation error."""
    errors = []
    for first in range(0, len(trials), ABREAST):
        factors, seeds = zip(*trials[first : first + ABREAST], strict=True)
        found = trainer.train(usual * np.array(factors), seeds, bar.update)
        errors += found["validation error"].tolist()
    # A network that diverged is worse than any other.
    errors = np.nan_to_num(np.reshape(errors, (-1, len(FACTORS))), nan=np.inf)
    best = usual * FACTORS[int(errors.mean(axis=0).argmin())]
    found = trainer.train([best] * len(SEEDS), SEEDS, bar.update)
    tried = {"learning rates": usual * np.array(FACTORS), "validation errors": errors}
    return rounded({"learning rate": best, **found, "tried": tried})


def rounded(found: Any) -> Any:
    """Returns the results as JSON has them, with few digits."""
    if isinstance(found, dict):
        return {name: rounded(values) for name, values in found.items()}
    if np.ndim(found):
        return [rounded(value) for value in found]
    return float(f"{found:.{DIGITS}g}") if np.isfinite(found) else None  # JSON has no infinity.


def with_tables(page: str, found: dict[str, Any]) -> str:
    """Returns the page with the tables of the results."""
    for title, table in _compare_report.tables(found).items():
        page = _report.filled(page, title, table)
    return page


if __name__ == "__main__":
    # Optax's own Adam and schedules, as of 0.2.8, need implicit promotion.
    with jax.numpy_dtype_promotion("standard"):
        _report.run(main)
