"""A whole step of each Adadelta, update and apply, as a function that makes it and waits."""

import itertools
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_adadelta import adadelta

RHO, EPS = 0.95, 1e-6
CLIP = 1.0
BUILDS = 3  # of which the median stage times are taken


class Contender(NamedTuple):
    """A step to be timed, and what is known of its program.

    Attributes:
      once: makes one step; returns the seconds until it was begun, and until it was done.
      facts: numbers of the compiled program, if there is one.
    """

    once: Callable[[], tuple[float, float]]
    facts: dict[str, float]


def optimizers(clipped: bool = False) -> dict[str, optax.GradientTransformation]:
    """Returns the Optax optimizers to compare."""
    named = {
        "optax_adadelta": adadelta(rho=RHO, eps=EPS),
        "optax": optax.adadelta(learning_rate=1.0, rho=RHO, eps=EPS),
    }
    if clipped:
        return {n: optax.chain(optax.clip_by_global_norm(CLIP), o) for n, o in named.items()}
    return named


def of_optax(optimizer: optax.GradientTransformation, gradients: list[np.ndarray]) -> Contender:
    """Returns the step as a user writes it, in one donated jit."""
    grads = [jnp.asarray(g) for g in gradients]

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return compiled(step, jax.tree.map(jnp.zeros_like, grads), optimizer.init(grads), grads)


def of_keras(gradients: list[np.ndarray], clipped: bool = False) -> Contender:
    """Returns the step of keras.optimizers.Adadelta on its JAX backend, donated too."""
    import keras

    optimizer = keras.optimizers.Adadelta(
        learning_rate=1.0, rho=RHO, epsilon=EPS, global_clipnorm=CLIP if clipped else None
    )
    variables = [keras.Variable(np.zeros_like(g)) for g in gradients]
    optimizer.build(variables)
    state = [v.value for v in optimizer.variables]

    def step(params, state, grads):
        return optimizer.stateless_apply(state, grads, params)

    params = [jnp.array(v.value) for v in variables]
    return compiled(step, params, state, [jnp.asarray(g) for g in gradients])


def of_torch(gradients: list[np.ndarray], mode: str, clipped: bool = False) -> Contender:
    """Returns torch's step, as a `for-loop`, `foreach`, or `compiled`."""
    import torch

    params = [torch.zeros(g.shape) for g in gradients]
    for p, g in zip(params, gradients, strict=True):
        p.grad = torch.from_numpy(g).clone() if clipped else torch.from_numpy(g)
    optimizer = torch.optim.Adadelta(params, rho=RHO, eps=EPS, foreach=mode == "foreach")

    def step():
        if clipped:
            torch.nn.utils.clip_grad_norm_(params, CLIP)
        optimizer.step()

    return timed(torch.compile(step) if mode == "compiled" else step)


def eager(optimizer: optax.GradientTransformation, gradients: list[np.ndarray]) -> Contender:
    """Returns the step of somebody who uses no jit."""
    grads = [jnp.asarray(g) for g in gradients]
    params = jax.tree.map(jnp.zeros_like, grads)
    carry = [params, optimizer.init(params)]

    def step():
        updates, carry[1] = optimizer.update(grads, carry[1], carry[0])
        carry[0] = optax.apply_updates(carry[0], updates)
        jax.block_until_ready(carry)

    return timed(step)


def eager_update(optimizer: optax.GradientTransformation, gradients: list[np.ndarray]) -> Contender:
    """Returns the update alone, without jit."""
    grads = [jnp.asarray(g) for g in gradients]
    params = jax.tree.map(jnp.zeros_like, grads)
    carry = [params, optimizer.init(params)]

    def step():
        carry[:] = optimizer.update(grads, carry[1], params)
        jax.block_until_ready(carry)

    return timed(step)


def timed(step: Callable[[], Any]) -> Contender:
    """Returns the contender of a function that returns when the step is done."""

    def once() -> tuple[float, float]:
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
        return seconds, seconds

    return Contender(once, {})


def compiled(step: Callable, params: Any, state: Any, *rest: Any) -> Contender:
    """Returns the contender of a pure step, its first two arguments donated."""
    size = sum(p.size for p in jax.tree.leaves(params))
    run = jax.jit(step, donate_argnums=(0, 1))
    stages = []
    for _ in range(BUILDS):
        jax.clear_caches()
        clock = [time.perf_counter()]
        traced = run.trace(params, state, *rest)
        clock.append(time.perf_counter())
        lowered = traced.lower()
        clock.append(time.perf_counter())
        program = lowered.compile()
        clock.append(time.perf_counter())
        stages.append([after - before for before, after in itertools.pairwise(clock)])
    entry = program.as_text().rpartition("\nENTRY ")[2]
    memory, cost = program.memory_analysis(), program.cost_analysis()
    facts = {
        **dict(
            zip(("trace", "lower", "compile"), map(median, zip(*stages, strict=True)), strict=True)
        ),
        "bytes per parameter": cost["bytes accessed"] / size,
        "scratch bytes per parameter": memory.temp_size_in_bytes / size,
        "kernels": entry.count(" fusion("),
        "copies": entry.count(" copy("),
    }
    carry = [params, state]

    def once() -> tuple[float, float]:
        start = time.perf_counter()
        carry[:] = run(*carry, *rest)[:2]
        begun = time.perf_counter() - start
        jax.block_until_ready(carry)
        return begun, time.perf_counter() - start

    return Contender(once, facts)
