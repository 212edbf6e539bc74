"""Adadelta with Equinox: train on handwritten digits, save halfway, resume exactly.

Halfway, the model and the optimizer state are saved in one file. A second run makes both anew,
loads the file, and ends with exactly the loss of the first. The digits come with scikit-learn, so
nothing is downloaded.

Needs: optax_adadelta, scikit-learn, equinox
Run: python examples/frameworks/equinox_mlp.py --epochs 10 --folder checkpoints
"""

import argparse
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from optax_adadelta import nadadelta

images, labels = load_digits(return_X_y=True)
images = np.float32(images / 16)
x, test_x, y, test_y = train_test_split(images, labels, train_size=1280, random_state=0)
optimizer = nadadelta()


def new(seed):
    model = eqx.nn.MLP(64, 10, width_size=128, depth=1, key=jax.random.key(seed))
    return model, optimizer.init(eqx.filter(model, eqx.is_inexact_array))


@eqx.filter_jit
def loss(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()


@eqx.filter_jit(donate="all")
def step(model, state, x, y):
    grads = eqx.filter_grad(loss)(model, x, y)
    arrays = eqx.filter(model, eqx.is_inexact_array)
    updates, state = optimizer.update(grads, state, arrays)
    return eqx.apply_updates(model, updates), state


def train(model, state, epochs):
    for epoch in epochs:
        # The number of the epoch seeds the shuffle, so a resumed run gets the same minibatches.
        for batch in np.random.default_rng(epoch).permutation(len(y)).reshape(-1, 32):
            model, state = step(model, state, x[batch], y[batch])
        value = float(loss(model, x, y))
        accuracy = np.mean(jax.vmap(model)(test_x).argmax(axis=1) == test_y)
        print(f"epoch {epoch}: training loss {value:.6f}, test accuracy {accuracy:.1%}")
    return model, state, value


def load(path):
    target = new(seed=1)  # Any seed: every array is replaced.
    return eqx.tree_deserialise_leaves(path, target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train, save halfway, and resume.")
    parser.add_argument("--epochs", type=int, default=10, help="at least 2 (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="for the checkpoint (default: a temporary one)")
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("--epochs must be at least 2")
    path = (options.folder or Path(tempfile.mkdtemp())).resolve() / "equinox_mlp.eqx"
    path.parent.mkdir(parents=True, exist_ok=True)
    half = options.epochs // 2
    before, after = range(1, half + 1), range(half + 1, options.epochs + 1)

    model, state, _ = train(*new(seed=0), before)
    eqx.tree_serialise_leaves(path, (model, state))
    print(f"Saved parameters and optimizer state after epoch {half}: {path}")
    *_, uninterrupted = train(model, state, after)
    print("Resumed from the checkpoint:")
    *_, resumed = train(*load(path), after)
    print(f"Final loss: {uninterrupted} uninterrupted, {resumed} resumed")
    assert resumed == uninterrupted
