"""Trains networks side by side, all in one compiled program."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from studies._lib.tasks import Task

EVALUATED = 4000  # Examples of the training data that its loss is measured on.
CHUNKS = 10  # Of the steps. The progress bar moves after each.


def batches(seed: int | tuple[int, ...], examples: int, size: int, steps: int) -> np.ndarray:
    """Returns minibatches, a row of indices each. No example comes twice in an epoch."""
    draw, each = np.random.default_rng(seed), examples // size
    epochs = [draw.permutation(examples)[: each * size] for _ in range(-(-steps // each))]
    return np.concatenate(epochs).reshape(-1, size)[:steps].astype(np.int32)


# Compiled once for all trainers of a task.
@partial(jax.jit, static_argnums=0)
def _initial(init, seeds):
    return jax.lax.map(lambda seed: init(jax.random.key(seed)), seeds)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _measured(loss, error, abreast, networks, train, validation, test):
    def of_each(params):
        return {
            "training loss": loss(params, *train),
            "validation error": error(params, *validation),
            "test error": error(params, *test),
        }

    return jax.lax.map(of_each, networks, batch_size=abreast)


class Trainer:
    """Trains networks on a task. They differ in their seeds and in settings of the optimizer.

    Attributes:
      task: what they learn.
      make: a function of the settings, which are traced, that returns the optimizer.
      evaluated: a function of state and parameters that returns the parameters to evaluate.
      abreast: how many networks make a step together; None, one after the other.
    """

    def __init__(
        self,
        task: Task,
        make: Callable[..., optax.GradientTransformation],
        evaluated: Callable[[Any, Any], Any] = lambda state, params: params,
        abreast: int | None = None,
    ):
        self.task, self.abreast = task, abreast
        self.make = lambda settings: optax.with_extra_args_support(make(**settings))
        self.evaluated = jax.jit(jax.vmap(evaluated))
        self.new_state = jax.jit(jax.vmap(self._new_state))
        self.advance = jax.jit(self._advance, donate_argnums=0)

    def _new_state(self, settings, params):
        # Copied, for a state may have the parameters in it, and both are donated.
        return jax.tree.map(jnp.copy, self.make(settings).init(params))

    def _advance(self, at, settings, indices, data):
        def of_each(one):
            at, settings, indices = one
            optimizer = self.make(settings)

            def step(at, batch):
                params, state = at
                loss, grads = jax.value_and_grad(self.task.loss)(params, *(a[batch] for a in data))
                updates, state = optimizer.update(grads, state, params, value=loss)
                return (optax.apply_updates(params, updates), state), loss

            return jax.lax.scan(step, at, indices)

        return jax.lax.map(of_each, (at, settings, indices), batch_size=self.abreast)

    def run(
        self, settings: dict[str, Any], seeds: Any, chunks: Iterable[np.ndarray]
    ) -> Iterator[tuple[Any, jax.Array]]:
        """Yields parameters and state, and the losses [networks, steps], after each chunk.

        Args:
          settings: an array [networks] for each setting of the optimizer.
          seeds: [networks].
          chunks: indices of examples, [networks, steps, batch].
        """
        settings = {name: jnp.asarray(v, jnp.float32) for name, v in settings.items()}
        data = jax.device_put(self.task.train)
        params = _initial(self.task.model.init, jnp.asarray(seeds))
        at = params, self.new_state(settings, params)
        for chunk in chunks:
            at, losses = self.advance(at, settings, chunk, data)
            yield at, losses

    def train(
        self, settings: dict[str, Any], seeds: Any, progress: Callable[[int], object]
    ) -> dict[str, np.ndarray]:
        """Returns the losses and errors of the networks, [networks], and their curve, [chunks].

        The curve is the mean loss of all minibatches and networks in each chunk.
        """
        task, curve = self.task, []
        order = [batches(seed, len(task.train[-1]), task.batch, task.steps) for seed in seeds]
        chunks = np.array_split(np.stack(order), min(CHUNKS, task.steps), axis=1)
        for chunk, (at, losses) in zip(chunks, self.run(settings, seeds, chunks), strict=True):  # noqa: B007
            curve.append(float(losses.mean()))
            progress(chunk.shape[1])
        return self.evaluate(at) | {"curve": np.array(curve)}

    def evaluate(self, at: Any) -> dict[str, np.ndarray]:
        """Returns the loss and the errors of the networks, [networks]."""
        task, (params, state) = self.task, at
        networks = self.evaluated(state, params)
        parts = tuple(a[:EVALUATED] for a in task.train), task.validation, task.test
        return jax.device_get(_measured(task.loss, task.error, self.abreast, networks, *parts))
