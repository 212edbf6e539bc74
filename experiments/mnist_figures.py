"""The figures of the Adadelta paper on MNIST, and its four claims about step sizes, checked.

Figure 1 is the test error of SGD, Momentum, Adagrad and Adadelta over 50 epochs, each with the
setting that does best in the paper's tables. Figure 2 looks into Adadelta at work on the tanh
network: for ten coordinates of each weight matrix the step sizes RMS[dx] / RMS[g] and the
updates, every 60 minibatches for 25 epochs. In Section 4.3 the paper reads four things in it:
first the step sizes are larger in the lower layers and much smaller in the top one; near the end
all of them go to 1; then the updates go smoothly to zero as if annealed; and with no annealing
oscillations can build up in the numerator, RMS[dx]. Here each is measured over whole matrices.

Networks, minibatches and first weights are those of mnist_tables.py. Figure 1 takes half an hour
on two cores, Figure 2 three minutes.

Needs: pip install "optax_adadelta[examples]"
"""

import itertools
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import trange

from experiments import _mnist
from experiments._mnist import METHODS, Column
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

EPS = 1e-6
COLUMNS = {
    name: Column(METHODS[name], {"learning_rate": [rate]})
    for name, rate in (("SGD", 1.0), ("Momentum", 0.1), ("Adagrad", 0.01))
} | {"Adadelta": Column(adadelta, {"rho": [0.95], "eps": [EPS]})}
# Read off the paper's curves at their end.
PAPER = {"SGD": 1.77, "Momentum": 1.42, "Adagrad": 1.6, "Adadelta": 1.5}
EPOCHS = {"Figure 1": 50, "Figure 2": 25}
EVERY = 60
LAYERS = ("layer 1", "layer 2", "layer 3")


def figure_1(data, seeds: int, epochs: int) -> dict:
    """Returns the test errors in percent, [seeds, epochs] for each method."""
    each = list(_mnist.train(COLUMNS, data, seeds, epochs, "Figure 1"))
    return {
        "errors": {
            name: np.stack([errors[name][0] for errors in each], axis=1).astype(float).round(2)
            for name in COLUMNS
        }
    }


def figure_2(data, seeds: int, epochs: int) -> dict:
    """Returns samples of the first seed's run and, for each seed, means over whole matrices."""
    optimizer = adadelta(rho=0.95, eps=EPS)
    (images, labels), _ = data
    coordinates = choose_coordinates(optimizer.init(_mnist.init(jax.random.key(0))))
    coordinates = {f"{layer}/w": coordinates[f"{layer}/w"] for layer in LAYERS}

    def start(seed):
        params = _mnist.init(jax.random.key(seed))
        zeros = jax.tree.map(jnp.zeros_like, params)
        return params, optimizer.init(params), zeros, zeros

    def watch(net, batches, images, labels):
        """Makes a step for each minibatch and looks at the last."""

        def step(net, batch):
            params, state, before, _ = net
            grads = jax.grad(_mnist.loss)(params, images[batch], labels[batch], "tanh")
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state, updates, before), None

        net, _ = jax.lax.scan(step, net, batches)
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
        lambda nets, batches, *data: jax.lax.map(lambda each: watch(*each, *data), (nets, batches))
    )
    seen = []
    for epoch in trange(epochs, desc="Training, Figure 2", unit="epoch"):
        batches = np.stack([_mnist.batches(seed, epoch, len(labels)) for seed in range(seeds)])
        for first in range(0, batches.shape[1], EVERY):
            nets, now = advance(nets, batches[:, first : first + EVERY], images, labels)
            seen.append(jax.device_get(now))
    samples, whole = jax.tree.map(lambda *times: np.stack(times, axis=1), *seen)
    return {"samples": jax.tree.map(lambda array: array[0], samples)._asdict(), "whole": whole}


def draw_1(content: dict, output: Path) -> None:
    """Writes the picture of the test errors."""
    figure = Figure(figsize=(8.5, 4.8), dpi=110, layout="constrained")
    errors = content["errors"]
    axes = plot_curves({"Adadelta": errors["Adadelta"]} | errors, figure.subplots())
    title, epochs = "MNIST, mean and range of the seeds", content["epochs"]
    if epochs == EPOCHS["Figure 1"]:
        title += "; triangles: where the paper's curves end"
        for line in axes.get_lines():
            paper = PAPER[line.get_label()]
            axes.plot(epochs + 1, paper, marker="<", color=line.get_color(), clip_on=False)
    highest = max(np.mean(runs, axis=0)[-1] for runs in errors.values())
    axes.set(title=title, xlabel="epochs", ylabel="test error (%)")
    axes.set(xlim=(0, epochs + 1), ylim=(1, max(4, 1.3 * highest)))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(output)


def draw_2(content: dict, output: Path) -> None:
    """Writes the picture of step sizes and updates."""
    figure = Figure(figsize=(11, 5.6), dpi=110, layout="constrained")
    plot_samples(Sample(**arrays(content["samples"])), figure)
    sizes = (" x ".join(map(str, shape)) for shape in itertools.pairwise(_mnist.SIZES))
    for number, (axes, size) in enumerate(zip(figure.axes, sizes, strict=False), start=1):
        axes.set_title(f"Layer {number}, {size}")
    figure.suptitle("Adadelta on the tanh network: ten coordinates of each weight matrix")
    figure.savefig(output)


