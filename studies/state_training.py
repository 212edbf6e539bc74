"""Does training with averages in few bits end as well as in float32?

Four tasks are trained to the end, each with several seeds: the network of examples/digits.py on
scikit-learn's digits, the paper's 784-500-300-10 on MNIST for its six epochs, one block of
attention that learns to sort ten numbers, and a stress test, a quadratic whose gradients differ by
1e10 within every row. A seed sets the initial weights and the batch order, so the runs of a seed
differ only in how the averages are stored. The table says whether the mean over the seeds is within
float32's standard deviation over the seeds. It takes ten minutes.

Needs: pip install -e ".[examples]"
"""

import argparse
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax
from tqdm import tqdm

from optax_adadelta import adadelta
from studies._lib import data, tasks
from studies._lib.models import perceptron
from studies._lib.results import Report, Reports, Results, markdown
from studies._lib.storages import STORAGES
from studies._lib.study import SMOKE_SEEDS, Study, at_least, run
from studies._lib.tasks import Task
from studies._lib.training import Trainer

GLOROT = jax.nn.initializers.glorot_uniform()
MEASURES = {
    "training loss": "training loss",
    "test accuracy": "test accuracy, %",
    "distance": "distance, each scale counted alike",
}


class Training(NamedTuple):
    """A task, and how it is trained."""

    load: Callable[[argparse.Namespace], Task]
    batch: int
    steps: int
    clip: float = math.inf  # Of the gradient's norm.
    falls: bool = False  # Whether the learning rate falls from 1 to 0, evenly; else it is 1.
    measure: str = "test accuracy"

    def task(self, given: argparse.Namespace) -> Task:
        """Returns the task, small with --smoke."""
        task = self.load(given)._replace(batch=self.batch, steps=self.steps)
        return task.smaller() if given.smoke else task

    def make(self, bits: int | None, steps: int) -> optax.GradientTransformation:
        """Returns the optimizer, with averages of that width."""
        rate = optax.linear_schedule(1.0, 0.0, steps) if self.falls else 1.0
        rule = adadelta(rate, state_bits=bits)
        if math.isinf(self.clip):
            return rule
        return optax.chain(optax.clip_by_global_norm(self.clip), rule)


TRAININGS = {
    "digits": Training(lambda given: tasks.digits(given, (256, 128)), 32, 1360, clip=1.0),
    "MNIST": Training(
        lambda given: tasks.mnist(given, perceptron(784, 500, 300, 10, draw=GLOROT), 0), 100, 3600
    ),
    "sorting": Training(lambda given: tasks.sorting(given, 64, 10, 128), 50, 3200, falls=True),
    "mixed scales": Training(tasks.mixed_scales, 10, 2000, measure="distance"),
}


def trained(name: str, given: argparse.Namespace, seeds: int) -> Report:
    """Returns what a task's models end with, by storage and measure, in the order of the seeds."""
    training, results = TRAININGS[name], {}
    task, storages = training.task(given), list(STORAGES.items())[:: 2 if given.smoke else 1]
    with tqdm(total=len(storages) * task.steps, desc=f"Training, {name}", unit="step") as bar:
        for storage, bits in storages:
            trainer = Trainer(task, functools.partial(training.make, bits, task.steps))
            found = trainer.train({}, range(seeds), bar.update)
            error = found["test error"]
            measured = error if training.measure == "distance" else 100 - error
            ends = {"training loss": found["training loss"], training.measure: measured}
            results[storage] = {name: values.tolist() for name, values in ends.items()}
    return {"steps": task.steps, "batch": task.batch, "results": results}


def measure(given: argparse.Namespace, results: Results) -> None:
    results.load("state_training")
    seeds = SMOKE_SEEDS if given.smoke else given.seeds
    report = {**results.made, "seeds": seeds, "tasks": {}}
    for name in TRAININGS:
        report["tasks"][name] = trained(name, given, seeds)
        results.save("state_training", report)


def compared(results: Report) -> dict[str, Report]:
    """Returns the mean and spread by measure and storage, and whether it is within float32's."""
    summary = {}
    for measure in [m for m in MEASURES if m in results["float32"]]:
        full = np.asarray(results["float32"][measure])
        summary[measure] = {}
        for storage in results:
            values = np.asarray(results[storage][measure])
            with np.errstate(invalid="ignore"):  # A run that diverged is within no spread.
                summary[measure][storage] = {
                    "mean": values.mean(),
                    "spread": values.std(ddof=1),
                    "holds": bool(abs((values - full).mean()) <= full.std(ddof=1)),
                }
    return summary


def tables(reports: Reports) -> dict[str, str]:
    """Returns the means over the seeds. Float32's spread has two digits."""
    report = reports["state_training"]
    storages = list(next(iter(report["tasks"].values()))["results"])
    rows = []
    for task, content in report["tasks"].items():
        for measure, facts in compared(content["results"]).items():
            spread = facts["float32"]["spread"]
            decimals = 1 - math.floor(math.log10(spread)) if 0 < spread < math.inf else 2
            show = functools.partial("{:.{d}f}".format, d=max(decimals, 0))
            holds = ", ".join("yes" if facts[few]["holds"] else "no" for few in storages[1:])
            full, *few = (show(facts[storage]["mean"]) for storage in storages)
            row = [f"{full} ±{show(spread)}", *few]
            rows.append([f"{task}, {MEASURES[measure]}", holds, *row])
    head = [f"{report['seeds']} seeds", "within float32's spread", *storages]
    return {"state training": markdown(head, rows)}


def options(parser: argparse.ArgumentParser) -> None:
    text = "models of each task and storage, at least 2 (default: %(default)s)"
    parser.add_argument("--seeds", type=at_least(2), default=5, help=text)
    data.add_options(parser)


STUDY = Study("state_training", __doc__, "quantization", measure, tables, options=options)

if __name__ == "__main__":
    run(STUDY)
