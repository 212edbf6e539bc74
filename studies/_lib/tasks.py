"""What `compare.py` trains: seven small tasks of different kinds.

Every task has training, validation and test data, a loss, and an error, which is better if lower.
"""

import argparse
import hashlib
import itertools
import math
from collections.abc import Callable
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from studies._lib.storage_tasks import attention, perceptron
from studies._lib import data as _data

HE = jax.nn.initializers.he_normal()
PARTS = ("train", "validation", "test")
SMOKE_STEPS, SMOKE_SIZE = 12, 120
SYMBOLS, LENGTH, WIDTH = 32, 8, 32  # Of the sequences to sort, and of the attention.
CONTEXT = 8  # Characters that the next one is predicted from.


class Task(NamedTuple):
    """A model, its data, and how long it is trained."""

    model: str
    error_name: str
    init: Callable[[jax.Array], Any]
    loss: Callable[..., jax.Array]  # Of the parameters and a batch.
    error: Callable[..., jax.Array]  # Of the parameters and the test data.
    train: tuple[np.ndarray, ...]
    validation: tuple[np.ndarray, ...]
    test: tuple[np.ndarray, ...]
    batch: int
    steps: int
    source: str = ""  # The SHA-256 of data that differs between machines.

    def facts(self) -> dict[str, Any]:
        """Returns what describes the task in the results."""
        params = jax.eval_shape(self.init, jax.random.key(0))
        return {
            "model": self.model,
            "error": self.error_name,
            "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
            "examples": [len(part[-1]) for part in (self.train, self.validation, self.test)],
            "batch": self.batch,
            "steps": self.steps,
            **({"source": self.source} if self.source else {}),
        }


def load(name: str, options: argparse.Namespace) -> Task:
    """Returns the task, with little data and few steps for --smoke."""
    task = TASKS[name](options)
    if options.smoke:
        parts = (task.train, task.validation, task.test)
        few = (tuple(array[:SMOKE_SIZE] for array in part) for part in parts)
        return task._replace(**dict(zip(PARTS, few, strict=True)), steps=SMOKE_STEPS)
    return task


