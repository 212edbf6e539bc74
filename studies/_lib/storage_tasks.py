"""The tasks of `state_training.py`: two image networks, attention, and a stress test."""

import gzip
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

MNIST = tuple(
    tuple(f"{part}-{name}-ubyte.gz" for name in ("images-idx3", "labels-idx1"))
    for part in ("train", "t10k")
)
SYMBOLS, LENGTH, WIDTH = 64, 10, 128
# A row's curvatures, ten decades in an order that puts all of them next to one another.
CURVATURES = 10 ** np.random.default_rng(0).permutation(np.linspace(-5, 5, 320)).astype(np.float32)
ROWS = 32


class Task(NamedTuple):
    """A model, how it is trained, on what, and what is measured of it after the training.

    `decay` says that the learning rate falls from 1 to 0, evenly; else it is 1 throughout.
    """

    init: Callable[[jax.Array], Any]
    loss: Callable[..., jax.Array]  # Of the parameters and a batch of the training data.
    measure: Callable[..., dict[str, jax.Array]]  # Of the parameters and the test data.
    train: tuple[jax.Array, ...]
    test: tuple[jax.Array, ...]
    batch: int
    epochs: int
    clip: float | None = None
    decay: bool = False

    @property
    def steps(self) -> int:
        """How many there are in an epoch."""
        return len(self.train[0]) // self.batch


def tasks(smoke: bool, folder: Path | None) -> dict[str, Task]:
    """Returns every task that there is data for, small ones for a smoke."""
    made = {"digits": digits(smoke)}
    if folder is not None:
        made["MNIST"] = mnist(smoke, folder)
    return {**made, "sorting": sorting(smoke), "mixed scales": mixed_scales(smoke)}


def digits(smoke: bool) -> Task:
    """The network of examples/digits.py on scikit-learn's digits, the split of its seed 0."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        (images / 16).astype(np.float32), labels, test_size=0.25, stratify=labels, random_state=0
    )
    layers = perceptron(jax.nn.initializers.he_normal(), (64, 256, 128, 10))
    data = (train_x, train_y), (test_x, test_y)
    return classifier(*layers, data, batch=32, epochs=2 if smoke else 40, clip=1.0)


def mnist(smoke: bool, folder: Path) -> Task:
    """The network of the paper's tables."""

    def read(name, header):
        content = gzip.decompress((folder / name).read_bytes())
        return np.frombuffer(content, np.uint8, offset=header)

    data = [
        (read(images, 16).reshape(-1, 784) / np.float32(255), read(labels, 8).astype(np.int32))
        for images, labels in MNIST
    ]
    if smoke:
        data = [(x[:600], y[:600]) for x, y in data]
    layers = perceptron(jax.nn.initializers.glorot_uniform(), (784, 500, 300, 10))
    return classifier(*layers, data, batch=100, epochs=1 if smoke else 6)


def sorting(smoke: bool) -> Task:
    """One block of attention that returns a sequence of numbers in order, drawn here."""
    count, epochs = (256, 1) if smoke else (20_000, 8)
    draw = np.random.default_rng(0).integers
    sequences = [draw(SYMBOLS, size=(n, LENGTH), dtype=np.int32) for n in (count, 2_000)]
    data = [(x, np.sort(x, axis=1)) for x in sequences]
    layers = attention(SYMBOLS, LENGTH, WIDTH)
    return classifier(*layers, data, batch=50, epochs=epochs, decay=True)


def mixed_scales(smoke: bool) -> Task:
    """A quadratic in one leaf whose curvatures, and so gradients, differ by 1e10 in every row.

    The data are noisy observations of the minimum, which is exactly their mean. What is measured
    is how far from it the parameters end: the loss above its minimum, which the steepest decade
    makes up, and half the squared distance in each decade of curvature, of which the geometric
    mean counts all alike.
    """
    count, epochs = (100, 1) if smoke else (1000, 20)
    shape = (ROWS, len(CURVATURES))
    normal = np.random.default_rng(0).standard_normal
    minimum = normal(shape, np.float32)
    observed = minimum + normal((count, *shape), np.float32)
    train = (jnp.asarray(observed - (observed.mean(axis=0) - minimum)),)

    def init(key):
        return {"w": jax.random.normal(key, shape)}

    def loss(params, observed):
        return jnp.sum(CURVATURES * (params["w"] - observed.mean(axis=0)) ** 2) / 2

    def measure(params, minimum):
        halved = jnp.square(params["w"] - minimum) / 2
        decades = halved[:, np.argsort(CURVATURES)].reshape(ROWS, 10, -1).mean(axis=(0, 2))
        return {
            "training loss": jnp.mean(CURVATURES * halved),
            "distance": jnp.exp(jnp.mean(jnp.log(decades))),
            "decades": decades,
        }

    return Task(init, loss, measure, train, (jnp.asarray(minimum),), batch=10, epochs=epochs)


def perceptron(draw: Callable[..., jax.Array], sizes: tuple[int, ...]):
    """Returns how to make the layers, with biases of zero, and how to apply them."""
    shapes = list(itertools.pairwise(sizes))

    def init(key):
        keys = jax.random.split(key, len(shapes))
        return [
            {"w": draw(key, shape), "b": jnp.zeros(shape[1])}
            for key, shape in zip(keys, shapes, strict=True)
        ]

    def logits(params, x):
        *hidden, top = params
        for layer in hidden:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        return x @ top["w"] + top["b"]

    return init, logits


def attention(symbols: int, length: int, width: int):
    """Returns how to make one block of attention over sequences, and how to apply it."""
    shapes = {
        "symbols": (symbols, width),
        "places": (length, width),
        **dict.fromkeys(("query", "key", "value", "out"), (width, width)),
        "up": (width, 2 * width),
        "down": (2 * width, width),
        "top": (width, symbols),
    }

    def init(key):
        draw = jax.nn.initializers.glorot_uniform()
        keys = jax.random.split(key, len(shapes))
        return {n: draw(k, shape) for k, (n, shape) in zip(keys, shapes.items(), strict=True)}

    def logits(p, x):
        x = p["symbols"][x] + p["places"][None]
        y = jax.nn.standardize(x)
        scores = (y @ p["query"]) @ (y @ p["key"]).mT / math.sqrt(width)
        x += jax.nn.softmax(scores) @ (y @ p["value"]) @ p["out"]
        x += jax.nn.relu(jax.nn.standardize(x) @ p["up"]) @ p["down"]
        return jax.nn.standardize(x) @ p["top"]

    return init, logits


def classifier(init, logits, data, **settings) -> Task:
    """Returns the task of naming the class, by cross entropy."""

    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()

    def measure(params, x, y):
        return {"test accuracy": 100 * jnp.mean(logits(params, x).argmax(axis=-1) == y)}

    train, test = jax.tree.map(jnp.asarray, (tuple(data[0]), tuple(data[1])))
    return Task(init, loss, measure, train, test, **settings)
