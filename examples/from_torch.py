"""Move a run from PyTorch to JAX halfway, with the optimizer's state, and back again.

A small convolutional and dense network learns scikit-learn's 1797 digits of 8 x 8 pixels. PyTorch
trains it first. Then the weights and the state of Adadelta move to JAX, and both go on with the
same batches. Last, the run in JAX moves to a new model in PyTorch, and both go on once more. The
script prints how far their weights are apart: by rounding errors only.

Needs: pip install -e ".[examples]" torch
"""

import argparse
import sys

try:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    import torch
    from sklearn.datasets import load_digits

    from optax_adadelta import adadelta
    from optax_adadelta.convert import from_torch, hyperparameters_from_torch, to_torch
except ModuleNotFoundError as error:
    raise SystemExit(f'No {error.name}. Run: pip install -e ".[examples]" torch') from None

BATCH = 32
SMOKE_STEPS = 10


def batches(seed: int):
    """Yields (images, labels), without an end."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).reshape(-1, 1, 8, 8)
    rng = np.random.default_rng(seed)
    while True:
        chosen = rng.choice(len(labels), BATCH, replace=False)
        yield images[chosen], labels[chosen]


def torch_model(seed: int) -> torch.nn.Module:
    """Returns the network in PyTorch."""
    torch.manual_seed(seed)
    layers = torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10)
    return torch.nn.Sequential(*layers).double()


def torch_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, x, y) -> None:
    """Makes one training step in PyTorch."""
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y))
    loss.backward()
    optimizer.step()


def to_params(arrays: dict) -> dict:
    """Converts arrays with the names of PyTorch: the weights here, the averages in `from_torch`.

    PyTorch puts the channels first, JAX puts them last. So the dense layer, which follows a
    convolution, has its inputs in another order.
    """
    dense = arrays["3.weight"].reshape(10, 8, 6, 6).transpose(2, 3, 1, 0).reshape(288, 10)
    return {
        "conv": {
            "w": jnp.array(arrays["0.weight"].transpose(2, 3, 1, 0)),
            "b": jnp.array(arrays["0.bias"]),
        },
        "dense": {"w": jnp.array(dense), "b": jnp.array(arrays["3.bias"])},
    }


def to_tensors(params: dict) -> dict:
    """Does the opposite of `to_params`."""
    conv, dense = params["conv"], params["dense"]
    arrays = {
        "0.weight": conv["w"].transpose(3, 2, 0, 1),
        "0.bias": conv["b"],
        "3.weight": dense["w"].reshape(6, 6, 8, 10).transpose(3, 2, 0, 1).reshape(10, 288),
        "3.bias": dense["b"],
    }
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def params_of(model: torch.nn.Module) -> dict:
    """Returns the weights of the network in PyTorch, for JAX."""
    return to_params({name: p.detach().numpy() for name, p in model.named_parameters()})


def loss(params: dict, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the mean cross entropy of the network in JAX."""
    x = x.transpose(0, 2, 3, 1)
    x = jax.lax.conv_general_dilated(
        x, params["conv"]["w"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(x + params["conv"]["b"]).reshape(len(x), -1)
    logits = x @ params["dense"]["w"] + params["dense"]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def jax_step(optimizer: optax.GradientTransformation):
    """Returns a function that makes one training step in JAX."""

    @jax.jit
    def step(params, state, x, y):
        grads = jax.grad(loss)(params, x, y)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def difference(params: dict, model: torch.nn.Module) -> float:
    """Returns the largest difference of a weight in JAX and in PyTorch."""
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(params_of(model)), strict=True)
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs)


def main() -> None:
    """Reads the options, trains, and prints the differences."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    text = "training steps before, between and after the moves (default: %(default)s)"
    add("--steps", type=int, default=100, help=text)
    text = "sets the initial weights and the batches (default: %(default)s)"
    add("--seed", type=int, default=0, help=text)
    text = f"quick check: at most {SMOKE_STEPS} steps each (default: off)"
    add("--smoke", action="store_true", help=text)
    options = parser.parse_args()
    if options.steps < 1 or options.seed < 0:
        parser.error("--steps must be at least 1 and --seed at least 0")
    steps = min(options.steps, SMOKE_STEPS) if options.smoke else options.steps
    # In float64, rounding hides no mistake.
    jax.config.update("jax_enable_x64", True)
    data = batches(options.seed)

    model = torch_model(options.seed)
    theirs = torch.optim.Adadelta(model.parameters(), rho=0.95, weight_decay=1e-4)
    for _ in range(steps):
        torch_step(model, theirs, *next(data))
    x, y = next(data)
    print(f"Trained in PyTorch: {steps} steps, loss {loss(params_of(model), x, y):.4f}.")

    # To JAX.
    saved = theirs.state_dict()
    settings = hyperparameters_from_torch(saved)
    params = params_of(model)
    state = from_torch(saved, to_params, names=model.named_parameters())
    step = jax_step(adadelta(**settings))
    largest = 0.0
    for _ in range(steps):
        x, y = next(data)
        torch_step(model, theirs, x, y)
        params, state = step(params, state, x, y)
        largest = max(largest, difference(params, model))
    print(f"On in both: {steps} steps, largest difference of a weight {largest:.1e}.")

    # Back to PyTorch, into a new model with a new optimizer.
    model = torch_model(options.seed + 1)
    model.load_state_dict(to_tensors(params))
    theirs = torch.optim.Adadelta(model.parameters())
    saved = to_torch(state, to_tensors, names=model.named_parameters(), **settings)
    theirs.load_state_dict(saved)
    largest = 0.0
    for _ in range(steps):
        x, y = next(data)
        torch_step(model, theirs, x, y)
        params, state = step(params, state, x, y)
        largest = max(largest, difference(params, model))
    print(f"Back in PyTorch: {steps} steps, largest difference of a weight {largest:.1e}.")
    print(f"Steps counted: {int(state.count)}. Loss: {loss(params, x, y):.4f}.")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        sys.exit(130)
