"""The paper's networks on MNIST, and how many of them are trained."""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from tqdm import tqdm

from studies._lib.data import mnist
from studies._lib.models import perceptron
from studies._lib.tasks import Data, Task, classifier
from studies._lib.training import Trainer, batches

SIZES = (784, 500, 300, 10)
BATCH = 100
SMOKE_IMAGES = 300
# On a CPU, one network at a time stays in the cache, which is twice as fast as all at once.
ABREAST = None if jax.default_backend() == "cpu" else 64

METHODS = {
    "SGD": optax.sgd,
    "Momentum": partial(optax.sgd, momentum=0.9),
    # The paper of Adagrad starts from zero, Optax from 0.1.
    "Adagrad": partial(optax.adagrad, initial_accumulator_value=0.0),
    "RMSProp": optax.rmsprop,
    "Adam": optax.adam,
}


class Column(NamedTuple):
    """One method and its settings. Each setting is a cell and trains a network per seed."""

    optimizer: Callable[..., optax.GradientTransformation]
    settings: Mapping[str, Any]  # From the name of an argument to its values in the cells.


def load(given: argparse.Namespace) -> tuple[Data, Data]:
    """Returns (images in [0, 1], labels) for training and for testing, few with --smoke."""
    few = slice(SMOKE_IMAGES if given.smoke else None)
    train, test = ((x[few] / np.float32(255), y[few]) for x, y in mnist(given))
    return train, test


def task_of(data: tuple[Data, Data], activation=jax.nn.relu) -> Task:
    """Returns the task of an epoch with the paper's network."""
    train, test = data
    nothing, steps = tuple(a[:0] for a in train), len(train[1]) // BATCH
    # The paper (2012) does not say how weights begin. Glorot and Bengio published this in 2010.
    draw = jax.nn.initializers.glorot_uniform()
    network = perceptron(*SIZES, draw=draw, activation=activation)
    return classifier(network, train, nothing, test, batch=BATCH, steps=steps)


def orders(seeds: int, epoch: int, task: Task) -> np.ndarray:
    """Returns the minibatches of an epoch, [seeds, steps, batch]."""
    size = len(task.train[1]), task.batch, task.steps
    return np.stack([batches((seed, epoch), *size) for seed in range(seeds)])


def train(
    columns: Mapping[str, Column], data: tuple[Data, Data], seeds: int, epochs: int, name: str
) -> dict[str, np.ndarray]:
    """Trains a network for each cell and seed.

    The networks of a seed have the same initial weights and minibatches.

    Returns:
      {column: test errors in percent after each epoch, [cells, seeds, epochs]}.
    """
    found = {}
    with tqdm(total=epochs * len(columns), desc=f"Training, {name}", unit="epoch") as bar:
        task = task_of(data)
        for c, column in columns.items():
            (cells,) = {len(values) for values in column.settings.values()}
            settings = {a: np.repeat(values, seeds) for a, values in column.settings.items()}
            trainer = Trainer(task, column.optimizer, abreast=ABREAST)
            each = (np.tile(orders(seeds, epoch, task), (cells, 1, 1)) for epoch in range(epochs))
            errors = []
            for at, _ in trainer.run(settings, np.tile(range(seeds), cells), each):
                errors.append(np.reshape(trainer.evaluate(at)["test error"], (cells, seeds)))
                bar.update()
            found[c] = np.stack(errors, axis=-1)
    return found
