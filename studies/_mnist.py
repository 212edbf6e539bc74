"""The paper's networks on MNIST. One compiled program trains many of them."""

import argparse
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from studies._lib import data as _data

SIZES = (784, 500, 300, 10)
BATCH = 100
SMOKE_IMAGES = 300
# On a CPU, one network at a time stays in the cache, which is twice as fast as all at once.
ABREAST = None if jax.default_backend() == "cpu" else 64

# Initial weights. Biases are zero.
INITS = {
    "Glorot uniform": jax.nn.initializers.glorot_uniform(),
    "N(0, 0.01)": jax.nn.initializers.normal(0.01),
    "He normal": jax.nn.initializers.he_normal(),
}
ACTIVATIONS = {"ReLU": jax.nn.relu, "tanh": jnp.tanh}
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
    activation: str = "ReLU"
    # The paper (2012) does not say. Glorot and Bengio published this rule in 2010.
    init: str = "Glorot uniform"


def load(options: argparse.Namespace):
    """Returns (images in [0, 255], labels) for training and for testing, few with --smoke."""
    train, test = _data.mnist(options)
    if options.smoke:
        train, test = ([part[:SMOKE_IMAGES] for part in half] for half in (train, test))
    return jax.tree.map(jnp.asarray, (tuple(train), tuple(test)))


def init(key: jax.Array, how: str = "Glorot uniform") -> dict:
    """Returns the layers, from the images up."""
    shapes = list(itertools.pairwise(SIZES))
    return {
        f"layer {number}": {"w": INITS[how](key, shape), "b": jnp.zeros(shape[1])}
        for number, (key, shape) in enumerate(
            zip(jax.random.split(key, len(shapes)), shapes, strict=True), start=1
        )
    }


def logits(params: dict, images: jax.Array, activation: str = "ReLU") -> jax.Array:
    """Returns the scores of the ten digits for each image."""
    x = images.astype(jnp.float32) / 255
    *hidden, top = params.values()
    for layer in hidden:
        x = ACTIVATIONS[activation](x @ layer["w"] + layer["b"])
    return x @ top["w"] + top["b"]


def loss(params: dict, images: jax.Array, labels: jax.Array, activation: str = "ReLU"):
    """Returns the mean cross entropy."""
    scores = logits(params, images, activation)
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()


def error(params: dict, images: jax.Array, labels: jax.Array, activation: str = "ReLU"):
    """Returns the test error in percent."""
    return 100 * jnp.mean(logits(params, images, activation).argmax(axis=-1) != labels)


def batches(seed: int, epoch: int, images: int) -> np.ndarray:
    """Returns the minibatches of an epoch, a row of indices each."""
    steps = images // BATCH
    order = np.random.default_rng((seed, epoch)).permutation(images)[: steps * BATCH]
    return order.reshape(steps, BATCH).astype(np.int32)


def train(columns: Mapping[str, Column], data, seeds: int, epochs: int, name: str):
    """Trains a network for each cell and seed, all in one compiled program.

    The networks of a seed have the same initial weights and minibatches.

    Yields:
      after each epoch {column: test errors in percent, [cells, seeds]}.
    """
    data_train, data_test = data
    images = len(data_train[1])
    chunk = min(60, images // BATCH)

    def over_nets(function):
        """Returns a function of the columns' nets that maps over the nets of each."""

        def over_column(column, nets, *args):
            return jax.lax.map(lambda net: function(column, net, *args), nets, batch_size=ABREAST)

        return lambda nets, *args: {
            name: over_column(column, nets[name], *args) for name, column in columns.items()
        }

    def start(column, net):
        params = init(jax.random.key(net["seed"]), column.init)
        return net | {"at": (params, column.optimizer(**net["settings"]).init(params))}

    def advance(column, net, data, indices):
        optimizer = column.optimizer(**net["settings"])

        def step(at, batch):
            params, state = at
            x, y = (part[batch] for part in data)
            grads = jax.grad(loss)(params, x, y, column.activation)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return net | {"at": jax.lax.scan(step, net["at"], indices[net["seed"]])[0]}

    def test(column, net, data):
        return error(net["at"][0], *data, column.activation)

    start = jax.jit(over_nets(start))
    advance = partial(jax.jit, donate_argnums=0)(over_nets(advance))
    test = jax.jit(over_nets(test))

    nets = {}
    for c, column in columns.items():
        (cells,) = {len(values) for values in column.settings.values()}
        nets[c] = {
            "settings": {
                argument: jnp.repeat(jnp.asarray(values, jnp.float32), seeds)
                for argument, values in column.settings.items()
            },
            "seed": jnp.tile(jnp.arange(seeds), cells),
        }
    nets = start(nets)
    with tqdm(total=epochs * (images // BATCH), desc=f"Training, {name}", unit="step") as bar:
        for epoch in range(epochs):
            indices = np.stack([batches(seed, epoch, images) for seed in range(seeds)])
            for first in range(0, indices.shape[1], chunk):
                nets = advance(nets, data_train, indices[:, first : first + chunk])
                jax.block_until_ready(nets)  # So the bar shows finished steps.
                bar.update(min(chunk, indices.shape[1] - first))
            yield {c: np.reshape(e, (-1, seeds)) for c, e in test(nets, data_test).items()}
