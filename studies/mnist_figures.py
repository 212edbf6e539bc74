"""The figures of the Adadelta paper on MNIST, and measurements of its claims about step sizes.

Figure 1 is the test error of SGD, Momentum, Adagrad and Adadelta over 50 epochs, each with its best
setting from the paper's tables. Figure 2 shows Adadelta on the tanh network: for ten elements of
each weight matrix the effective learning rates RMS[dx] / RMS[g] and the updates, every 60
minibatches for 25 epochs. In Section 4.3 the paper reads four things from it. At first the step
sizes are larger in the lower layers and much smaller in the top layer. Near the end all step sizes
go to 1. The updates then go smoothly to zero, as if annealed. Without annealing, oscillations can
build up in the numerator, RMS[dx]. The table measures these over whole matrices.

Networks, minibatches and initial weights are those of mnist_tables.py. Figure 1 takes half an hour
on two cores, Figure 2 three minutes.

Needs: pip install -e ".[examples]"
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tqdm import trange

from optax_adadelta import adadelta
from optax_adadelta.diagnostics import (
    Sample,
    choose_coordinates,
    effective_learning_rate,
    find_state,
    plot_curves,
    plot_samples,
    sample,
)
from studies import _mnist
from studies._lib.results import Report, markdown, rounded
from studies._lib.study import in_parts, run
from studies._mnist import METHODS, Column

EPS = 1e-6
COLUMNS = {
    name: Column(METHODS[name], {"learning_rate": [rate]})
    for name, rate in (("SGD", 1.0), ("Momentum", 0.1), ("Adagrad", 0.01))
} | {"Adadelta": Column(adadelta, {"rho": [0.95], "eps": [EPS]})}
# Read from the ends of the curves in the paper.
PAPER = {"SGD": 1.77, "Momentum": 1.42, "Adagrad": 1.6, "Adadelta": 1.5}
EPOCHS = {"Figure 1": 50, "Figure 2": 25}
EVERY = 60
LAYERS = ("layer 1", "layer 2", "layer 3")


def figure_1(data, seeds: int, epochs: int) -> Report:
    """Returns the test errors in percent, [seeds, epochs] for each method."""
    errors = _mnist.train(COLUMNS, data, seeds, epochs, "Figure 1")
    return {"errors": {name: runs[0].astype(float).round(2) for name, runs in errors.items()}}


def figure_2(data, seeds: int, epochs: int) -> Report:
    """Returns samples of the first seed's run and, for each seed, means over whole matrices."""
    optimizer, task = adadelta(rho=0.95, eps=EPS), _mnist.task_of(data, jnp.tanh)
    coordinates = choose_coordinates(optimizer.init(task.model.init(jax.random.key(0))))
    coordinates = {f"{layer}/w": coordinates[f"{layer}/w"] for layer in LAYERS}

    def start(seed):
        params = task.model.init(jax.random.key(seed))
        zeros = jax.tree.map(jnp.zeros_like, params)
        return params, optimizer.init(params), zeros, zeros

    def watch(net, indices, data):
        """Makes a step for each minibatch and looks at the last."""

        def step(net, batch):
            params, state, before, _ = net
            grads = jax.grad(task.loss)(params, *(a[batch] for a in data))
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state, updates, before), None

        net, _ = jax.lax.scan(step, net, indices)
        _, state, updates, before = net
        rates, averages = effective_learning_rate(state, EPS), find_state(state).e_x
        whole = {
            layer: {
                "rate": rates[layer]["w"].mean(),
                "update": jnp.sqrt(jnp.mean(updates[layer]["w"] ** 2)),
                "numerator": jnp.sqrt(averages[layer]["w"] + EPS).mean(),
                "cosine": optax.losses.cosine_similarity(
                    updates[layer]["w"].ravel(), before[layer]["w"].ravel()
                ),
            }
            for layer in LAYERS
        }
        return net, (sample(state, updates, coordinates, EPS), whole)

    nets = jax.jit(jax.vmap(start))(jnp.arange(seeds))
    advance = partial(jax.jit, donate_argnums=0)(
        lambda nets, indices, data: jax.lax.map(lambda each: watch(*each, data), (nets, indices))
    )
    seen = []
    for epoch in trange(epochs, desc="Training, Figure 2", unit="epoch"):
        order = _mnist.orders(seeds, epoch, task)
        for first in range(0, order.shape[1], EVERY):
            nets, now = advance(nets, order[:, first : first + EVERY], task.train)
            seen.append(jax.device_get(now))
    samples, whole = jax.tree.map(lambda *times: np.stack(times, axis=1), *seen)
    return {"samples": jax.tree.map(lambda array: array[0], samples)._asdict(), "whole": whole}


