"""Learn handwritten digits with adadelta and nadadelta, and watch their step sizes on the way.

A network of three layers in plain JAX learns to read scikit-learn's 1797 digits of 8 x 8 pixels,
once with each optimizer. Nothing is downloaded. No learning rate is tuned: both multiply the
gradient of each parameter by RMS[dx] / RMS[g], its effective learning rate. The picture shows the
loss, the accuracy and the effective learning rate, averaged over the weights of each layer.

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

    from optax_adadelta import adadelta, nadadelta
    from optax_adadelta.diagnostics import effective_learning_rate
except ModuleNotFoundError as error:
    raise SystemExit(f'No {error.name}. Run: pip install -e ".[examples]"') from None

LAYERS = {"hidden 1": (64, 256), "hidden 2": (256, 128), "output": (128, 10)}
BATCH = 32
SMOKE_EPOCHS = 2
OPTIMIZERS = ("adadelta", "nadadelta")


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


def make(name: str, steps: int) -> tuple[optax.GradientTransformation, float]:
    """Returns an optimizer with the recommended settings, and its eps."""
    if name == "adadelta":
        return adadelta(), 1e-6
    half = steps // 2
    return nadadelta(optax.linear_schedule(1.0, 0.0, half, transition_begin=half)), 1e-5


def fit(name: str, train, test, epochs: int, seed: int) -> dict:
    """Trains, and returns the measurements before the first epoch and after each."""
    x, y = train
    steps = len(y) // BATCH
    optimizer, eps = make(name, epochs * steps)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, x, y):
        grads = jax.grad(loss)(params, x, y)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def measure(params, state):
        rates = effective_learning_rate(state, eps)
        return {
            "loss": loss(params, *train),
            "accuracy": jnp.mean(logits(params, test[0]).argmax(axis=-1) == test[1]),
            "rate": {layer: rates[layer]["w"].mean() for layer in LAYERS},
        }

    params = init(jax.random.key(seed))
    state = optimizer.init(params)
    shuffle = np.random.default_rng(seed)
    history = [measure(params, state)]
    # Compiles before the bar starts its clock, so that its first estimate is right.
    compiled = step.lower(params, state, x[:BATCH], y[:BATCH]).compile()
    bar = trange(epochs, desc=f"Training {name}", unit="epoch")
    for _ in bar:
        for batch in shuffle.permutation(len(y))[: steps * BATCH].reshape(steps, BATCH):
            params, state = compiled(params, state, x[batch], y[batch])
        history.append(measure(params, state))
        bar.set_postfix(test_accuracy=f"{history[-1]['accuracy']:.1%}")
    return jax.tree.map(lambda *values: np.array(values), *history)


def draw(histories: dict, output: Path) -> None:
    """Writes the picture."""
    figure = Figure(figsize=(9, 3.2), dpi=130, layout="constrained")
    losses, accuracies, rates = figure.subplots(1, 3)
    for name, color, line in (("adadelta", "#D55E00", "--"), ("nadadelta", "#0072B2", "-")):
        history = histories[name]
        losses.semilogy(history["loss"], line, color=color, label=name)
        percent = 100 * history["accuracy"]
        accuracies.plot(percent, line, color=color, label=f"{name}, {percent[-1]:.1f}")
        for layer, shade in zip(LAYERS, (1.0, 0.65, 0.35), strict=True):
            label = f"{name}, {layer}"
            rates.semilogy(history["rate"][layer], line, color=color, alpha=shade, label=label)
    losses.set(title="Loss on the training digits", ylabel="mean cross entropy (nats)")
    accuracies.set(title="Accuracy on the test digits", ylabel="read correctly (%)", ylim=(80, 100))
    rates.set(title="Effective learning rate", ylabel="mean of RMS[dx] / RMS[g]")
    for axes in (losses, accuracies, rates):
        axes.set_xlabel("epochs")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    accuracies.legend(frameon=False, loc="lower right", title="after the last epoch")
    rates.legend(frameon=False, fontsize="x-small")
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
    histories = {name: fit(name, train, test, epochs, options.seed) for name in OPTIMIZERS}
    seconds = time.perf_counter() - start
    draw(histories, options.output)

    print(f"{len(test[1])} digits were not used for training. After {epochs} epochs:")
    for name, history in histories.items():
        print(
            f"  {name:9}  test accuracy {history['accuracy'][-1]:.2%}, loss"
            f" {history['loss'][0]:.2f} before, {history['loss'][-1]:.1e} after"
        )
    print(f"Training time: {seconds:.1f} s, compilation included.")
    print("Effective learning rate, mean over the weights of a layer:")
    for name, history in histories.items():
        for layer, rate in history["rate"].items():
            lowest, end = f"{rate.min():.3g} (epoch {rate.argmin()})", f"{rate[-1]:.3g}"
            print(f"  {name:9}  {layer}: lowest {lowest}, {end} at the end")
    print("It is small while gradients are large. For adadelta, it starts at 1 and returns there.")
    print(f"Picture: {options.output}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        sys.exit(130)
