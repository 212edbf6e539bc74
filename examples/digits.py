"""Learn handwritten digits with Adadelta, and watch its step sizes on the way.

A network of three layers in plain JAX learns to read scikit-learn's 1797 digits of 8 x 8 pixels.
Nothing is downloaded. No learning rate is set anywhere: Adadelta multiplies the gradient of each
parameter by RMS[dx] / RMS[g], its effective learning rate. The picture shows the loss, the accuracy
and the effective learning rate, averaged over the weights of each layer.

Needs: pip install -e ".[examples]"
"""

import argparse
import math
import sys
import time
from functools import partial
from pathlib import Path

try:
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
except ModuleNotFoundError as error:
    raise SystemExit(f'No {error.name}. Run: pip install -e ".[examples]"') from None

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
    """Makes one training step, in the memory of the old parameters and state."""
    grads = jax.grad(loss)(params, x, y)
    updates, state = OPTIMIZER.update(grads, state, params)
    return optax.apply_updates(params, updates), state


@jax.jit
def measure(params: dict, state: optax.OptState, train, test) -> dict:
    """Returns the values that the picture shows."""
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
    # Compiles before the bar starts its clock, so that its first estimate is right.
    compiled = step.lower(params, state, x[:BATCH], y[:BATCH]).compile()
    bar = trange(epochs, desc="Training", unit="epoch")
    for _ in bar:
        for batch in shuffle.permutation(len(y))[: steps * BATCH].reshape(steps, BATCH):
            params, state = compiled(params, state, x[batch], y[batch])
        history.append(measure(params, state, train, test))
        bar.set_postfix(test_accuracy=f"{history[-1]['accuracy']['test']:.1%}")
    return jax.tree.map(lambda *values: np.array(values), *history)


def draw(history: dict, output: Path) -> None:
    """Writes the picture."""
    figure = Figure(figsize=(9, 3.2), dpi=130, layout="constrained")
    losses, accuracies, rates = figure.subplots(1, 3)
    for name, color, line in (("train", "#0072B2", "-"), ("test", "#D55E00", "--")):
        losses.semilogy(history["loss"][name], line, color=color, label=name)
        percent = 100 * history["accuracy"][name]
        accuracies.plot(percent, line, color=color, label=f"{name}, {percent[-1]:.1f}")
    styles = (("#0072B2", "-"), ("#009E73", "--"), ("#D55E00", "-."))
    for (name, rate), (color, line) in zip(history["rate"].items(), styles, strict=True):
        rates.plot(rate, line, color=color, label=name)
    losses.set(title="Loss", ylabel="mean cross entropy (nats)")
    accuracies.set(title="Accuracy", ylabel="digits read correctly (%)", ylim=(0, 103))
    rates.set(title="Effective learning rate", ylabel="mean of RMS[dx] / RMS[g]", ylim=(0, 1.05))
    for axes in (losses, accuracies, rates):
        axes.set_xlabel("epochs")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    accuracies.legend(frameon=False, loc="lower right", title="after the last epoch")
    figure.savefig(output)


def check_writable(path: Path) -> None:
    """Makes the file's folder, and exits if the file cannot be written."""
    new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise SystemExit(f"Cannot write --output {path}: {error.strerror}.") from None
    if new:
        path.unlink()


def main() -> None:
    """Reads the options, trains, draws, and prints the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    text = "passes over the training digits (default: %(default)s)"
    add("--epochs", type=int, default=40, help=text)
    text = "sets the split, the initial weights and the batch order (default: %(default)s)"
    add("--seed", type=int, default=0, help=text)
    text = "where to write the picture (default: %(default)s)"
    add("--output", type=Path, default=Path("digits.png"), help=text)
    text = f"quick check: at most {SMOKE_EPOCHS} epochs (default: off)"
    add("--smoke", action="store_true", help=text)
    options = parser.parse_args()
    if options.epochs < 1 or options.seed < 0:
        parser.error("--epochs must be at least 1 and --seed at least 0")
    if options.output.suffix not in (".png", ".pdf", ".svg"):
        parser.error("--output must end in .png, .pdf or .svg")
    check_writable(options.output)
    epochs = min(options.epochs, SMOKE_EPOCHS) if options.smoke else options.epochs

    train, test = load(options.seed)
    start = time.perf_counter()
    history = fit(train, test, epochs, options.seed)
    seconds = time.perf_counter() - start
    draw(history, options.output)

    print(
        f"Test accuracy: {history['accuracy']['test'][-1]:.2%} of {len(test[1])} digits not used"
        f" for training, after {epochs} epochs."
    )
    print(f"Training time: {seconds:.1f} s, compilation included.")
    print("Effective learning rate, mean over the weights of a layer (1 before training):")
    for name, rate in history["rate"].items():
        lowest = rate.argmin()
        print(f"  {name}: lowest {rate[lowest]:.2f} (epoch {lowest}), {rate[-1]:.2f} at the end")
    print("It falls while gradients are large and returns to 1 when they are small.")
    print(f"Picture: {options.output}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        sys.exit(130)
