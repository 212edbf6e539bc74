"""Adadelta with Flax NNX: train on handwritten digits, save halfway, resume exactly.

Halfway, Orbax saves the model and the optimizer. A second run makes both anew, restores them, and
ends with exactly the loss of the first. The digits come with scikit-learn, so nothing is
downloaded.

Needs: optax_adadelta, scikit-learn, flax, orbax-checkpoint
Run: python examples/frameworks/flax_nnx.py --epochs 10 --folder checkpoints
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from optax_adadelta import nadadelta

images, labels = load_digits(return_X_y=True)
images = np.float32(images / 16)
x, test_x, y, test_y = train_test_split(images, labels, train_size=1280, random_state=0)
tx = nadadelta()


def new(seed):
    rngs = nnx.Rngs(seed)
    layers = nnx.Linear(64, 128, rngs=rngs), nnx.relu, nnx.Linear(128, 10, rngs=rngs)
    model = nnx.Sequential(*layers)
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


@nnx.jit
def loss(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


@nnx.jit(donate_argnums=(0, 1))
def step(model, optimizer, x, y):
    grads = nnx.grad(loss)(model, x, y)
    optimizer.update(model, grads)


def train(model, optimizer, epochs):
    for epoch in epochs:
        # The number of the epoch seeds the shuffle, so a resumed run gets the same minibatches.
        for batch in np.random.default_rng(epoch).permutation(len(y)).reshape(-1, 32):
            step(model, optimizer, x[batch], y[batch])
        value = float(loss(model, x, y))
        accuracy = np.mean(model(test_x).argmax(axis=1) == test_y)
        print(f"epoch {epoch}: training loss {value:.6f}, test accuracy {accuracy:.1%}")
    return value


def load(path):
    both = new(seed=1)  # Any seed: every array is replaced.
    with ocp.StandardCheckpointer() as checkpointer:
        nnx.update(both, checkpointer.restore(path, nnx.state(both)))
    return both


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train, save halfway, and resume.")
    parser.add_argument("--epochs", type=int, default=10, help="at least 2 (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="for the checkpoint (default: a temporary one)")
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("--epochs must be at least 2")
    path = (options.folder or Path(tempfile.mkdtemp())).resolve() / "flax_nnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    half = options.epochs // 2
    before, after = range(1, half + 1), range(half + 1, options.epochs + 1)

    model, optimizer = new(seed=0)
    train(model, optimizer, before)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, nnx.state((model, optimizer)), force=True)
    print(f"Saved parameters and optimizer state after epoch {half}: {path}")
    uninterrupted = train(model, optimizer, after)
    print("Resumed from the checkpoint:")
    resumed = train(*load(path), after)
    print(f"Final loss: {uninterrupted} uninterrupted, {resumed} resumed")
    assert resumed == uninterrupted
