"""The experiment and the exercises of Dive into Deep Learning, section 12.9, on the noise of wings.

A linear model predicts the noise of a wing's section from five properties, all standardised.
Adadelta (rho 0.9, eps 1e-5) trains it for two epochs in minibatches of 10. The book's runs end
at a loss of 0.243 to 0.248; the best of all linear models, least squares, has 0.2417. After that
come the book's four exercises, each answered with a picture and in a few sentences:

1. What does rho do?
2. Is the algorithm the same, and cheaper, without g', as one root of a quotient of averages?
3. Is Adadelta really free of learning rates? Six problems that break it, each with its cure.
4. How do Adagrad, RMSProp and Adam do beside it?

All runs of a method are trained by one compiled program, seeds and settings side by side, and
the runs of a seed start alike and see the same minibatches. It takes under a minute.

Needs: pip install "optax_adadelta[examples]"
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks import _report
from experiments import _airfoil_breakers, _airfoil_forms, _data
from experiments._airfoil import COLORS, EPS, GOOD, RHO, draw_lines, least_squares, prepare, train
from experiments._mnist import METHODS
from optax_adadelta import adadelta

THIN = 5  # Of the losses after every step, those after every fifth are kept.
RHOS = [0.5, 0.8, 0.9, 0.95, 0.99, 0.999]
RATES = [10 ** (n / 2) for n in range(-8, 3)]
EPSILONS = [10 ** (n / 2) for n in range(-20, 1)]
BOOK = (0.243, 0.248)  # The losses that the book's runs end with.
GRIDS = {
    **{name: (METHODS[name], "learning_rate", RATES) for name in ("Adagrad", "RMSProp", "Adam")},
    "Adadelta": (partial(adadelta, rho=RHO, eps=EPS), "learning_rate", RATES),
    "Adadelta's eps": (partial(adadelta, rho=RHO), "eps", EPSILONS),
}


def experiment(data, seeds: int, epochs: int) -> dict:
    """Returns the losses with the book's eps and with a tenth of it."""
    epsilons = [EPS, EPS / 10]
    losses = train(partial(adadelta, rho=RHO), {"eps": epsilons}, data, seeds, epochs)
    return {
        "eps": epsilons,
        "losses": losses[0, :, ::THIN].tolist(),
        "final": losses[:, :, -1].tolist(),
    }


def vary_rho(data, seeds: int, epochs: int) -> dict:
    """Exercise 1: returns the losses for every rho."""
    losses = train(partial(adadelta, eps=EPS), {"rho": RHOS}, data, seeds, epochs)
    return {
        "rho": RHOS,
        "losses": losses[:, :, ::THIN].mean(axis=1).tolist(),
        "final": losses[:, :, -1].tolist(),
    }


def compare_methods(data, seeds: int, epochs: int) -> dict:
    """Exercise 4: returns the final losses of each method over its grid."""
    found = {}
    for name, (optimizer, setting, values) in GRIDS.items():
        final = train(optimizer, {setting: values}, data, seeds, epochs)[:, :, -1]
        found[name] = {"x": values, "final": final.tolist()}
    return found


def run(data, options: argparse.Namespace) -> dict:
    """Returns the experiment's results and those of the exercises."""
    smoke = options.smoke
    few = (data, min(options.seeds, 2) if smoke else options.seeds, options.epochs)
    optimum = least_squares(*data)
    parts = {
        "experiment": lambda: experiment(*few),
        "rho": lambda: vary_rho(*few),
        "forms": lambda: _airfoil_forms.run(*few, smoke),
        "breakers": lambda: _airfoil_breakers.run(*few, optimum, smoke),
        "methods": lambda: compare_methods(*few),
    }
    found = {"least squares": optimum, "epochs": options.epochs}
    # Optax's own Adam and schedules, as of 0.2.8, need implicit promotion.
    with jax.numpy_dtype_promotion("standard"):
        for name, part in tqdm(parts.items(), desc="Training", unit="part"):
            found[name] = part()
    return found


def draw(found: dict, output: Path, suffix: str) -> None:
    """Writes the five pictures."""
    optimum, epochs = found["least squares"], found["epochs"]

    def panels():
        figure = Figure(figsize=(9.5, 3.5), dpi=120, layout="constrained")
        return figure, figure.subplots(1, 2)

    def save(figure, name):
        figure.savefig(output / f"airfoil{name}{suffix}.png")

    def histories(axes, losses):
        ((_, first), *_) = losses.items()
        draw_lines(axes, np.linspace(0, epochs, len(first)), losses)
        axes.axhline(optimum, color="#999999", linewidth=1, zorder=0)
        axes.set(xlabel="epochs", ylabel="loss")

    figure, (left, right) = panels()
    part = found["experiment"]
    histories(left, {f"seed {seed}": losses for seed, losses in enumerate(part["losses"][:6])})
    left.set(title=f"Adadelta, rho {RHO}, eps 1e-5; the line is least squares")
    for place, (final, color) in enumerate(zip(part["final"], COLORS, strict=False)):
        right.plot([place] * len(final), final, "o", color=color, alpha=0.7)
    right.axhspan(*BOOK, color="#DDDDDD", zorder=0, label="the book's runs")
    right.axhline(optimum, color="#999999", linewidth=1, zorder=0, label="least squares")
    right.set(title="Final losses of all seeds", xlim=(-0.5, 1.5), ylabel="loss")
    right.set_xticks([0, 1], [f"eps {eps:.0e}" for eps in part["eps"]])
    right.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False, fontsize=8, loc="upper left")
    save(figure, "")

    figure, (left, right) = panels()
    part = found["rho"]
    names = [f"rho {rho}" for rho in part["rho"]]
    histories(left, dict(zip(names, part["losses"], strict=True)))
    left.set(title="Mean loss of the seeds")
    statistics = {"worst seed": np.max, "mean": np.mean, "best seed": np.min}
    lines = {name: above(part["final"], optimum, f) for name, f in statistics.items()}
    draw_lines(right, range(len(names)), lines)
    right.set(title="Final loss", xlabel="rho", ylabel="loss above least squares", yscale="log")
    right.set_xticks(range(len(names)), [f"{rho}" for rho in part["rho"]])
    save(figure, "_rho")

    _airfoil_forms.draw(found["forms"], output / f"airfoil_forms{suffix}.png")
    _airfoil_breakers.draw(found["breakers"], output / f"airfoil_breakers{suffix}.png")

    figure, (left, right) = panels()
    part = found["methods"]
    for axes, names in ((left, list(GRIDS)[:4]), (right, list(GRIDS)[4:])):
        means = {name: above(part[name]["final"], optimum, np.mean) for name in names}
        draw_lines(axes, part[names[0]]["x"], means)
        for line in axes.get_lines():
            line.set(marker="o", markersize=4)
        axes.axhspan(1e-4, GOOD * optimum, color="#EEEEEE", zorder=0, label=f"within {GOOD:.0%}")
        axes.set(xscale="log", yscale="log", ylim=(5e-4, 1e3), ylabel="loss above least squares")
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    left.set(title="Final loss, mean of the seeds", xlabel="learning rate")
    right.set(title=f"Adadelta without a learning rate, rho {RHO}", xlabel="eps")
    save(figure, "_methods")