def digits(options: argparse.Namespace) -> Task:
    """8 x 8 images of digits, which come with scikit-learn."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    data = (images / 16).astype(np.float32), labels.astype(np.int32)
    model, parts = perceptron(HE, (64, 64, 10)), split(data, validation=300, test=400)
    return classifier("dense 64-64-10", *model, *parts, batch=32, steps=2000)


def mnist_dense(options: argparse.Namespace) -> Task:
    """Images of digits, as numbers in a row."""
    train, test = _data.mnist(options)
    train, test = ((x / np.float32(255), y) for x, y in (train, test))
    model, parts = perceptron(HE, (784, 64, 10)), (*split(train, validation=4000), test)
    return classifier("dense 784-64-10", *model, *parts, batch=64, steps=2000)


def mnist_convolution(options: argparse.Namespace) -> Task:
    """Images of digits, at half the width and height."""
    train, test = (
        (x.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4), dtype=np.float32)[..., None] / 255, y)
        for x, y in _data.mnist(options)
    )
    first, second, top = layers((9 * 1, 16), (9 * 16, 32), (4 * 32, 10))

    def init(key):
        keys = jax.random.split(key, 3)
        return [first(keys[0]), second(keys[1]), top(keys[2])]

    def convolution(layer, x):
        # As a product of matrices. Many networks side by side are slow with lax.conv on a CPU.
        size = x.shape[1] - 2
        places = itertools.product(range(3), range(3))
        patches = [x[:, i : i + size : 2, j : j + size : 2] for i, j in places]
        return jax.nn.relu(jnp.concatenate(patches, axis=-1) @ layer["w"] + layer["b"])

    def logits(params, x):
        x = convolution(params[1], convolution(params[0], x))
        return x.reshape(len(x), -1) @ params[2]["w"] + params[2]["b"]

    return classifier(
        "two 3 x 3 convolutions with stride 2, of 16 and 32 channels, on 14 x 14",
        init,
        logits,
        *split(train, validation=4000),
        test,
        batch=64,
        steps=1500,
    )


def airfoil(options: argparse.Namespace) -> Task:
    """The noise of an airfoil, from five of its properties. All are standardized."""
    table = _data.airfoil(options)
    parts = split((table,), validation=200, test=300)
    mean, deviation = parts[0][0].mean(axis=0), parts[0][0].std(axis=0)
    parts = [((rows - mean) / deviation).astype(np.float32) for (rows,) in parts]
    init, apply = perceptron(HE, (5, 64, 64, 1))

    def loss(params, x, y):
        return jnp.mean((apply(params, x)[:, 0] - y) ** 2)

    return Task(
        "dense 5-64-64-1",
        "root mean square error in dB",
        init,
        loss,
        lambda *args: float(deviation[-1]) * jnp.sqrt(loss(*args)),
        *((rows[:, :-1], rows[:, -1]) for rows in parts),
        batch=32,
        steps=2000,
    )


def vowels(options: argparse.Namespace) -> Task:
    """Who of nine speakers says a vowel, from a sequence of 7 to 29 frames."""
    train, test = _data.vowels(options)
    said = train[0][np.arange(_data.VOWELS_FRAMES) < train[1][:, None]]
    mean, deviation = said.mean(axis=0), said.std(axis=0)
    train, test = (((x - mean) / deviation, *rest) for x, *rest in (train, test))
    width = 32
    gates, top = layers((12 + width, 3 * width), (width, 9))

    def init(key):
        keys = jax.random.split(key)
        return {"gates": gates(keys[0]), "top": top(keys[1])}

    def logits(params, frames, lengths):
        w, b = params["gates"]["w"], params["gates"]["b"]
        inputs = jnp.swapaxes(frames @ w[:12] + b, 0, 1)  # [time, batch, gates]

        def step(h, given):
            x, time = given
            x_gates, x_new = jnp.split(x, [2 * width], axis=-1)
            reset, keep = jnp.split(jax.nn.sigmoid(x_gates + h @ w[12:, : 2 * width]), 2, axis=-1)
            new = jnp.tanh(x_new + (reset * h) @ w[12:, 2 * width :])
            new = keep * h + (1 - keep) * new
            return jnp.where((time < lengths)[:, None], new, h), None

        h = jnp.zeros((len(frames), width))
        h, _ = jax.lax.scan(step, h, (inputs, jnp.arange(frames.shape[1])))
        return h @ params["top"]["w"] + params["top"]["b"]

    return classifier(
        "gated recurrent unit of width 32",
        init,
        logits,
        *split(train, validation=60),
        test,
        batch=30,
        steps=800,
    )


def sorting(options: argparse.Namespace) -> Task:
    """Returns eight random symbols in order. Attention has to compare all of them."""
    draw = np.random.default_rng(0).integers
    x = draw(SYMBOLS, size=(24_000, LENGTH), dtype=np.int32)
    parts = split((x, np.sort(x, axis=1)), validation=2000, test=2000)
    model = attention(SYMBOLS, LENGTH, WIDTH)
    return classifier("one block of attention of width 32", *model, *parts, batch=64, steps=2000)


def characters(options: argparse.Namespace) -> Task:
    """Predicts the next character of Python's own help, from the eight before it."""
    text = "\n".join(topics[name] for name in sorted(topics)).encode("ascii", "replace")
    known, codes = np.unique(np.frombuffer(text, np.uint8), return_inverse=True)
    windows = np.lib.stride_tricks.sliding_window_view(codes.astype(np.int32), CONTEXT + 1)
    # Whole stretches of text, so that no test window overlaps the training data.
    ends = int(0.8 * len(windows)), int(0.9 * len(windows))
    parts = [windows[: ends[0]], windows[ends[0] : ends[1] : 4], windows[ends[1] :: 4]]
    parts = [(np.ascontiguousarray(part[:, :-1]), part[:, -1]) for part in parts]
    hidden, top = layers((16 * CONTEXT, 128), (128, len(known)))

    def init(key):
        keys = jax.random.split(key, 3)
        table = jax.random.normal(keys[0], (len(known), 16)) / 4
        return {"symbols": table, "hidden": hidden(keys[1]), "top": top(keys[2])}

    def logits(params, x):
        x = params["symbols"][x].reshape(len(x), -1)
        x = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
        return x @ params["top"]["w"] + params["top"]["b"]

    task = classifier(
        "embedding of width 16, dense 128-128", init, logits, *parts, batch=128, steps=2000
    )
    return task._replace(
        error_name="bits per character",
        error=lambda *args: task.loss(*args) / math.log(2),
        source=hashlib.sha256(text).hexdigest(),
    )


def layers(*shapes: tuple[int, int]) -> list[Callable[[jax.Array], dict[str, jax.Array]]]:
    """Returns for each shape how to draw a dense layer, whose bias is zero."""
    return [lambda key, s=s: {"w": HE(key, s), "b": jnp.zeros(s[1])} for s in shapes]


def split(data: tuple[np.ndarray, ...], **sizes: int) -> list[tuple[np.ndarray, ...]]:
    """Returns the data in random order, in parts: the rest, then those of the given sizes."""
    order = np.random.default_rng(0).permutation(len(data[-1]))
    ends = len(order) - np.cumsum(list(sizes.values())[::-1])[::-1]
    return [tuple(a[part] for a in data) for part in np.split(order, ends)]


def classifier(model, init, logits, train, validation, test, **settings) -> Task:
    """Returns the task of naming the class. The last array of the data has the classes."""

    def loss(params, *data):
        scores = logits(params, *data[:-1])
        return optax.softmax_cross_entropy_with_integer_labels(scores, data[-1]).mean()

    def error(params, *data):
        return 100 * jnp.mean(logits(params, *data[:-1]).argmax(axis=-1) != data[-1])

    return Task(model, "errors in %", init, loss, error, train, validation, test, **settings)


TASKS = {
    "digits": digits,
    "MNIST, dense": mnist_dense,
    "MNIST, convolution": mnist_convolution,
    "airfoil": airfoil,
    "vowels": vowels,
    "sorting": sorting,
    "characters": characters,
}
