"""The tasks that studies train on: each has a model, data in three parts, a loss and an error.

A new task is a function here and an entry in TASKS. Then `studies.compare` trains it.
"""

import argparse
import hashlib
import math
from collections.abc import Callable
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from studies._lib import data, models
from studies._lib.models import Model

PARTS = ("train", "validation", "test")
SMOKE_STEPS, SMOKE_SIZE = 12, 120
CONTEXT = 8  # Characters that the next one is predicted from.
# A row's curvatures, ten decades in an order that puts all of them next to one another.
CURVATURES = 10 ** np.random.default_rng(0).permutation(np.linspace(-5, 5, 320)).astype(np.float32)
ROWS = 32
Data = tuple[np.ndarray, ...]


class Task(NamedTuple):
    """A model, its data, how long it is trained, and with how many seeds."""

    model: Model
    error_name: str
    loss: Callable[..., jax.Array]  # Of the parameters and a batch.
    error: Callable[..., jax.Array]  # Of the parameters and the test data; better if lower.
    train: Data
    validation: Data
    test: Data
    batch: int
    steps: int
    seeds: int = 5
    abreast: int | None = 5  # Networks that make a step together; None, one after the other.
    source: str = ""  # The SHA-256 of data that differs between machines.

    def facts(self) -> dict[str, Any]:
        """Returns what describes the task in the results."""
        params = jax.eval_shape(self.model.init, jax.random.key(0))
        return {
            "model": self.model.name,
            "error": self.error_name,
            "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
            "examples": [len(part[-1]) for part in (self.train, self.validation, self.test)],
            "batch": self.batch,
            "steps": self.steps,
            **({"source": self.source} if self.source else {}),
        }

    def smaller(self) -> "Task":
        """Returns the task with little data and few steps, for a quick check."""
        parts = (self.train, self.validation, self.test)
        few = (tuple(array[:SMOKE_SIZE] for array in part) for part in parts)
        steps = min(self.steps, SMOKE_STEPS)
        return self._replace(**dict(zip(PARTS, few, strict=True)), steps=steps)


def classifier(model: Model, *parts: Data, **settings: int) -> Task:
    """Returns the task of naming the class. The last array of the data has the classes."""

    def loss(params, *data):
        scores = model.apply(params, *data[:-1])
        return optax.softmax_cross_entropy_with_integer_labels(scores, data[-1]).mean()

    def error(params, *data):
        return 100 * jnp.mean(model.apply(params, *data[:-1]).argmax(axis=-1) != data[-1])

    return Task(model, "errors in %", loss, error, *parts, **settings)


def regression(model: Model, name: str, unit: float, *parts: Data, **settings: int) -> Task:
    """Returns the task of predicting numbers, whose error is in a unit."""

    def loss(params, x, y):
        return jnp.mean((model.apply(params, x) - y) ** 2)

    def error(params, x, y):
        return unit * jnp.sqrt(loss(params, x, y))

    return Task(model, name, loss, error, *parts, **settings)


def split(data: Data, **sizes: int) -> list[Data]:
    """Returns the data in random order, in parts: the rest, then those of the given sizes."""
    order = np.random.default_rng(0).permutation(len(data[-1]))
    ends = len(order) - np.cumsum(list(sizes.values())[::-1])[::-1]
    return [tuple(a[part] for a in data) for part in np.split(order, ends)]


