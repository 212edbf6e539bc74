"""Adadelta (Zeiler, 2012) for JAX, as Optax transformations: the paper's, and one with momentum.

Example:
  >>> import jax.numpy as jnp, optax
  >>> from optax_adadelta import nadadelta
  >>> optimizer, params = nadadelta(), jnp.array([3.0, -2.0])
  >>> state = optimizer.init(params)
  >>> updates, state = optimizer.update(2 * params, state, params)  # 2 * params is a gradient
  >>> params = optax.apply_updates(params, updates)

Public names:
  nadadelta: the optimizer to start with: momentum, and steps in the scale of each array.
  adadelta: the optimizer of the paper.
  scale_by_nadadelta, scale_by_adadelta: without learning rate and change of sign, for chains.
  clip_by_global_norm: clips gradients as Optax's does, but faster on CPU.
  reduce_eps_on_plateau: lowers eps when a validation metric stops improving.
  stochastic_round: keeps small updates of bfloat16 and float16 parameters.
  diagnostics: running averages, effective learning rates, summaries and plots of a run.
  convert: states from and to PyTorch, Keras and Optax, in another storage, for other parameters.
  AdadeltaState, PlateauState, StochasticRoundState: the states.
"""

from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version

from optax_adadelta import convert, diagnostics
from optax_adadelta._clip import clip_by_global_norm
from optax_adadelta._nadadelta import nadadelta, scale_by_nadadelta
from optax_adadelta._optimizer import adadelta, scale_by_adadelta
from optax_adadelta._plateau import PlateauState, reduce_eps_on_plateau
from optax_adadelta._state import AdadeltaState
from optax_adadelta._stochastic_round import StochasticRoundState, stochastic_round

__all__ = [
    "AdadeltaState",
    "PlateauState",
    "StochasticRoundState",
    "adadelta",
    "clip_by_global_norm",
    "convert",
    "diagnostics",
    "nadadelta",
    "reduce_eps_on_plateau",
    "scale_by_adadelta",
    "scale_by_nadadelta",
    "stochastic_round",
]

try:
    __version__ = _version("optax_adadelta")
except _PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

# Pickles and error messages then name this module and not a private file.
for _public in (
    AdadeltaState,
    PlateauState,
    StochasticRoundState,
    adadelta,
    clip_by_global_norm,
    nadadelta,
    reduce_eps_on_plateau,
    scale_by_adadelta,
    scale_by_nadadelta,
    stochastic_round,
):
    _public.__module__ = __name__


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
