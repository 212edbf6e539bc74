"""The tables of the Adadelta paper on MNIST, and how much each method's settings matter.

Table 1 of the paper has the test error after six epochs of SGD, Momentum and Adagrad for five
learning rates. Table 2 has that of Adadelta for twelve pairs of rho and eps. This script trains
both with five seeds per cell. It adds RMSProp and Adam, Adadelta's own learning rate, and settings
beyond the paper's. From all of them follows the range of good settings of each method. The results
also have the paper's tanh network and other initial weights, which are measured no more.

The network is 784-500-300-10 with ReLU, the loss is cross entropy, and a minibatch has 100 images
with pixels in [0, 1]. Where the paper does not give a setting, this script uses what was usual at
the time: the initial weights of Glorot and Bengio (2010), momentum 0.9, and Adagrad from zero. The
networks of a seed have the same initial weights and minibatches. The three tables take an hour
on two cores. Each is saved when it is done.

Needs: pip install -e ".[examples]"
"""

from functools import partial

import jax
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from optax_adadelta import adadelta
from optax_adadelta.diagnostics import plot_curves
from studies import _mnist
from studies._lib.results import Report
from studies._lib.study import in_parts, run
from studies._mnist import METHODS, Column

RATES = [10.0**n for n in range(1, -6, -1)]
EPSILONS = [10.0**n for n in range(0, -13, -2)]
RHOS = [0.9, 0.95, 0.99]
GOOD = 0.5  # Percentage points above the best error that are still good.

COLORS = {"learning rate": "#0072B2", "eps": "#D55E00"}
LEARNING_RATE = {"learning_rate": RATES}
TABLES = {
    "Table 1": {
        name: Column(METHODS[name], LEARNING_RATE) for name in ("SGD", "Momentum", "Adagrad")
    },
    "Table 2": {
        f"rho {rho}": Column(adadelta, {"rho": [rho] * len(EPSILONS), "eps": EPSILONS})
        for rho in RHOS
    },
    "Not in the paper": {
        "RMSProp": Column(METHODS["RMSProp"], LEARNING_RATE),
        "Adam": Column(METHODS["Adam"], LEARNING_RATE),
        "Adadelta": Column(adadelta, LEARNING_RATE),
    },
}
PAPER = {
    "Table 1": {
        "SGD": [None, 2.26, 2.51, 7.02, 17.01, 58.10, None],
        "Momentum": [None, 89.68, 2.03, 2.68, 6.98, 16.98, None],
        "Adagrad": [None, 43.76, 2.82, 1.79, 5.21, 12.59, None],
    },
    "Table 2": {
        "rho 0.9": [None, 2.59, 2.05, 1.90, 2.29, None, None],
        "rho 0.95": [None, 2.58, 1.99, 1.83, 2.13, None, None],
        "rho 0.99": [None, 2.32, 2.28, 2.05, 2.00, None, None],
    },
}


def make(table: str, data, options) -> Report:
    """Returns the table's settings and test errors, a list of seeds for each cell."""
    # Optax's Adam, as of 0.2.8, needs implicit promotion.
    with jax.numpy_dtype_promotion("standard"):
        errors = _mnist.train(TABLES[table], data, options.seeds, options.epochs, table)
    return {
        "columns": {
            name: {
                "settings": dict(column.settings),
                "errors": errors[name][..., -1].astype(float).round(2).tolist(),
            }
            for name, column in TABLES[table].items()
        }
    }


def knob(column: dict) -> tuple[str, list[float]]:
    """Returns the name of the setting that differs between cells, and its values."""
    settings = column["settings"]
    return max(settings.items(), key=lambda setting: len(set(setting[1])))


def plateau(column: dict) -> tuple[float, float]:
    """Returns the lowest and the highest good setting around the best one.

    Between two settings, the logarithm of the error is interpolated linearly in that of the
    setting. A range that ends at the lowest or the highest setting may continue beyond.
    """
    _, settings = knob(column)
    order = np.argsort(settings)
    means = np.maximum(np.mean(column["errors"], axis=1), 0.01)  # Zero has no logarithm.
    x, y = np.log10(settings)[order], np.log(means)[order]
    fine = np.union1d(x, np.linspace(x[0], x[-1], 2001))
    at = np.interp(fine, x, y)
    bad = np.flatnonzero(at > np.log(np.exp(y.min()) + GOOD))
    best = int(at.argmin())
    first = bad[bad < best].max(initial=-1) + 1
    last = bad[bad > best].min(initial=len(fine)) - 1
    return 10 ** fine[first], 10 ** fine[last]


