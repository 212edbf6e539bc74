"""A whole training step of the paper's network: forward, backward, update, apply."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from studies._lib.trees import MLP, Shape
from studies._lib.contenders import EPS, RHO, Contender, compiled, optimizers, timed

BATCH = 100


def trainers(shapes: list[Shape] = MLP) -> dict[str, Contender]:
    """Returns the training steps to compare, and the gradients alone."""
    rng = np.random.default_rng(0)
    params = [(0.1 * rng.standard_normal(s)).astype(np.float32) for s in shapes]
    images = rng.standard_normal((BATCH, shapes[0][0])).astype(np.float32)
    labels = rng.integers(0, shapes[-1][-1], BATCH)
    steps = {name: of_optax(o, params, images, labels) for name, o in optimizers().items()}
    steps["jax, gradients alone"] = of_optax(None, params, images, labels)
    try:
        import torch  # noqa: F401
    except ImportError:
        return steps
    for mode in ("for-loop", "foreach", None):
        name = f"torch {mode}" if mode else "torch, gradients alone"
        steps[name] = of_torch(mode, params, images, labels)
    return steps


def of_optax(
    optimizer: optax.GradientTransformation | None,
    params: list[np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
) -> Contender:
    """Returns the training step with the optimizer, or the gradients alone."""

    def loss(params, images, labels):
        for w, b in zip(params[:-2:2], params[1:-2:2], strict=True):
            images = jax.nn.relu(images @ w + b)
        logits = images @ params[-2] + params[-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(params, state, images, labels):
        grads = jax.grad(loss)(params, images, labels)
        if optimizer is None:
            # The parameters are not changed, so the gradients go where a state would.
            return params, grads
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = [jnp.asarray(p) for p in params]
    state = jax.tree.map(jnp.zeros_like, params) if optimizer is None else optimizer.init(params)
    return compiled(step, params, state, jnp.asarray(images), jnp.asarray(labels))


def of_torch(
    mode: str | None, params: list[np.ndarray], images: np.ndarray, labels: np.ndarray
) -> Contender:
    """Returns torch's training step in that mode, or its gradients alone."""
    import torch

    layers = []
    for w, b in zip(params[::2], params[1::2], strict=True):
        layer = torch.nn.Linear(*w.shape)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(w.T))
            layer.bias.copy_(torch.from_numpy(b))
        layers += [layer, torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers[:-1])
    given, wanted = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.Adadelta(
        network.parameters(), rho=RHO, eps=EPS, foreach=mode == "foreach"
    )

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(given), wanted).backward()
        if mode is not None:
            optimizer.step()

    return timed(step)
