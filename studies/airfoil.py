"""The experiment and the exercises of Dive into Deep Learning, section 12.9, on airfoil noise.

A linear model predicts the noise of an airfoil from five properties, all standardized. Adadelta
(rho 0.9, eps 1e-5) trains it for two epochs in minibatches of 10. After that come the book's four
exercises, all but one with a picture and a table:

1. What does rho do?
2. Is the algorithm the same, and cheaper, without g', as one root of a quotient of averages? Its
   answer stands in docs/reproductions.md.
3. Is Adadelta really free of learning rates? Six problems that break it, each with its cure.
4. How do Adagrad, RMSProp and Adam compare?

One compiled program trains all runs of a method, seeds and settings side by side. The runs of a
seed have the same initial weights and minibatches. It takes under a minute.

Needs: pip install -e ".[examples]"
"""

import argparse
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
import optax
from matplotlib.figure import Figure

from optax_adadelta import adadelta
from studies import _airfoil_breakers
from studies._airfoil import COLORS, EPS, GOOD, RHO, draw_lines, least_squares, prepare, train
from studies._lib.data import airfoil as read_airfoil
from studies._lib.results import Report, markdown
from studies._lib.study import in_parts, run

THIN = 5  # Of the losses after every step, every fifth is saved.
RHOS = [0.5, 0.8, 0.9, 0.95, 0.99, 0.999]
RATES = [10 ** (n / 2) for n in range(-8, 3)]
EPSILONS = [10 ** (n / 2) for n in range(-20, 1)]
BOOK = (0.243, 0.248)  # The final losses of the book's runs.
GRIDS = {
    # The paper of Adagrad starts from zero, Optax from 0.1.
    "Adagrad": (partial(optax.adagrad, initial_accumulator_value=0.0), "learning_rate", RATES),
    "RMSProp": (optax.rmsprop, "learning_rate", RATES),
    "Adam": (optax.adam, "learning_rate", RATES),
    "Adadelta": (partial(adadelta, rho=RHO, eps=EPS), "learning_rate", RATES),
    "Adadelta's eps": (partial(adadelta, rho=RHO), "eps", EPSILONS),
}


def experiment(data, seeds: int, epochs: int) -> Report:
    """Returns the losses with the book's eps and with a tenth of it."""
    epsilons = [EPS, EPS / 10]
    losses = train(partial(adadelta, rho=RHO), {"eps": epsilons}, data, seeds, epochs)
    return {
        "least squares": least_squares(*data),
        "eps": epsilons,
        "losses": losses[0, :, ::THIN].tolist(),
        "final": losses[:, :, -1].tolist(),
    }


def vary_rho(data, seeds: int, epochs: int) -> Report:
    """Exercise 1: returns the losses for every rho."""
    losses = train(partial(adadelta, eps=EPS), {"rho": RHOS}, data, seeds, epochs)
    return {
        "rho": RHOS,
        "losses": losses[:, :, ::THIN].mean(axis=1).tolist(),
        "final": losses[:, :, -1].tolist(),
    }


def compare_methods(data, seeds: int, epochs: int) -> Report:
    """Exercise 4: returns the final losses of each method over its grid."""
    found = {}
    for name, (optimizer, setting, values) in GRIDS.items():
        final = train(optimizer, {setting: values}, data, seeds, epochs)[:, :, -1]
        found[name] = {"x": values, "final": final.tolist()}
    return {"methods": found}


def make(part: str, data, options: argparse.Namespace) -> Report:
    """Returns the results of a part."""
    few = (data, options.seeds, options.epochs)
    # Optax's own Adam and schedules, as of 0.2.8, need implicit promotion.
    with jax.numpy_dtype_promotion("standard"):
        if part == "experiment":
            return experiment(*few)
        if part == "rho":
            return vary_rho(*few)
        if part == "breakers":
            return _airfoil_breakers.run(*few, least_squares(*data), options.smoke)
        return compare_methods(*few)