def digits(options: argparse.Namespace, hidden: tuple[int, ...] = (64,)) -> Task:
    """8 x 8 images of digits, which come with scikit-learn."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    data = (images / 16).astype(np.float32), labels.astype(np.int32)
    parts = split(data, validation=300, test=400)
    return classifier(models.perceptron(64, *hidden, 10), *parts, batch=32, steps=2000)


def mnist(options: argparse.Namespace, model: Model | None = None, validation: int = 4000) -> Task:
    """Images of digits, as numbers in a row."""
    train, test = ((x / np.float32(255), y) for x, y in data.mnist(options))
    model = model or models.perceptron(784, 64, 10)
    return classifier(model, *split(train, validation=validation), test, batch=64, steps=2000)


def half_size_mnist(options: argparse.Namespace) -> list[Data]:
    """Returns images of 14 x 14 x 1 and their labels, in three parts."""
    train, test = (
        (x.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4), dtype=np.float32)[..., None] / 255, y)
        for x, y in data.mnist(options)
    )
    return [*split(train, validation=4000), test]


def mnist_convolution(options: argparse.Namespace) -> Task:
    """Images of digits, at half the width and height."""
    name = "two 3 x 3 convolutions with stride 2, of 16 and 32 channels, on 14 x 14"
    return classifier(models.convolutions(name), *half_size_mnist(options), batch=64, steps=1500)


def airfoil(options: argparse.Namespace) -> Task:
    """The noise of an airfoil, from five of its properties. All are standardized."""
    parts = split((data.airfoil(options),), validation=200, test=300)
    mean, deviation = parts[0][0].mean(axis=0), parts[0][0].std(axis=0)
    parts = [((rows - mean) / deviation).astype(np.float32) for (rows,) in parts]
    parts = [(rows[:, :-1], rows[:, -1:]) for rows in parts]
    model, name = models.perceptron(5, 64, 64, 1), "root mean square error in dB"
    return regression(model, name, float(deviation[-1]), *parts, batch=32, steps=2000)


def vowels(options: argparse.Namespace) -> Task:
    """Who of nine speakers says a vowel, from a sequence of 7 to 29 frames."""
    train, test = data.vowels(options)
    said = train[0][np.arange(data.VOWELS_FRAMES) < train[1][:, None]]
    mean, deviation = said.mean(axis=0), said.std(axis=0)
    train, test = (((x - mean) / deviation, *rest) for x, *rest in (train, test))
    parts = (*split(train, validation=60), test)
    return classifier(models.recurrent(12, 32, 9), *parts, batch=30, steps=800)


def sorting(
    options: argparse.Namespace, symbols: int = 32, length: int = 8, width: int = 32
) -> Task:
    """Returns random symbols in order. Attention has to compare all of them."""
    draw = np.random.default_rng(0).integers
    x = draw(symbols, size=(24_000, length), dtype=np.int32)
    parts = split((x, np.sort(x, axis=1)), validation=2000, test=2000)
    return classifier(models.attention(symbols, length, width), *parts, batch=64, steps=2000)


def characters(options: argparse.Namespace) -> Task:
    """Predicts the next character of Python's own help, from the eight before it."""
    text = "\n".join(topics[name] for name in sorted(topics)).encode("ascii", "replace")
    known, codes = np.unique(np.frombuffer(text, np.uint8), return_inverse=True)
    windows = np.lib.stride_tricks.sliding_window_view(codes.astype(np.int32), CONTEXT + 1)
    # Whole stretches of text, so that no test window overlaps the training data.
    ends = int(0.8 * len(windows)), int(0.9 * len(windows))
    parts = [windows[: ends[0]], windows[ends[0] : ends[1] : 4], windows[ends[1] :: 4]]
    parts = [(np.ascontiguousarray(part[:, :-1]), part[:, -1]) for part in parts]
    model = models.context(len(known), CONTEXT, width=16, hidden=128)
    task = classifier(model, *parts, batch=128, steps=2000)
    return task._replace(
        error_name="bits per character",
        error=lambda *args: task.loss(*args) / math.log(2),
        source=hashlib.sha256(text).hexdigest(),
    )


def mixed_scales(options: argparse.Namespace) -> Task:
    """A quadratic in one leaf whose curvatures, and so gradients, differ by 1e10 in every row.

    The data are noisy observations of the minimum, which is exactly their mean. The error is half
    the squared distance from it, the geometric mean of the decades of curvature, so that all scales
    count alike.
    """
    count = 100 if options.smoke else 1000
    shape = (ROWS, len(CURVATURES))
    normal = np.random.default_rng(0).standard_normal
    minimum = normal(shape, np.float32)
    observed = minimum + normal((count, *shape), np.float32)
    train = (observed - (observed.mean(axis=0) - minimum),)
    model = Model("a quadratic", lambda key: {"w": jax.random.normal(key, shape)}, lambda p: p["w"])

    def loss(params, observed):
        return jnp.sum(CURVATURES * (params["w"] - observed.mean(axis=0)) ** 2) / 2

    def error(params, minimum):
        halved = jnp.square(params["w"] - minimum[0]) / 2
        decades = halved[:, np.argsort(CURVATURES)].reshape(ROWS, 10, -1).mean(axis=(0, 2))
        return jnp.exp(jnp.mean(jnp.log(decades)))

    parts = train, (minimum[None],), (minimum[None],)
    name = "distance, each scale counted alike"
    return Task(model, name, loss, error, *parts, batch=10, steps=2000)


TASKS = {
    "digits": digits,
    "MNIST, dense": mnist,
    "MNIST, convolution": mnist_convolution,
    "airfoil": airfoil,
    "vowels": vowels,
    "sorting": sorting,
    "characters": characters,
}
