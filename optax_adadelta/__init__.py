"""The Adadelta optimizer (Zeiler, 2012) for JAX, as an Optax transformation."""

from importlib.metadata import version as _version

from optax_adadelta import convert as convert
from optax_adadelta import diagnostics as diagnostics
from optax_adadelta._optimizer import adadelta as adadelta
from optax_adadelta._optimizer import scale_by_adadelta as scale_by_adadelta
from optax_adadelta._state import AdadeltaState as AdadeltaState
from optax_adadelta._stochastic_round import StochasticRoundState as StochasticRoundState
from optax_adadelta._stochastic_round import stochastic_round as stochastic_round

__version__ = _version("optax_adadelta")

# Pickles and messages then name this module, and no private file.
for _public in (
    adadelta,
    scale_by_adadelta,
    AdadeltaState,
    stochastic_round,
    StochasticRoundState,
):
    _public.__module__ = __name__
