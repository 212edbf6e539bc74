"""Tasks that no setting of this package was chosen on."""

import argparse
import hashlib
import math
import sysconfig
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax

from studies._lib import models
from studies._lib.tasks import Task, classifier, half_size_mnist, regression, split

LENGTH = 64  # Characters that the transformer reads at once.


def source_code(options: argparse.Namespace) -> Task:
    """Predicts each next character of the standard library's source."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = b"\n".join(path.read_bytes() for path in paths)
    text = text.decode(errors="replace").encode("ascii", "replace")
    known, codes = np.unique(np.frombuffer(text, np.uint8), return_inverse=True)
    count = len(codes) // (LENGTH + 1)
    windows = codes[: count * (LENGTH + 1)].reshape(count, -1).astype(np.int32)
    train, validation, test = np.split(windows, [int(0.8 * count), int(0.9 * count)])
    few = slice(None, None, 8)
    parts = (train,), (validation[few],), (test[few],)
    model = models.transformer(len(known), LENGTH, width=96, layers=3, heads=4)

    def loss(params, x):
        scores = model.apply(params, x[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(scores, x[:, 1:]).mean()

    def error(params, x):
        return loss(params, x) / math.log(2)

    task = Task(model, "bits per character", loss, error, *parts, batch=8, steps=1500, seeds=3)
    return task._replace(abreast=None, source=hashlib.sha256(text).hexdigest())


def batch_normalization(options: argparse.Namespace) -> Task:
    """Images of digits. For the test, the statistics are those of 1000 training images."""
    parts = half_size_mnist(options)
    name = "two convolutions with batch normalization, on 14 x 14"
    model = models.convolutions(name, normalized=True)
    task, seen = classifier(model, *parts, batch=64, steps=1000), parts[0][0][:1000]

    def error(params, x, y):
        scores = model.apply(params, jnp.concatenate([seen, x]), len(seen))[len(seen) :]
        return 100 * jnp.mean(scores.argmax(axis=-1) != y)

    return task._replace(error=error)


def rows(options: argparse.Namespace) -> Task:
    """Images of digits, one row of pixels after the other."""
    parts = [(x[..., 0], y) for x, y in half_size_mnist(options)]
    return classifier(models.long_short_term_memory(14, 64, 10), *parts, batch=64, steps=1000)


def autoencoder(options: argparse.Namespace) -> Task:
    """Images of digits, through sixteen numbers."""
    parts = [(x.reshape(len(x), -1),) for x, _ in half_size_mnist(options)]
    model = models.perceptron(196, 128, 64, 16, 64, 128, 196)
    name, pairs = "root mean square error in %", ((x, x) for (x,) in parts)
    return regression(model, name, 100.0, *pairs, batch=64, steps=1500)


def friedman(options: argparse.Namespace) -> Task:
    """Friedman's first function of five of ten columns, with noise of 0.2."""
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(6000, noise=0.2, random_state=0)
    mean, deviation = y.mean(), y.std()
    table = ((x - 0.5) * math.sqrt(12)).astype(np.float32), ((y - mean) / deviation)
    parts = split((table[0], table[1].astype(np.float32)[:, None]), validation=1000, test=1000)
    model, name = models.perceptron(10, 64, 64, 1), "root mean square error"
    return regression(model, name, float(deviation), *parts, batch=32, steps=2000)


UNSEEN = {
    "source code": source_code,
    "batch normalization": batch_normalization,
    "rows": rows,
    "autoencoder": autoencoder,
    "Friedman": friedman,
}