def pictures(found: Report) -> dict[str, Figure]:
    """Returns the four pictures."""
    optimum, epochs = found["experiment"]["least squares"], found["experiment"]["epochs"]

    def panels():
        figure = Figure(figsize=(9.5, 3.5), dpi=120, layout="constrained")
        return figure, figure.subplots(1, 2)

    def histories(axes, losses):
        ((_, first), *_) = losses.items()
        draw_lines(axes, np.linspace(0, epochs, len(first)), losses)
        axes.axhline(optimum, color="#999999", linewidth=1, zorder=0, label="least squares")
        axes.legend(frameon=False, fontsize=8)
        axes.set(xlabel="epochs", ylabel="loss")

    first, (left, right) = panels()
    part = found["experiment"]
    histories(left, {f"seed {seed}": losses for seed, losses in enumerate(part["losses"][:6])})
    left.set(title=f"Adadelta, rho {RHO}, eps 1e-5")
    for place, (final, color) in enumerate(zip(part["final"], COLORS, strict=False)):
        right.plot([place] * len(final), final, "o", color=color, alpha=0.7)
    right.axhspan(*BOOK, color="#DDDDDD", zorder=0, label="the book's runs")
    right.axhline(optimum, color="#999999", linewidth=1, zorder=0, label="least squares")
    right.set(title="Final losses of all seeds", xlim=(-0.5, 1.5), ylabel="loss")
    right.set_xticks([0, 1], [f"eps {eps:.0e}" for eps in part["eps"]])
    right.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False, fontsize=8, loc="upper left")

    second, (left, right) = panels()
    part = found["rho"]
    names = [f"rho {rho}" for rho in part["rho"]]
    histories(left, dict(zip(names, part["losses"], strict=True)))
    left.set(title="Mean loss of the seeds")
    statistics = {"worst seed": np.max, "mean": np.mean, "best seed": np.min}
    lines = {name: above(part["final"], optimum, f) for name, f in statistics.items()}
    draw_lines(right, range(len(names)), lines)
    right.set(title="Final loss", xlabel="rho", ylabel="loss above least squares", yscale="log")
    right.set_xticks(range(len(names)), [f"{rho}" for rho in part["rho"]])
    right.set_xlim(-0.3, len(names) - 0.7)

    third, (left, right) = panels()
    part = found["methods"]["methods"]
    for axes, names in ((left, list(GRIDS)[:4]), (right, list(GRIDS)[4:])):
        means = {name: above(part[name]["final"], optimum, np.mean) for name in names}
        draw_lines(axes, part[names[0]]["x"], means)
        for line in axes.get_lines():
            line.set(marker="o", markersize=4)
        axes.axhspan(
            1e-4, GOOD * optimum, color="#EEEEEE", zorder=0, label="within 5 % of least squares"
        )
        axes.set(xscale="log", yscale="log", ylim=(5e-4, 1e3), ylabel="loss above least squares")
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    left.set(title="Final loss, mean of the seeds", xlabel="learning rate")
    right.set(title=f"Adadelta without a learning rate, rho {RHO}", xlabel="eps")
    return {
        "airfoil": first,
        "airfoil_rho": second,
        "airfoil_breakers": _airfoil_breakers.draw(found["breakers"]),
        "airfoil_methods": third,
    }


def above(final: list, optimum: float, statistic: Callable) -> np.ndarray:
    """Returns a statistic of the seeds' final losses, minus the loss of least squares."""
    return statistic(final, axis=1) - optimum


def tables(found: Report) -> dict[str, str]:
    optimum, part = found["experiment"]["least squares"], found["experiment"]
    rows = [
        ["least squares", f"{optimum:.4f}", ""],
        ["the book's runs", "", "{} to {}".format(*BOOK)],
    ]
    for eps, final in zip(part["eps"], part["final"], strict=True):
        ends = f"{min(final):.4f} to {max(final):.4f}"
        rows.append([f"Adadelta, eps {eps:.0e}", f"{np.mean(final):.4f}", ends])
    head = ["", f"loss after {part['epochs']} epochs, mean of {part['seeds']} seeds", "range"]
    first = markdown(head, rows)

    part = found["rho"]
    rows = []
    for rho, losses, final in zip(part["rho"], part["losses"], part["final"], strict=True):
        first_steps, early = (EPS / (1 - rho)) ** 0.5, losses[20 // THIN]
        rows.append([f"{rho}", f"{first_steps:.2g}", f"{early:.3f}", f"{np.mean(final):.4f}"])
    head = ["rho", "size of the first steps", "loss after 20 steps", "final loss"]
    second = markdown(head, rows)

    rows = []
    for name, part in found["methods"]["methods"].items():
        final = np.mean(part["final"], axis=1)
        good = [x for x, y in zip(part["x"], final, strict=True) if y <= (1 + GOOD) * optimum]
        ends = f"{min(good):.2g} to {max(good):.2g}" if good else "none"
        best = part["x"][int(final.argmin())]
        setting = "eps" if name.endswith("eps") else "learning rate"
        rows.append([name.split("'")[0], setting, ends, f"{best:.2g}", f"{final.min():.4f}"])
    head = ["method", "setting", "within 5 % of least squares", "best", "its final loss"]
    return {
        "airfoil": first,
        "airfoil rho": second,
        "airfoil breakers": _airfoil_breakers.table(found["breakers"]),
        "airfoil methods": markdown(head, rows),
    }


STUDY = in_parts(
    "airfoil",
    __doc__,
    "gallery",
    epochs=dict.fromkeys(("experiment", "rho", "breakers", "methods"), 2),
    smoke_epochs=2,
    load=lambda given: prepare(read_airfoil(given)),
    make=make,
    tables=tables,
    pictures=pictures,
)

if __name__ == "__main__":
    run(STUDY)
