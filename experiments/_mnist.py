"""The paper's networks on MNIST, many of them trained by one compiled program, and what to save."""

import argparse
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from benchmarks import _report
from experiments import _data

SIZES = (784, 500, 300, 10)
BATCH = 100
SMOKE_IMAGES = 600
# On a CPU one network after the other stays in the cache: twice as fast as all of them abreast.
ABREAST = None if jax.default_backend() == "cpu" else 64

# How the first weights are drawn, from the numbers of inputs and outputs; biases are zero.
INITS = {
    "Glorot uniform": jax.nn.initializers.glorot_uniform(),
    "N(0, 0.01)": jax.nn.initializers.normal(0.01),
    "He normal": jax.nn.initializers.he_normal(),
}
ACTIVATIONS = {"ReLU": jax.nn.relu, "tanh": jnp.tanh}


class Column(NamedTuple):
    """One method and its settings, each of which is a cell and trains a network for every seed."""

    optimizer: Callable[..., optax.GradientTransformation]
    settings: Mapping[str, Any]  # Name of an argument to the values it has in the cells.
    activation: str = "ReLU"
    # The paper, of 2012, gives none. Glorot and Bengio's rule is of 2010, He's of 2015.
    init: str = "Glorot uniform"


def load(options: argparse.Namespace):
    """Returns (images in [0, 255], labels) to train on and to test on; few of them for a smoke."""
    train, test = _data.mnist(options)
    if options.smoke:
        train, test = ([part[:SMOKE_IMAGES] for part in half] for half in (train, test))
    return jax.tree.map(jnp.asarray, (tuple(train), tuple(test)))


def init(key: jax.Array, how: str = "Glorot uniform") -> dict:
    """Returns the layers, from the images upwards."""
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
    """Returns how many images are misread, in percent."""
    return 100 * jnp.mean(logits(params, images, activation).argmax(axis=-1) != labels)


def batches(seed: int, epoch: int, images: int) -> np.ndarray:
    """Returns the epoch's minibatches, a row of indices each."""
    steps = images // BATCH
    order = np.random.default_rng((seed, epoch)).permutation(images)[: steps * BATCH]
    return order.reshape(steps, BATCH).astype(np.int32)


def train(columns: Mapping[str, Column], data, seeds: int, epochs: int, name: str):
    """Trains a network for each cell and seed, all of them in one compiled program.

    The networks of a seed start alike and see the same minibatches.

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
                jax.block_until_ready(nets)  # The bar shows what is done, not what is queued.
                bar.update(min(chunk, indices.shape[1] - first))
            yield {c: np.reshape(e, (-1, seeds)) for c, e in test(nets, data_test).items()}


def results(description: str, parts: Mapping[str, int], make: Callable, smoke_epochs: int):
    """Reads the options, makes the parts they name, and saves each as soon as it is done.

    Args:
      description: what --help says first.
      parts: the names of what there is to make, and the epochs that each takes in full.
      make: a function of a part's name, data, seeds and epochs that returns what to save.
      smoke_epochs: the most epochs of a smoke run.

    Returns:
      what is saved of every part, made now or before, and the file.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    text = "what to make anew; the rest stays as it is in --output (default: all)"
    add("--only", nargs="+", choices=list(parts), default=list(parts), metavar="PART", help=text)
    text = "networks of each setting, which start differently (default: %(default)s)"
    add("--seeds", type=int, default=5, help=text)
    text = "at most so many passes over the images (default: as in the paper)"
    add("--epochs", type=int, default=max(parts.values()), help=text)
    text = "the folder for the numbers and pictures (default: %(default)s)"
    add("--output", type=Path, default=Path("results"), help=text)
    text = "draw and print again what --output has, and train nothing (default: off)"
    add("--draw-only", action="store_true", help=text)
    text = (
        f"only try that all works: {SMOKE_IMAGES} images, at most {smoke_epochs} epochs and 2"
        " seeds, and files of other names (default: off)"
    )
    add("--smoke", action="store_true", help=text)
    _data.add_options(parser)
    options = parser.parse_args()
    if options.seeds < 1 or options.epochs < 1:
        parser.error("--seeds and --epochs must be at least 1")

    file = options.output / f"{Path(parser.prog).stem}{'-smoke' * options.smoke}.json"
    if not options.draw_only:
        _report.make_folder(options.output)
        made_by = _report.provenance(parser, options)
        if file.exists():
            _report.load(file)  # What cannot be read is found before the training, not after it.
        data = load(options)
        for part in options.only:
            seeds, epochs = options.seeds, min(options.epochs, parts[part])
            if options.smoke:
                seeds, epochs = min(seeds, 2), min(epochs, smoke_epochs)
            made = {**made_by, "seeds": seeds, "epochs": epochs, **make(part, data, seeds, epochs)}
            saved = _report.load(file) if file.exists() else {}
            _report.save(file, {**saved, part: made})
    saved = _report.load(file)
    return {part: saved[part] for part in parts if part in saved}, file
