"""What a change of units does to training: of the loss, and of one array of the parameters.

The same network learns the digits of scikit-learn, written in other units. Either its loss is
multiplied by a number, or the weights of its first layer are stored that many times as large and
divided by it inside the model. Neither changes what the network can learn, or where it starts. It
takes a minute.
"""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from studies._lib.methods import METHODS
from studies._lib.results import Report, Results, rounded
from studies._lib.study import Study, run
from studies._lib.tasks import Task, digits
from studies._lib.training import batches

SHOWN = {
    "nadadelta": "nadadelta",
    "Adadelta": "adadelta()",
    "Adam, cosine": "Adam, 1e-3, cosine",
    "Prodigy, linear": "Prodigy, linear",
    "SGD, momentum": "SGD, momentum, 0.1",
}
UNITS = {"loss": "the loss", "array": "the first layer's weights"}
FACTORS = tuple(10.0**power for power in range(-4, 5))
SEED = 0
LEAST = 1e-7  # Smaller losses are drawn there.


def trained(task: Task, method: str, what: str) -> np.ndarray:
    """Returns the training loss at the end for each factor."""
    optimizer = METHODS[method].make(METHODS[method].rate, task.steps)
    order = batches(SEED, len(task.train[-1]), task.batch, task.steps)

    def with_first(params, change: Callable):
        return {**params, "layer 1": {**params["layer 1"], "w": change(params["layer 1"]["w"])}}

    @jax.vmap
    def train(factor):
        array, times = (factor, 1.0) if what == "array" else (1.0, factor)

        def loss(params, *data):
            return times * task.loss(with_first(params, lambda w: w / array), *data)

        def step(at, batch):
            params, state = at
            grads = jax.grad(loss)(params, *(jnp.asarray(a)[batch] for a in task.train))
            updates, state = optimizer.update(grads, state, params)
            return (jax.tree.map(jnp.add, params, updates), state), None

        params = with_first(task.model.init(jax.random.key(SEED)), lambda w: w * array)
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), order)
        return loss(params, *task.train) / times

    return np.asarray(jax.jit(train)(jnp.array(FACTORS)))


def measure(given: argparse.Namespace, results: Results) -> None:
    task, found = digits(given), {what: {} for what in UNITS}
    task = task.smaller() if given.smoke else task
    results.load("units")
    pairs = [(what, method) for what in UNITS for method in SHOWN]
    for what, method in tqdm(pairs, unit="method"):
        # Optax's own Prodigy needs implicit promotion.
        with jax.numpy_dtype_promotion("standard"):
            found[what][method] = rounded(trained(task, method, what))
    results.save("units", {**results.made, "factors": FACTORS, "training loss": found})


def draw(report: Report) -> Figure:
    figure = Figure(figsize=(9, 3.8), dpi=120, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    colors = ("#EE6677", "#4477AA", "#228833", "#CCBB44", "#777777")
    for axes, (what, name) in zip(panels, UNITS.items(), strict=True):
        for (method, label), color in zip(SHOWN.items(), colors, strict=True):
            losses = np.maximum(report["training loss"][what][method], LEAST)
            width = 3 if method == "nadadelta" else 1.6
            axes.plot(report["factors"], losses, "o-", color=color, linewidth=width, label=label)
        axes.set(title=f"other units for {name}", xscale="log", yscale="log", ylim=(LEAST, 5))
        axes.set_xlabel(f"{name} times")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#E6E6E6")
    panels[0].set_ylabel("training loss after 2000 steps")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(SHOWN), frameon=False)
    return figure


STUDY = Study(
    "units",
    __doc__,
    "nadadelta",
    measure,
    tables=lambda reports: {},
    pictures=lambda reports: {"units": draw(reports["units"])},
)

if __name__ == "__main__":
    run(STUDY)
