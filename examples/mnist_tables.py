"""The tables of the Adadelta paper on MNIST, and how much each method's settings matter.

Table 1 of the paper has the test error after six epochs of SGD, Momentum and Adagrad for five
learning rates, Table 2 that of Adadelta for twelve pairs of rho and eps. Both are trained here
with five seeds a cell, and beside them what the paper leaves out: RMSProp and Adam, Adadelta's
own learning rate, settings beyond the ends of the paper's, and its tanh network. From all of
them follows how wide each method's plateau of good settings is, which is what "no learning rate
to tune" comes down to.

The network is 784-500-300-10 with ReLU, the loss cross entropy, the minibatch 100 images with
pixels in [0, 1]. What the paper does not state is chosen by its time and not by the result:
Glorot and Bengio's first weights (2010), momentum 0.9, an Adagrad that starts from zero. The
networks of a seed start alike and see the same minibatches. All networks of a table are trained
by one compiled program; the four take an hour on two cores. Each is saved when it is done.

Needs: pip install "optax_adadelta[examples]"
"""

import argparse
from functools import partial
from pathlib import Path

import _data
import _mnist
import _results
import numpy as np
import optax
from _mnist import Column
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from optax_adadelta import adadelta

RATES = [10.0**n for n in range(1, -6, -1)]
EPSILONS = [10.0**n for n in range(0, -13, -2)]
RHOS = [0.9, 0.95, 0.99]
GOOD = 0.5  # Percentage points above a method's best that still are its plateau.

LEARNING_RATE = {"learning_rate": RATES}
DEFAULT = {"rho": [0.95], "eps": [1e-6]}
TABLES = {
    "Table 1": {
        "SGD": Column(optax.sgd, LEARNING_RATE),
        "Momentum": Column(partial(optax.sgd, momentum=0.9), LEARNING_RATE),
        "Adagrad": Column(partial(optax.adagrad, initial_accumulator_value=0.0), LEARNING_RATE),
    },
    "Table 2": {
        f"rho {rho}": Column(adadelta, {"rho": [rho] * len(EPSILONS), "eps": EPSILONS})
        for rho in RHOS
    },
    "Not in the paper": {
        "RMSProp": Column(optax.rmsprop, LEARNING_RATE),
        "Adam": Column(optax.adam, LEARNING_RATE),
        "Adadelta": Column(adadelta, LEARNING_RATE),
    },
    "Networks": {
        f"{activation}, {init}": Column(adadelta, DEFAULT, activation, init)
        for activation in _mnist.ACTIVATIONS
        for init in _mnist.INITS
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
    "Networks": {"tanh, Glorot uniform": [2.00]},
}


def run(table: str, data, seeds: int, epochs: int) -> dict:
    """Returns the table's settings and test errors, a list of seeds for each cell."""
    columns = TABLES[table]
    *_, errors = _mnist.train(columns, data, seeds, epochs, table)
    return {
        name: {
            "settings": dict(column.settings),
            "errors": np.asarray(errors[name], float).round(2).tolist(),
        }
        for name, column in columns.items()
    }


def knob(column: dict) -> tuple[str, list[float]]:
    """Returns the name of the setting that varies from cell to cell, and its values."""
    settings = column["settings"]
    return max(settings.items(), key=lambda setting: len(set(setting[1])))


def plateau(column: dict) -> tuple[float, float]:
    """Returns the lowest and the highest setting of the stretch around the best that is GOOD.

    Between the settings tried, the logarithm of the error is taken to change evenly with that of
    the setting. A plateau that reaches the first or the last of them may go on beyond.
    """
    _, settings = knob(column)
    order = np.argsort(settings)
    x, y = np.log10(settings)[order], np.log(np.mean(column["errors"], axis=1))[order]
    fine = np.union1d(x, np.linspace(x[0], x[-1], 2001))
    at = np.interp(fine, x, y)
    bad = np.flatnonzero(at > np.log(np.exp(y.min()) + GOOD))
    best = int(at.argmin())
    first = bad[bad < best].max(initial=-1) + 1
    last = bad[bad > best].min(initial=len(fine)) - 1
    return 10 ** fine[first], 10 ** fine[last]


def main() -> None:
    """Reads the options, trains, draws, and says what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    text = "which to train anew; the others stay as they are in --output (default: all four)"
    add(
        "--tables",
        nargs="+",
        choices=list(TABLES),
        default=list(TABLES),
        metavar="TABLE",
        help=text,
    )
    add("--seeds", type=int, default=5, help="networks a cell (default: %(default)s)")
    add("--epochs", type=int, default=6, help="passes over the images (default: %(default)s)")
    text = "the folder for the numbers and pictures (default: %(default)s)"
    add("--output", type=Path, default=Path("results"), help=text)
    text = "draw and print again what --output has, and train nothing (default: off)"
    add("--draw-only", action="store_true", help=text)
    text = "only try that all works: 600 images, one epoch, at most 2 seeds (default: off)"
    add("--smoke", action="store_true", help=text)
    _data.add_options(parser)
    options = parser.parse_args()
    if options.seeds < 1 or options.epochs < 1:
        parser.error("--seeds and --epochs must be at least 1")

    made_by = _results.provenance(parser, options)
    file = options.output / f"mnist_tables{'-smoke' * options.smoke}.json"
    if not options.draw_only:
        data = _mnist.load(options)
        seeds, epochs = (
            (min(options.seeds, 2), 1) if options.smoke else (options.seeds, options.epochs)
        )
        for table in options.tables:
            columns = run(table, data, seeds, epochs)
            report = _results.load(file) if file.exists() else {}
            report[table] = {**made_by, "seeds": seeds, "epochs": epochs, "columns": columns}
            _results.save(file, report)
    report = _results.load(file)


if __name__ == "__main__":
    main()
