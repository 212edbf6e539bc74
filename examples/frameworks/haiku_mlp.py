"""Adadelta with Haiku: train on handwritten digits, save halfway, resume exactly.

Halfway, the parameters and the optimizer state are pickled. A second run loads the pickle and ends
with exactly the loss of the first. The digits come with scikit-learn, so nothing is downloaded.

Needs: optax_adadelta, scikit-learn, dm-haiku
Run: python examples/frameworks/haiku_mlp.py --epochs 10 --folder checkpoints
"""

import argparse
import pickle
import tempfile
from pathlib import Path

import haiku as hk
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
model = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([128, 10])(x)))


def new(seed):
    params = model.init(jax.random.key(seed), x[:1])
    return params, optimizer.init(params)


@jax.jit
def loss(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, x), y).mean()


@jax.jit(donate_argnums=(0, 1))
def step(params, state, x, y):
    grads = jax.grad(loss)(params, x, y)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def train(params, state, epochs):
    for epoch in epochs:
        # The number of the epoch seeds the shuffle, so a resumed run gets the same minibatches.
        for batch in np.random.default_rng(epoch).permutation(len(y)).reshape(-1, 32):
            params, state = step(params, state, x[batch], y[batch])
        value = float(loss(params, x, y))
        accuracy = np.mean(model.apply(params, test_x).argmax(axis=1) == test_y)
        print(f"epoch {epoch}: training loss {value:.6f}, test accuracy {accuracy:.1%}")
    return params, state, value


def load(path):
    return pickle.loads(path.read_bytes())  # Only load pickles that you trust.


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train, save halfway, and resume.")
    parser.add_argument("--epochs", type=int, default=10, help="at least 2 (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="for the checkpoint (default: a temporary one)")
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("--epochs must be at least 2")
    path = (options.folder or Path(tempfile.mkdtemp())).resolve() / "haiku_mlp.pickle"
    path.parent.mkdir(parents=True, exist_ok=True)
    half = options.epochs // 2
    before, after = range(1, half + 1), range(half + 1, options.epochs + 1)

    params, state, _ = train(*new(seed=0), before)
    path.write_bytes(pickle.dumps(jax.device_get((params, state))))
    print(f"Saved parameters and optimizer state after epoch {half}: {path}")
    *_, uninterrupted = train(params, state, after)
    print("Resumed from the checkpoint:")
    *_, resumed = train(*load(path), after)
    print(f"Final loss: {uninterrupted} uninterrupted, {resumed} resumed")
    assert resumed == uninterrupted
