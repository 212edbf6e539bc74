"""The effective learning rates of a run, read from its state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_adadelta._equation import rms_ratio
from optax_adadelta._hyperparameters import number
from optax_adadelta._storage import decoded, is_low
from optax_adadelta._transform import AdadeltaState


def effective_learning_rate(
    state: Any, eps: float | jax.Array = 1e-6, learning_rate: float | jax.Array = 1.0
) -> optax.Updates:
    r"""Returns what multiplies each coordinate's gradient, the step size of the paper's Figure 2.

    .. math::
        \alpha \frac{\sqrt{E[\Delta x^2]_t + \epsilon}}{\sqrt{E[g^2]_t + \epsilon}}

    It starts at :math:`\alpha` and returns there when the gradients die away, for then
    :math:`\epsilon` dominates both roots.

    Args:
      state: an :class:`AdadeltaState`, or the state of any optimizer that has exactly one
        inside, however deep: a chain, a mask, a wrapper.
      eps: the optimizer's :math:`\epsilon`, which its state does not hold; a positive scalar.
      learning_rate: the optimizer's :math:`\alpha`; a scalar, not negative.

    Returns:
      A tree with the structure of the parameters and real arrays of their shapes, float32 or
      float64 as the state is.

    Raises:
      ValueError: there is no :class:`AdadeltaState` in ``state``, or there are several; or
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
      >>> rates = effective_learning_rate(state)
      >>> print({name: f"{rate.mean():.3f}" for name, rate in rates.items()})
      {'b': '0.999', 'w': '0.063'}

    References:
      Zeiler, `ADADELTA: An Adaptive Learning Rate Method
      <https://arxiv.org/abs/1212.5701>`_, 2012, Section 4.3.
    """
    rate = rate_of(eps, learning_rate)
    found = find_state(state)
    return jax.tree.map(rate, found.e_g, found.e_x, is_leaf=is_low)


def find_state(state: Any) -> AdadeltaState:
    """Returns the one :class:`AdadeltaState` in the state of any optimizer.

    Args:
      state: an optimizer's state.

    Returns:
      The :class:`AdadeltaState` in it.

    Raises:
      ValueError: there is none, or there are several.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optax_adadelta import adadelta
      >>> from optax_adadelta.diagnostics import find_state
      >>> optimizer = optax.MultiSteps(adadelta(), every_k_schedule=4)
      >>> print(find_state(optimizer.init(jnp.ones(2))).count)
      0
    """
    found = [
        (path, part)
        for path, part in jax.tree.leaves_with_path(state, is_leaf=_is_adadelta)
        if _is_adadelta(part)
    ]
    if not found:
        raise ValueError(f"There is no AdadeltaState in {jax.tree.structure(state)}.")
    if len(found) > 1:
        paths = ", ".join(f"state{jax.tree_util.keystr(path)}" for path, _ in found)
        raise ValueError(f"There are {len(found)} AdadeltaStates, at {paths}; pass one of them.")
    return found[0][1]


def rate_of(eps: float | jax.Array, learning_rate: float | jax.Array) -> Callable[..., jax.Array]:
    """Returns the function of one leaf's averages."""
    given = number("learning_rate", learning_rate), number("eps", eps)

    def rate(e_g, e_x):
        dtype = jnp.float32 if is_low(e_g) else e_g.dtype
        scale, floor = (jnp.asarray(value, dtype) for value in given)
        return scale * rms_ratio(*decoded(e_g, e_x, floor), floor)

    return rate


def _is_adadelta(part: Any) -> bool:
    return isinstance(part, AdadeltaState)
