"""A whole step of each Adadelta, update and apply, of JAX, Keras and torch, to be timed."""

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
import optax

from studies._lib.cases import Shape
from studies._lib.storages import EPS, RHO
from studies._lib.timing import Contender, compiled, repeated, timed

CLIP = 1.0
BUILDS = 3  # of which the median compile times are taken
ADDED = 64_000_000  # of float32 in a large array: five times the cache of an H200


def gradients_of(shapes: list[Shape]) -> list[np.ndarray]:
    """Returns random gradients."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def step_of(rule: optax.GradientTransformation) -> Callable:
    """Returns the step as a user writes it."""

    def step(params, state, grads):
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def donated(step: Callable, params: Any, state: Any, *rest: Any, builds: int = BUILDS) -> Contender:
    """Returns the contender of a pure step that returns its first two arguments anew."""
    program, facts = compiled(step, params, state, *rest, builds=builds)
    return Contender(repeated(program, (params, state), *rest), facts)


def of_optax(
    rule: optax.GradientTransformation, gradients: list[np.ndarray], builds: int = BUILDS
) -> Contender:
    """Returns the step in one donated jit."""
    grads = [jnp.asarray(g) for g in gradients]
    params = jax.tree.map(jnp.zeros_like, grads)
    state = jax.tree.map(jnp.array, rule.init(params))  # Prodigy's has the parameters themselves.
    return donated(step_of(rule), params, state, grads, builds=builds)


def of_keras(gradients: list[np.ndarray]) -> Contender:
    """Returns the step of keras.optimizers.Adadelta on its JAX backend, donated too."""
    import keras

    optimizer = keras.optimizers.Adadelta(1.0, rho=RHO, epsilon=EPS)
    variables = [keras.Variable(np.zeros_like(g)) for g in gradients]
    optimizer.build(variables)
    params, state = ([jnp.array(v.value) for v in vs] for vs in (variables, optimizer.variables))

    def step(params, state, grads):
        return optimizer.stateless_apply(state, grads, params)[:2]

    return donated(step, params, state, [jnp.asarray(g) for g in gradients])


def of_torch(gradients: list[np.ndarray], mode: str) -> Contender:
    """Returns torch's step, as a `for-loop`, `foreach`, or `compiled`."""
    import torch

    params = [torch.zeros(g.shape) for g in gradients]
    for p, g in zip(params, gradients, strict=True):
        p.grad = torch.from_numpy(g)
    optimizer = torch.optim.Adadelta(params, rho=RHO, eps=EPS, foreach=mode == "foreach")
    step = torch.compile(optimizer.step) if mode == "compiled" else optimizer.step
    return Contender(timed(step))


def bound(moved: float) -> Contender:
    """Returns a step that moves so many bytes at the speed of adding one to an array in place."""
    run = repeated(jax.jit(lambda x: (x + 1,), donate_argnums=0), (jnp.zeros(ADDED),))
    return Contender(lambda count: run(count) * moved / (8 * ADDED))


def eager(
    rule: optax.GradientTransformation, gradients: list[np.ndarray], apply: bool
) -> Contender:
    """Returns the step of somebody who uses no jit, or its update alone."""
    grads = [jnp.asarray(g) for g in gradients]
    params = jax.tree.map(jnp.zeros_like, grads)
    step = step_of(rule) if apply else lambda p, state, g: rule.update(g, state, p)
    return Contender(repeated(step, (params, rule.init(params)), grads))
