"""The effective learning rates of a run, read from its state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_adadelta._averages import read_averages, scale_of
from optax_adadelta._equation import Epsilons, rms_ratio
from optax_adadelta._hyperparameters import Value, at_step, number_or_schedule
from optax_adadelta._scale import epsilons
from optax_adadelta._state import AdadeltaState, find_state


def effective_learning_rate(
    state: Any, eps: optax.ScalarOrSchedule, learning_rate: optax.ScalarOrSchedule = 1.0
) -> optax.Updates:
    r"""Returns the factor that multiplies each gradient, the step size of the paper's Figure 2.

    .. math::
        \alpha \frac{\sqrt{E[\Delta x^2]_t + \epsilon}}{\sqrt{E[g^2]_t + \epsilon}}

    It starts at :math:`\alpha` and returns there when the gradients die away, because
    :math:`\epsilon` then dominates both roots. Schedules have their values of the step that made
    the state; before the first step, those of the first.

    Args:
      state: an :class:`.AdadeltaState`, or the state of any optimizer that contains exactly one,
        however deep: a chain, a mask, a wrapper.
      eps: the optimizer's :math:`\epsilon`, a positive scalar or the schedule itself. For
        :func:`.nadadelta`, the share: in the formula, :math:`\epsilon r^2` then stands above and
        :math:`k / r^2` below.
      learning_rate: the optimizer's :math:`\alpha`, a scalar of at least 0 or the schedule itself.

    Returns:
      A tree with the structure of the parameters and real arrays of their shapes, float32 or
      float64 like the averages.

    Raises:
      TypeError: ``eps`` or ``learning_rate`` is not a real number or a schedule.
      ValueError: there is no :class:`.AdadeltaState` in ``state``, or there are several; or
        ``eps`` or ``learning_rate`` is out of its range.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optax_adadelta import adadelta
      >>> from optax_adadelta.diagnostics import effective_learning_rate
      >>> optimizer = optax.chain(optax.clip_by_global_norm(1.0), adadelta())
      >>> params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
      >>> state = optimizer.init(params)
      >>> grads = {"w": jnp.full((2, 3), 0.1), "b": jnp.full(3, 0.001)}
      >>> _, state = optimizer.update(grads, state, params)
      >>> rates = effective_learning_rate(state, eps=1e-6)
      >>> print({name: f"{rate.mean():.3f}" for name, rate in rates.items()})
      {'b': '0.999', 'w': '0.063'}

    References:
      Zeiler, `ADADELTA: An Adaptive Learning Rate Method
      <https://arxiv.org/abs/1212.5701>`_, 2012, Section 4.3.
    """
    found = find_state(state)
    eps, rate = settings_at(last_step(found), eps, learning_rate)
    e_g, e_x = read_averages(found)
    structure = jax.tree.structure(e_g)
    leaves = zip(jax.tree.leaves(e_g), jax.tree.leaves(e_x), strict=True)
    return structure.unflatten(
        effective_rates(*leaf, epsilons_at(i, eps, found, leaf[0].dtype), rate)
        for i, leaf in enumerate(leaves)
    )


def last_step(state: AdadeltaState) -> jax.Array:
    """Returns the count that schedules got in the last step; before the first, that of the first.

    All diagnostics evaluate schedules there.
    """
    (count,) = jax.tree.leaves(state.count)
    return jnp.maximum(count, 1) - 1


def settings_at(
    count: jax.typing.ArrayLike,
    eps: optax.ScalarOrSchedule,
    learning_rate: optax.ScalarOrSchedule,
) -> tuple[Value, Value]:
    """Returns the checked eps and learning rate of the step at this count."""
    return (
        at_step("eps", number_or_schedule("eps", eps), count),
        at_step("learning_rate", number_or_schedule("learning_rate", learning_rate), count),
    )


def epsilons_at(i: int, eps: Value, state: AdadeltaState, dtype: np.dtype) -> Epsilons:
    """Returns both epsilons of the array that is number `i` in a state."""
    scale = scale_of(state)
    return epsilons(jnp.asarray(eps, dtype), None if scale is None else scale[i]).normal()


def effective_rates(
    e_g: jax.Array, e_x: jax.Array, eps: Epsilons, learning_rate: Value
) -> jax.Array:
    """Returns the effective learning rates of a leaf, from its averages."""
    return jnp.asarray(learning_rate, e_g.dtype) * rms_ratio(e_g, e_x, eps)
