"""Adadelta with Flax linen: train on handwritten digits, save halfway, resume exactly.

Halfway, Orbax saves the whole TrainState. A second run makes a new TrainState, restores it, and
ends with exactly the loss of the first. The digits come with scikit-learn, so nothing is
downloaded.

Needs: optax_adadelta, scikit-learn, flax, orbax-checkpoint
Run: python examples/frameworks/flax_linen.py --epochs 10 --folder checkpoints
"""

import argparse
import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from optax_adadelta import nadadelta

images, labels = load_digits(return_X_y=True)
images = np.float32(images / 16)
x, test_x, y, test_y = train_test_split(images, labels, train_size=1280, random_state=0)
optimizer = nadadelta()
model = nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(10)])


def new(seed):
    params = model.init(jax.random.key(seed), x[:1])["params"]
    return TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)


@jax.jit
def loss(params, x, y):
    logits = model.apply({"params": params}, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@jax.jit(donate_argnums=0)
def step(state, x, y):
    grads = jax.grad(loss)(state.params, x, y)
    return state.apply_gradients(grads=grads)


def train(state, epochs):
    for epoch in epochs:
        # The number of the epoch seeds the shuffle, so a resumed run gets the same minibatches.
        for batch in np.random.default_rng(epoch).permutation(len(y)).reshape(-1, 32):
            state = step(state, x[batch], y[batch])
        value = float(loss(state.params, x, y))
        accuracy = np.mean(model.apply({"params": state.params}, test_x).argmax(axis=1) == test_y)
        print(f"epoch {epoch}: training loss {value:.6f}, test accuracy {accuracy:.1%}")
    return state, value


def load(path):
    target = new(seed=1)  # Any seed: every array is replaced.
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train, save halfway, and resume.")
    parser.add_argument("--epochs", type=int, default=10, help="at least 2 (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="for the checkpoint (default: a temporary one)")
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("--epochs must be at least 2")
    path = (options.folder or Path(tempfile.mkdtemp())).resolve() / "flax_linen"
    path.parent.mkdir(parents=True, exist_ok=True)
    half = options.epochs // 2
    before, after = range(1, half + 1), range(half + 1, options.epochs + 1)

    state, _ = train(new(seed=0), before)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, state, force=True)
    print(f"Saved parameters and optimizer state after epoch {half}: {path}")
    _, uninterrupted = train(state, after)
    print("Resumed from the checkpoint:")
    _, resumed = train(load(path), after)
    print(f"Final loss: {uninterrupted} uninterrupted, {resumed} resumed")
    assert resumed == uninterrupted
