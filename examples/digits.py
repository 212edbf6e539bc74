"""Learn handwritten digits with Adadelta, and watch its step sizes on the way.

A network of three layers in plain JAX learns to read the 1797 digits of 8 x 8 pixels that
scikit-learn brings along; nothing is downloaded. No learning rate is set anywhere: Adadelta
multiplies each coordinate's gradient by RMS[dx] / RMS[g], its own effective learning rate.
The picture shows the loss, the accuracy and this rate, averaged over each layer's weights.

Needs: pip install "optax_adadelta[examples]"
"""

import argparse
import math
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import trange

from optax_adadelta import adadelta, clip_by_global_norm
from optax_adadelta.diagnostics import effective_learning_rate

LAYERS = {"hidden 1": (64, 256), "hidden 2": (256, 128), "output": (128, 10)}
BATCH = 32
SMOKE_EPOCHS = 2
EPS = 1e-6
OPTIMIZER = optax.chain(clip_by_global_norm(1.0), adadelta(rho=0.95, eps=EPS))


def load(seed: int):
    """Returns (images, labels) to train on and, a quarter of all, to test on."""
    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images / 16, labels, test_size=0.25, stratify=labels, random_state=seed
    )
    return (train_x, train_y), (test_x, test_y)


def init(key: jax.Array) -> dict:
    """Returns He-normal weights and zero biases."""
    keys = jax.random.split(key, len(LAYERS))
    return {
        name: {
            "w": math.sqrt(2 / inputs) * jax.random.normal(key, (inputs, outputs)),
            "b": jnp.zeros(outputs),
        }
        for key, (name, (inputs, outputs)) in zip(keys, LAYERS.items(), strict=True)
    }


def logits(params: dict, x: jax.Array) -> jax.Array:
    """Returns the scores of the ten digits for each image."""
    for name in ("hidden 1", "hidden 2"):
        x = jax.nn.relu(x @ params[name]["w"] + params[name]["b"])
    return x @ params["output"]["w"] + params["output"]["b"]


def loss(params: dict, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the mean cross entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()


@partial(jax.jit, donate_argnums=(0, 1))
def step(params: dict, state: optax.OptState, x: jax.Array, y: jax.Array):
    """Makes one step of training, in the memory of the old parameters and state."""
    grads = jax.grad(loss)(params, x, y)
    updates, state = OPTIMIZER.update(grads, state, params)
    return optax.apply_updates(params, updates), state


@jax.jit
def measure(params: dict, state: optax.OptState, train, test) -> dict:
    """Returns what the picture shows."""
    sets = {"train": train, "test": test}
    rates = effective_learning_rate(state, EPS)
    return {
        "loss": {name: loss(params, x, y) for name, (x, y) in sets.items()},
        "accuracy": {
            name: jnp.mean(logits(params, x).argmax(axis=-1) == y) for name, (x, y) in sets.items()
        },
        "rate": {name: rates[name]["w"].mean() for name in LAYERS},
    }


def fit(train, test, epochs: int, seed: int) -> dict:
    """Trains, and returns the measurements before the first epoch and after each."""
    params = init(jax.random.key(seed))
    state = OPTIMIZER.init(params)
    shuffle = np.random.default_rng(seed)
    x, y = train
    steps = len(y) // BATCH
    history = [measure(params, state, train, test)]
    bar = trange(epochs, desc="Training", unit="epoch")
    for _ in bar:
        for batch in shuffle.permutation(len(y))[: steps * BATCH].reshape(steps, BATCH):
            params, state = step(params, state, x[batch], y[batch])
        history.append(measure(params, state, train, test))
        bar.set_postfix(test_accuracy=f"{history[-1]['accuracy']['test']:.1%}")
    return jax.tree.map(lambda *values: np.array(values), *history)


def draw(history: dict, output: Path) -> None:
    """Writes the picture."""
    figure = Figure(figsize=(9, 3.2), dpi=130, layout="constrained")
    losses, accuracies, rates = figure.subplots(1, 3)
    for name, color, line in (("train", "#0072B2", "-"), ("test", "#D55E00", "--")):
        losses.semilogy(history["loss"][name], line, color=color, label=name)
        accuracies.plot(100 * history["accuracy"][name], line, color=color, label=name)
    styles = (("#0072B2", "-"), ("#009E73", "--"), ("#D55E00", "-."))
    for (name, rate), (color, line) in zip(history["rate"].items(), styles, strict=True):
        rates.plot(rate, line, color=color, label=name)
    losses.set(title="Loss", ylabel="mean cross entropy (nats)")
    accuracies.set(title="Accuracy", ylabel="digits read correctly (%)", ylim=(89, 100.5))
    rates.set(title="Effective learning rate", ylabel="mean of RMS[dx] / RMS[g]", ylim=(0, 1.05))
    for axes in (losses, accuracies, rates):
        axes.set_xlabel("epochs")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)


def main() -> None:
    """Reads the options, trains, draws, and says what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    text = "passes over the training digits (default: %(default)s)"
    add("--epochs", type=int, default=40, help=text)
    text = "chooses the split, first weights and order of the batches (default: %(default)s)"
    add("--seed", type=int, default=0, help=text)
    text = "where to write the picture (default: %(default)s)"
    add("--output", type=Path, default=Path("digits.png"), help=text)
    text = f"only try that all works: at most {SMOKE_EPOCHS} epochs, a few seconds (default: off)"
    add("--smoke", action="store_true", help=text)
    options = parser.parse_args()
    if options.epochs < 1 or options.seed < 0:
        parser.error("--epochs must be at least 1 and --seed at least 0")
    epochs = min(options.epochs, SMOKE_EPOCHS) if options.smoke else options.epochs

    train, test = load(options.seed)
    start = time.perf_counter()
    history = fit(train, test, epochs, options.seed)
    seconds = time.perf_counter() - start
    draw(history, options.output)

    print(
        f"Test accuracy: {history['accuracy']['test'][-1]:.2%} of {len(test[1])} digits that"
        f" were not trained on, after {epochs} epochs."
    )
    print(f"Time: {seconds:.1f} s for training, compilation included.")
    print("Effective learning rate, the mean over a layer's weights, 1 before training:")
    for name, rate in history["rate"].items():
        lowest = rate.argmin()
        print(f"  {name}: lowest {rate[lowest]:.2f} (epoch {lowest}), {rate[-1]:.2f} at the end")
    print("It falls where gradients are large and returns to 1 once they have died away.")
    print(f"Picture: {options.output}")


if __name__ == "__main__":
    main()