def draw_1(content: Report) -> Figure:
    """Returns the picture of the test errors."""
    figure = Figure(figsize=(8.5, 4.8), dpi=110, layout="constrained")
    errors = content["errors"]
    axes = plot_curves({"Adadelta": errors["Adadelta"]} | errors, figure.subplots())
    title, epochs = "MNIST, mean and range of the seeds", content["epochs"]
    if epochs == EPOCHS["Figure 1"]:
        title += "; triangles: ends of the paper's curves"
        for line in axes.get_lines():
            paper = PAPER[line.get_label()]
            axes.plot(epochs + 1, paper, marker="<", color=line.get_color(), clip_on=False)
    axes.set(title=title, xlabel="epochs", ylabel="test error (%)", yscale="log")
    axes.set_xlim(0, epochs + 1)
    axes.set_yticks((1, 1.5, 2, 3, 5, 10, 20, 50), (1, 1.5, 2, 3, 5, 10, 20, 50))
    axes.minorticks_off()
    axes.set_ylim(1, 1.1 * max(map(np.max, errors.values())))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_2(content: Report) -> Figure:
    """Returns the picture of effective learning rates and updates."""
    figure = Figure(figsize=(11, 5.6), dpi=110, layout="constrained")
    plot_samples(Sample(**arrays(content["samples"])), figure)
    sizes = (" x ".join(map(str, shape)) for shape in itertools.pairwise(_mnist.SIZES))
    for number, (axes, size) in enumerate(zip(figure.axes, sizes, strict=False), start=1):
        axes.set_title(f"Layer {number}, {size}")
    for axes in figure.axes:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    figure.suptitle("Adadelta on the tanh network: ten elements of each weight matrix")
    return figure


def arrays(tree: dict) -> Report:
    """Returns the tree, its keys in their order, with arrays for lists."""
    return {k: arrays(v) if isinstance(v, dict) else np.asarray(v) for k, v in tree.items()}


def table_2(content: Report) -> str:
    """Returns what the claims of Section 4.3 are about, in means over the seeds, as Markdown."""
    rate, update, numerator, cosine = (
        np.stack([content["whole"][layer][what] for layer in LAYERS]).mean(axis=1)
        for what in ("rate", "update", "numerator", "cosine")
    )
    tenth = max(1, update.shape[1] // 10)
    begin, end = update[:, :tenth].mean(axis=1), update[:, -tenth:].mean(axis=1)
    measured = {
        "1. step size at first": (rate[:, 0], ".2f"),
        "2. step size at the end": (rate[:, -1], ".5f"),
        "3. updates, first tenth over last tenth": (begin / end, ".0f"),
        "3. rank correlation of the updates with time": (rank_correlation(update), ".2f"),
        "4. RMS[dx], highest over first": (numerator.max(axis=1) / numerator[:, 0], ".2f"),
        "4. RMS[dx], last over sqrt(eps)": (numerator[:, -1] / EPS**0.5, ".3f"),
        "4. cosine of successive updates, first tenth": (cosine[:, :tenth].mean(axis=1), "z.2f"),
        "4. cosine of successive updates, last tenth": (cosine[:, -tenth:].mean(axis=1), "z.2f"),
    }
    rows = [[name, *(f"{v:{form}}" for v in values)] for name, (values, form) in measured.items()]
    return markdown(["claim, and what is measured", *LAYERS], rows)


def rank_correlation(values: np.ndarray) -> np.ndarray:
    """Returns Spearman's rank correlation of each row with its order: -1 if it always falls."""
    if values.shape[1] < 2:
        return np.zeros(len(values))
    ranks = values.argsort(axis=1).argsort(axis=1)
    return np.array([np.corrcoef(row, np.arange(len(row)))[0, 1] for row in ranks])


def make(figure: str, data, options) -> Report:
    """Returns the numbers of a figure."""
    function = {"Figure 1": figure_1, "Figure 2": figure_2}[figure]
    return rounded(function(data, options.seeds, options.epochs), digits=5)


STUDY = in_parts(
    "mnist_figures",
    __doc__,
    "gallery",
    epochs=EPOCHS,
    smoke_epochs=3,
    load=_mnist.load,
    make=make,
    tables=lambda found: {"mnist figure 2": table_2(found["Figure 2"])},
    pictures=lambda found: {
        "mnist_figure_1": draw_1(found["Figure 1"]),
        "mnist_figure_2": draw_2(found["Figure 2"]),
    },
)

if __name__ == "__main__":
    run(STUDY)
