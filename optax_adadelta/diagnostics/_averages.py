"""The averages of a run, read from its state in any storage."""

from typing import Any

import jax
import jax.numpy as jnp

from optax_adadelta._averages import read_averages
from optax_adadelta._state import find_state
from optax_adadelta._storage import Averages


def averages(state: Any) -> Averages:
    """Returns E[g^2] and E[dx^2] as floats, whether they are quantized or not.

    Args:
      state: an :class:`.AdadeltaState`, or the state of any optimizer that contains exactly one,
        however deep: a chain, a mask, a wrapper.

    Returns:
      Two trees ``e_g`` and ``e_x`` with the structure of the parameters and arrays of their
      shapes: float32 if they are quantized, otherwise copies of the arrays of the state. So a step
      may donate the state.

    Raises:
      TypeError: the arrays have dtypes that no storage has.
      ValueError: there is no :class:`.AdadeltaState` in ``state``, or there are several.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_adadelta import adadelta
      >>> from optax_adadelta.diagnostics import averages
      >>> optimizer = adadelta(state_bits=8)
      >>> params = {"w": jnp.ones(3)}
      >>> _, state = optimizer.update({"w": jnp.full(3, 2.0)}, optimizer.init(params))
      >>> print(state.e_g["w"].dtype, f"{averages(state).e_g['w'].mean():.1f}")
      uint8 0.2
    """
    found = find_state(state)
    stored = {id(leaf) for leaf in jax.tree.leaves(found)}
    return jax.tree.map(lambda x: jnp.copy(x) if id(x) in stored else x, read_averages(found))
