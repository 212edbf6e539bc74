"""Convert states: from and to other libraries, to another storage, or to other parameters.

Public names:
  from_torch, to_torch: the state from or for ``torch.optim.Adadelta``.
  from_keras, to_keras: the state from or for ``keras.optimizers.Adadelta``.
  from_optax, to_optax: the state from or for ``optax.adadelta``.
  hyperparameters_from_torch, hyperparameters_from_keras: the settings to continue with.
  with_state_bits: the state in another storage: full precision, 16 or 8 bits.
  carry_over: the state for another set of parameters, as when layers are unfrozen.
"""

from optax_adadelta.convert._carry_over import carry_over
from optax_adadelta.convert._keras import from_keras, hyperparameters_from_keras, to_keras
from optax_adadelta.convert._optax import from_optax, to_optax
from optax_adadelta.convert._storage_bits import with_state_bits
from optax_adadelta.convert._torch import from_torch, hyperparameters_from_torch, to_torch

__all__ = [
    "carry_over",
    "from_keras",
    "from_optax",
    "from_torch",
    "hyperparameters_from_keras",
    "hyperparameters_from_torch",
    "to_keras",
    "to_optax",
    "to_torch",
    "with_state_bits",
]

# Pickles and error messages then name this module and not a private file.
for _name in __all__:
    globals()[_name].__module__ = __name__


def __dir__() -> list[str]:
    return __all__