def above(final: list, optimum: float, statistic: Callable) -> np.ndarray:
    """Returns a statistic of the seeds' final losses, above that of least squares."""
    return statistic(final, axis=1) - optimum


def spread(losses: list[float]) -> str:
    """Returns the mean in words, and the ends."""
    return f"{np.mean(losses):.4f} ({min(losses):.4f} to {max(losses):.4f})"


def tell(found: dict) -> None:
    """Prints what came out: the experiment, and a few sentences for each exercise."""
    optimum, epochs = found["least squares"], found["epochs"]
    book, smaller = found["experiment"]["final"]
    print(f"Least squares: loss {optimum:.5f}.")
    print(
        f"Adadelta, rho {RHO}, eps 1e-5: {spread(book)} after {epochs} epochs, {len(book)} seeds."
    )
    print(f"Adadelta, rho {RHO}, eps 1e-6: {spread(smaller)}.")

    part = found["rho"]
    rhos, final = part["rho"], np.mean(part["final"], axis=1)
    best, worst = final.argmin(), final.argmax()
    early = np.array(part["losses"])[:, 20 // THIN]
    first = [(EPS / (1 - rho)) ** 0.5 for rho in rhos]
    print(
        f"1. The mean final loss is {final[best]:.4f} at the best rho, {rhos[best]}, and"
        f" {final[worst]:.4f} at the worst, {rhos[worst]}; {sum(final <= (1 + GOOD) * optimum)} of"
        f" {len(rhos)} are within {GOOD:.0%} of least squares. rho sets the first steps,"
        f" {first[0]:.2g} long at rho {rhos[0]} and {first[-1]:.2g} at {rhos[-1]}: after 20 of them"
        f" the loss is {early[0]:.3f} and {early[-1]:.3f}."
    )

    _airfoil_forms.tell(found["forms"])
    _airfoil_breakers.tell(found["breakers"])

    words = []
    for name, part in found["methods"].items():
        final = np.mean(part["final"], axis=1)
        good = [x for x, y in zip(part["x"], final, strict=True) if y <= (1 + GOOD) * optimum]
        at = f"{min(good):.2g} to {max(good):.2g}" if good else "none"
        words.append(f"{name} {at} (best {min(final):.4f})")
    final = np.mean(found["methods"]["Adadelta"]["final"], axis=1)
    print(
        f"4. These learning rates, and this eps of Adadelta, end within {GOOD:.0%} of least"
        f" squares: {', '.join(words)}. At its own learning rate, 1, and the book's eps Adadelta is"
        f" {final[RATES.index(1.0)] / optimum - 1:.1%} above least squares; Optax has no default"
        f" rate for the others, and to choose eps is to choose the size of the first steps."
    )


def main() -> None:
    """Reads the options, trains, draws, and says what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seeds", type=int, default=5, help="runs of each setting (default: %(default)s)")
    add("--epochs", type=int, default=2, help="passes over the rows (default: %(default)s)")
    text = "the folder for the numbers and pictures (default: %(default)s)"
    add("--output", type=Path, default=Path("results"), help=text)
    text = "draw and print again what --output has, and train nothing (default: off)"
    add("--draw-only", action="store_true", help=text)
    text = "only try that all works: at most 2 seeds, everything short (default: off)"
    add("--smoke", action="store_true", help=text)
    _data.add_options(parser)
    options = parser.parse_args()
    if options.seeds < 1 or options.epochs < 1:
        parser.error("--seeds and --epochs must be at least 1")

    suffix = "-smoke" * options.smoke
    file = options.output / f"airfoil{suffix}.json"
    if not options.draw_only:
        _report.make_folder(options.output)
        made_by = _report.provenance(parser, options)
        found = run(prepare(_data.airfoil(options)), options)
        _report.save(file, {**made_by, "results": found})
    found = _report.load(file)["results"]
    draw(found, options.output, suffix)
    tell(found)
    print(f"Numbers and pictures: {options.output}/airfoil*{suffix}.*")


if __name__ == "__main__":
    main()
