"""Does training with averages in 16 or 8 bits end as well as in float32?

Four tasks are trained to the end, each with several seeds: the network of examples/digits.py on
scikit-learn's digits, the paper's 784-500-300-10 on MNIST for its six epochs, one block of
attention that learns to sort ten numbers, and a stress test, a quadratic whose gradients differ by
1e10 within every row. A seed sets the initial weights and the batch order, so the runs of a seed
differ only in how the averages are stored. The table says whether the mean over the seeds is within
float32's standard deviation over the seeds.

MNIST is read from a folder that has its four published files. Without one it is left out. Nothing
is downloaded.

    pip install -e ".[examples]" && python -m studies.state_training --data-dir FOLDER
"""

import functools
import math
import pathlib
from typing import Any

import jax
import numpy as np
import optax
from tqdm import tqdm

from studies._lib.report import (
    DOCS,
    check_writable,
    filled,
    load,
    markdown,
    options,
    provenance,
    save,
)
from studies._lib.report import RESULTS as FOLDER
from studies._lib.report import run as run_script
from studies._lib.storage_tasks import MNIST, Task, tasks
from optax_adadelta import adadelta

PAGE = DOCS / "quantization.md"
RESULTS = FOLDER / "state_training.json"
PART = "state training"
PACKAGES = ("optax_adadelta", "optax", "jax", "jaxlib", "numpy", "scikit-learn")
WIDTHS = {"float32": None, "16 bits": 16, "8 bits": 8}
MEASURES = {
    "training loss": "training loss",
    "test accuracy": "test accuracy, %",
    "distance": "distance, each scale counted alike",
}


def optimizer(task: Task, bits: int | None) -> optax.GradientTransformation:
    """The task's optimizer, with averages of that width."""
    rate = optax.linear_schedule(1.0, 0.0, task.epochs * task.steps) if task.decay else 1.0
    rule = adadelta(rate, state_bits=bits)
    return rule if task.clip is None else optax.chain(optax.clip_by_global_norm(task.clip), rule)


def trainer(task: Task, bits: int | None):
    """Returns a function that trains one model, and gives what it ends with."""
    rule = optimizer(task, bits)

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(carry, data, batches):
        def step(carry, batch):
            params, state = carry
            loss, grads = jax.value_and_grad(task.loss)(params, *(part[batch] for part in data))
            updates, state = rule.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        carry, losses = jax.lax.scan(step, carry, batches)
        return carry, losses.mean()

    def train(seed: int, bar: tqdm) -> dict[str, Any]:
        params = task.init(jax.random.key(seed))
        carry = params, rule.init(params)
        for number in range(task.epochs):
            order = np.random.default_rng((seed, number)).permutation(len(task.train[0]))
            batches = order[: task.steps * task.batch].reshape(task.steps, task.batch)
            carry, loss = epoch(carry, task.train, batches.astype(np.int32))
            jax.block_until_ready(carry)  # The bar shows what is done, not what is queued.
            bar.update(task.steps)
        ends = {"training loss": loss, **task.measure(carry[0], *task.test)}
        return {name: np.asarray(value, float).tolist() for name, value in ends.items()}

    return train


def run(name: str, task: Task, seeds: int) -> dict[str, Any]:
    """Returns what a task's models end with, by width and measure, in the order of the seeds."""
    results = {}
    total = len(WIDTHS) * seeds * task.epochs * task.steps
    with tqdm(total=total, desc=f"Training, {name}", unit="step") as bar:
        for width, bits in WIDTHS.items():
            train = trainer(task, bits)
            ends = [train(seed, bar) for seed in range(seeds)]
            results[width] = {measure: [end[measure] for end in ends] for measure in ends[0]}
    return {"epochs": task.epochs, "batch": task.batch, "results": results}


def compared(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the mean and spread by measure and width, and for few bits how far from float32."""
    summary = {}
    for measure in [m for m in MEASURES if m in results["float32"]]:
        full = np.asarray(results["float32"][measure])
        summary[measure] = {}
        for width in WIDTHS:
            values = np.asarray(results[width][measure])
            with np.errstate(invalid="ignore"):  # A run that diverged is within no spread.
                apart = values - full
                summary[measure][width] = {
                    "mean": values.mean(),
                    "spread": values.std(ddof=1),
                    "apart": apart.mean(),
                    "spread apart": apart.std(ddof=1),
                    "holds": bool(abs(apart.mean()) <= full.std(ddof=1)),
                }
    return summary


def table(report: dict[str, Any]) -> str:
    """The results as Markdown; a row has so many decimals that float32's spread has two digits."""
    widths = list(WIDTHS)[1:]
    heads = [f"{report['seeds']} seeds", "measured", *WIDTHS]
    heads += [f"{width} less float32" for width in widths] + ["within float32's spread"]
    rows = []
    for task, content in report["tasks"].items():
        for measure, facts in compared(content["results"]).items():
            spread = facts["float32"]["spread"]
            decimals = 1 - math.floor(math.log10(spread)) if 0 < spread < math.inf else 2
            pair = functools.partial("{:{}.{d}f} ± {:.{d}f}".format, d=max(decimals, 0))
            cells = [task, MEASURES[measure]]
            cells += [pair(f["mean"], "", f["spread"]) for f in facts.values()]
            few = [facts[width] for width in widths]
            cells += [pair(f["apart"], "+", f["spread apart"]) for f in few]
            cells.append(", ".join("yes" if f["holds"] else "no" for f in few))
            rows.append(cells)
    return markdown(heads, rows)


def with_table(page: str, report: dict[str, Any]) -> str:
    """The page with its table made anew."""
    return filled(page, PART, table(report))


def main() -> None:
    """Reads the options, trains, writes, and prints the results."""
    parser = options(__spec__.name, __doc__, "state_training.json", PAGE)
    add = parser.add_argument
    text = "a folder with the four files of MNIST (default: MNIST is left out)"
    add("--data-dir", type=pathlib.Path, help=text)
    text = "models of each task and width, at least 2 (default: %(default)s)"
    add("--seeds", type=int, default=5, help=text)
    given = parser.parse_args()
    if given.seeds < 2:
        parser.error("--seeds must be at least 2, for a spread")
    folder = given.data_dir
    missing = [name for names in MNIST for name in names if folder and not (folder / name).exists()]
    if missing:
        parser.error(f"there is no {', '.join(missing)} in --data-dir {folder}")

    if given.table:
        report = load(given.output)
        PAGE.write_text(with_table(PAGE.read_text("utf-8"), report), encoding="utf-8")
    else:
        seeds = 2 if given.smoke else given.seeds
        if folder is None:
            print("MNIST is left out: without --data-dir there are no files of it.")
        check_writable(given.output)
        report = provenance(parser, given, PACKAGES) | {"seeds": seeds, "tasks": {}}
        for name, task in tasks(given.smoke, folder).items():
            report["tasks"][name] = run(name, task, seeds)
            save(given.output, report)
    print(table(report))
    print("Means and standard deviations over the seeds, and of the differences seed by seed.")
    print(f"Results: {given.output}")


if __name__ == "__main__":
    run_script(main)