def arrays(tree: dict) -> dict:
    """Returns the tree, its keys in their order, with arrays for lists."""
    return {k: arrays(v) if isinstance(v, dict) else np.asarray(v) for k, v in tree.items()}


def lists(tree: dict) -> dict:
    """Returns the tree, its keys in their order, with lists of numbers of five digits."""
    short = np.vectorize(lambda number: float(f"{number:.5g}"))
    return {k: lists(v) if isinstance(v, dict) else short(v).tolist() for k, v in tree.items()}


def tell_1(content: dict) -> None:
    """Prints where the curves end, and the paper's beside."""
    print(f"Figure 1: test error in % after {content['epochs']} epochs, and at its lowest")
    for name, errors in arrays(content["errors"]).items():
        at_end, means = errors[:, -1], errors.mean(axis=0)
        print(
            f"  {name:9} {at_end.mean():.2f}, seeds {at_end.min():.2f} to {at_end.max():.2f}"
            f" (paper, after 50: about {PAPER[name]});"
            f" lowest mean {means.min():.2f} in epoch {means.argmin() + 1}"
        )


def tell_2(content: dict) -> None:
    """Prints the four claims of Section 4.3, and what came out."""
    seeds = len(content["whole"]["layer 1"]["rate"])

    def each(what):
        """Returns what was seen of each layer, [layers, seeds, times]."""
        return np.stack([content["whole"][layer][what] for layer in LAYERS])

    def by_layer(values, form=".3g"):
        return numbers(values.mean(axis=1), form)

    rate, update, numerator, cosine = map(each, ("rate", "update", "numerator", "cosine"))
    verdict = {True: "true", False: "not true"}
    print(
        f"Figure 2: the claims of Section 4.3 after {content['epochs']} epochs, in means over each"
        f" weight matrix and {seeds} seeds, from layer 1 to the top one"
    )
    first = rate[:, :, 0]
    print(
        f"  1. First the step sizes are larger in lower layers, much smaller in the top one:"
        f" {by_layer(first)} at the first look:"
        f" {verdict[bool((np.diff(first, axis=0) < 0).all() and (first[2] < first[0] / 2).all())]}."
    )
    last = rate[:, :, -1]
    print(
        f"  2. Near the end all step sizes go to 1: their means are {by_layer(last, '.5f')}:"
        f" {verdict[bool((abs(last - 1) < 0.01).all())]}."
    )
    tenth = max(1, update.shape[2] // 10)
    begin, end = update[:, :, :tenth].mean(axis=2), update[:, :, -tenth:].mean(axis=2)
    order = rank_correlation(update.mean(axis=1))
    print(
        f"  3. The updates then go smoothly to 0: their root mean square falls from"
        f" {by_layer(begin)} in the first tenth to {by_layer(end)} in the last,"
        f" 1/{by_layer(begin / end, '.0f').replace(', ', ', 1/')}, in a rank correlation with time"
        f" of {numbers(order, '.2f')}:"
        f" {verdict[bool((end < begin / 10).all() and (order < -0.9).all())]}."
    )
    size, turn = numerator.mean(axis=1), cosine.mean(axis=1)
    when = (size.argmax(axis=1) + 1) * content["epochs"] / size.shape[1]
    grown_by_turning = (size > 1.5 * size[:, :1]) & (turn < -0.5)
    print(
        f"  4. Oscillations can build up in the numerator: RMS[dx] is {numbers(size[:, 0])} first,"
        f" {numbers(size.max(axis=1))} at its highest (epoch {numbers(when, '.1f')}) and"
        f" {numbers(size[:, -1])} at the end, sqrt(eps) being {EPS**0.5:g}; one update and the"
        f" next have a cosine of {numbers(turn[:, :tenth].mean(axis=1), '.2f')} in the first tenth"
        f" and {numbers(turn[:, -tenth:].mean(axis=1), '.2f')} in the last, -1 being oscillation:"
        f" {verdict[bool(grown_by_turning.any())]} of this run."
    )


def numbers(values, form: str = ".3g") -> str:
    """Returns the values in words."""
    return ", ".join(f"{value:{form}}" for value in values)


def rank_correlation(values: np.ndarray) -> np.ndarray:
    """Returns Spearman's rank correlation of each row with its order: -1 if it always falls."""
    if values.shape[1] < 2:
        return np.zeros(len(values))
    ranks = values.argsort(axis=1).argsort(axis=1)
    return np.array([np.corrcoef(row, np.arange(len(row)))[0, 1] for row in ranks])


def main() -> None:
    """Reads the options, trains, draws, and says what came out."""
    make = {"Figure 1": figure_1, "Figure 2": figure_2}
    found, file = _mnist.results(
        __doc__, EPOCHS, lambda figure, *given: lists(make[figure](*given)), smoke_epochs=3
    )
    for figure, content in found.items():
        name = figure.lower().replace(" ", "_")
        picture = file.with_name(file.stem.replace("figures", name) + ".png")
        {"Figure 1": draw_1, "Figure 2": draw_2}[figure](content, picture)
        {"Figure 1": tell_1, "Figure 2": tell_2}[figure](content)
        print(f"  Picture: {picture}")
    print(f"Numbers: {file}")


if __name__ == "__main__":
    main()
