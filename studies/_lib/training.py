"""Trains networks side by side, all in one compiled program per task and method."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from studies._lib.methods import Method
from studies._lib.tasks import Task

ABREAST = 5  # Networks in one program: the seeds of a method, or settings that are tried.
CHUNKS = 10  # Of the steps. The progress bar moves after each.
EVALUATED = 4000  # Examples of the training data that its loss is measured on.


def batches(seed: int, examples: int, size: int, steps: int) -> np.ndarray:
    """Returns minibatches, a row of indices each. No example comes twice in an epoch."""
    draw, each = np.random.default_rng(seed), examples // size
    epochs = [draw.permutation(examples)[: each * size] for _ in range(-(-steps // each))]
    return np.concatenate(epochs).reshape(-1, size)[:steps].astype(np.int32)


class Trainer:
    """Trains networks on a task with a method. They differ in learning rate and seed."""

    def __init__(self, task: Task, method: Method):
        self.task, self.method = task, method
        self.start = jax.jit(jax.vmap(self._start))
        self.advance = jax.jit(jax.vmap(self._advance, (0, 0, None, 0)), donate_argnums=0)
        self.evaluate = jax.jit(jax.vmap(self._evaluate, (0, None)))

    def _optimizer(self, rate):
        return optax.with_extra_args_support(self.method.make(rate, self.task.steps))

    def _start(self, rate, seed):
        params = self.task.init(jax.random.key(seed))
        return params, self._optimizer(rate).init(params)

    def _advance(self, at, rate, data, indices):
        optimizer = self._optimizer(rate)

        def step(at, batch):
            params, state = at
            loss, grads = jax.value_and_grad(self.task.loss)(params, *(a[batch] for a in data))
            updates, state = optimizer.update(grads, state, params, value=loss)
            return (optax.apply_updates(params, updates), state), loss

        at, losses = jax.lax.scan(step, at, indices)
        return at, losses.mean()

    def _evaluate(self, at, parts):
        params, state = at
        params = self.method.evaluated(state, params)
        train, validation, test = parts
        return {
            "training loss": self.task.loss(params, *train),
            "validation error": self.task.error(params, *validation),
            "test error": self.task.error(params, *test),
        }

    def train(self, rates, seeds, progress: Callable[[int], object]) -> dict[str, np.ndarray]:
        """Returns the losses and errors of the networks, [networks], and their curve, [chunks].

        The curve is the mean loss of all minibatches and networks in each chunk.
        """
        task, given = self.task, len(rates)
        # Always as many, so that nothing compiles again.
        rates, seeds = (np.resize(values, ABREAST) for values in (rates, seeds))
        examples = len(task.train[-1])
        order = np.stack([batches(seed, examples, task.batch, task.steps) for seed in seeds])
        data = jax.device_put(task.train)
        rates = jnp.asarray(rates, jnp.float32)
        at, curve = self.start(rates, jnp.asarray(seeds)), []
        for chunk in np.array_split(order, min(CHUNKS, task.steps), axis=1):
            at, loss = self.advance(at, rates, data, chunk)
            curve.append(np.asarray(loss))
            progress(chunk.shape[1])
        parts = (tuple(a[:EVALUATED] for a in task.train), task.validation, task.test)
        found = {name: values[:given] for name, values in self.evaluate(at, parts).items()}
        return jax.device_get(found) | {"curve": np.mean(curve, axis=1)}
