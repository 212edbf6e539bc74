"""Train on handwritten digits, and log to TensorBoard what Adadelta does.

Every --every steps, the program writes the loss and the numbers of diagnostics.summaries: the
effective learning rate of each layer, and the shares of its weights that eps dominates, that are at
rest, and that are not finite. The digits come with scikit-learn, so nothing is downloaded.

Needs: pip install -e . scikit-learn tensorboardX
Run: python examples/log_to_tensorboard.py --folder runs
Look: pip install tensorboard, then tensorboard --logdir runs
"""

import argparse
import sys
from pathlib import Path

try:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from sklearn.datasets import load_digits
    from tensorboardX import SummaryWriter

    from optax_adadelta import adadelta, clip_by_global_norm
    from optax_adadelta.diagnostics import summaries
except ModuleNotFoundError as error:
    raise SystemExit(f"No {error.name}. Run: pip install -e . scikit-learn tensorboardX") from None

# eps falls over the run. inject_hyperparams keeps its value in the state, where summaries finds it.
EPS = optax.exponential_decay(1e-4, transition_steps=500, decay_rate=0.1, end_value=1e-6)
OPTIMIZER = optax.chain(clip_by_global_norm(1.0), optax.inject_hyperparams(adadelta)(eps=EPS))


def init(key):
    hidden, output = jax.random.split(key)
    weights = jax.nn.initializers.he_normal()
    return {
        "hidden": {"w": weights(hidden, (64, 128)), "b": jnp.zeros(128)},
        "output": {"w": weights(output, (128, 10)), "b": jnp.zeros(10)},
    }


def loss(params, x, y):
    x = jax.nn.relu(x @ params["hidden"]["w"] + params["hidden"]["b"])
    logits = x @ params["output"]["w"] + params["output"]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@jax.jit(donate_argnums=(0, 1))
def step(params, state, x, y):
    value, grads = jax.value_and_grad(loss)(params, x, y)
    updates, state = OPTIMIZER.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value


@jax.jit
def numbers(state):
    """Returns what to log of the optimizer, with a group for each layer."""
    found = summaries(state, group=lambda name: name.split("/")[0])
    _, injected = state
    return {**found, "eps": injected.hyperparams["eps"]}


def train(writer, steps, every, seed):
    images, labels = load_digits(return_X_y=True)
    images = np.float32(images / 16)
    params = init(jax.random.key(seed))
    state = OPTIMIZER.init(params)
    rng = np.random.default_rng(seed)
    for t in range(1, steps + 1):
        batch = rng.integers(0, len(labels), 32)
        params, state, value = step(params, state, images[batch], labels[batch])
        if t % every == 0:
            for name, number in jax.device_get({**numbers(state), "loss": value}).items():
                writer.add_scalar(name, number, t)
    return state


def main():
    parser = argparse.ArgumentParser(description="Log to TensorBoard what Adadelta does.")
    add = parser.add_argument
    add("--folder", type=Path, default=Path("runs"), help="for the logs (default: %(default)s)")
    add("--steps", type=int, default=2000, help="training steps (default: %(default)s)")
    add("--every", type=int, default=100, help="steps between logs (default: %(default)s)")
    add("--seed", type=int, default=0, help="of weights and batches (default: %(default)s)")
    options = parser.parse_args()
    if options.steps < 1 or options.every < 1 or options.seed < 0:
        parser.error("--steps and --every must be at least 1, and --seed at least 0")
    try:
        writer = SummaryWriter(str(options.folder))
    except OSError as error:
        raise SystemExit(f"Cannot write to --folder {options.folder}: {error.strerror}.") from None
    with writer:
        train(writer, options.steps, options.every, options.seed)
    print(f"Logged {options.steps // options.every} times.")
    print(f"Look: tensorboard --logdir {options.folder}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        sys.exit(130)