def width(column: dict) -> str:
    """Returns the width of the range of good settings, in words."""
    ends, settings = plateau(column), knob(column)[1]
    cut_off = np.isclose(ends, [min(settings), max(settings)], rtol=1e-6, atol=0).any()
    return f"{'at least ' if cut_off else ''}{np.log10(ends[1] / ends[0]):.1f} decades"


def heat_map(axes, columns: dict, paper: dict, title: str) -> None:
    """Draws the mean of each cell over its seeds, and the paper's number below."""
    means = np.transpose([np.mean(column["errors"], axis=1) for column in columns.values()])
    argument, settings = knob(next(iter(columns.values())))
    image = axes.imshow(means, cmap="viridis_r", norm=LogNorm(1.5, 90), aspect="auto")
    for row, line in enumerate(means):
        for at, (name, mean) in enumerate(zip(columns, line, strict=True)):
            ink = "white" if image.norm(mean) > 0.45 else "black"
            printed = paper.get(name, [None] * len(means))[row]
            write = partial(axes.text, at, ha="center", va="center", color=ink)
            write(row - 0.14 * (printed is not None), f"{mean:.2f}", fontsize=11, weight="bold")
            if printed is not None:
                write(row + 0.24, f"paper {printed:.2f}", fontsize=8)
    axes.set(title=title, ylabel=argument.replace("_", " "))
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(settings)), [f"1e{np.log10(value):.0f}" for value in settings])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def halves(report: Report) -> tuple[dict, dict]:
    """Returns the columns by learning rate, and those of Adadelta by eps."""
    methods = {**report["Table 1"]["columns"], **report["Not in the paper"]["columns"]}
    return methods, report["Table 2"]["columns"]


def draw_tables(report: Report) -> Figure:
    """Returns the picture of the tables as heat maps."""
    methods, adadelta_columns = halves(report)
    seeds, epochs = (report["Table 2"][name] for name in ("seeds", "epochs"))
    figure = Figure(figsize=(9.5, 4.9), dpi=125, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(6, 3.3))
    heat_map(left, methods, PAPER["Table 1"], "By learning rate (Adadelta's default is 1)")
    heat_map(right, adadelta_columns, PAPER["Table 2"], "Adadelta by eps and rho")
    figure.suptitle(f"MNIST, test error in % after {epochs} epochs, mean of {seeds} seeds")
    return figure


def draw_plateaus(report: Report) -> Figure:
    """Returns the picture of the errors by setting, and of the ranges of good settings."""
    methods, adadelta_columns = halves(report)
    figure = Figure(figsize=(10.5, 4.8), dpi=115, layout="constrained")
    rates, epsilons, widths = figure.subplots(1, 3)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14)}
    for axes, columns in ((rates, methods), (epsilons, adadelta_columns)):
        curves = {name: np.transpose(column["errors"]) for name, column in columns.items()}
        argument, settings = knob(next(iter(columns.values())))
        plot_curves(curves, axes, settings)
        axes.set(xscale="log", yscale="log", xlabel=argument.replace("_", " "), ylim=(1.4, 100))
        axes.set_ylabel("test error (%)")
        axes.set_yticks((2, 5, 10, 20, 50, 90), ("2", "5", "10", "20", "50", "90"))
        axes.minorticks_off()
        axes.legend(**below, ncols=3, frameon=False, fontsize=9, columnspacing=1)
    rates.set_title("By learning rate")
    epsilons.set_title("Adadelta by eps, learning rate 1")
    bars = {**methods, **{f"Adadelta, {name}": c for name, c in adadelta_columns.items()}}
    for row, column in enumerate(bars.values()):
        low, high = plateau(column)
        argument = knob(column)[0].replace("_", " ")
        color = COLORS[argument]
        widths.plot([low, high], [row, row], color=color, linewidth=9, solid_capstyle="butt")
        where = {"ha": "center", "va": "bottom", "fontsize": 9}
        widths.text(np.sqrt(low * high), row - 0.3, width(column), **where)
    widths.set_yticks(range(len(bars)), bars)
    widths.set(xscale="log", xlim=(1e-10, 1e3), ylim=(len(bars) - 0.5, -0.9))
    widths.set(xlabel="value of the setting", title=f"Within {GOOD} points of the best")
    key = [Line2D([], [], color=color, linewidth=9) for color in COLORS.values()]
    widths.legend(key, COLORS, **below, ncols=2, frameon=False, fontsize=9)
    for axes in (rates, epsilons, widths):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


STUDY = in_parts(
    "mnist_tables",
    __doc__,
    "gallery",
    epochs=dict.fromkeys(TABLES, 6),
    smoke_epochs=1,
    load=_mnist.load,
    make=make,
    tables=lambda report: {},
    pictures=lambda report: {
        "mnist_tables": draw_tables(report),
        "mnist_plateaus": draw_plateaus(report),
    },
)

if __name__ == "__main__":
    run(STUDY)
