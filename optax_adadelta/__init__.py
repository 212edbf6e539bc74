"""The Adadelta optimizer (Zeiler, 2012) for JAX, as an Optax transformation."""

from importlib.metadata import version as _version

from jax import export as _export

from optax_adadelta import convert as convert
from optax_adadelta import diagnostics as diagnostics
from optax_adadelta._optimizer import adadelta as adadelta
from optax_adadelta._optimizer import scale_by_adadelta as scale_by_adadelta
from optax_adadelta._state import AdadeltaState as AdadeltaState
from optax_adadelta._stochastic_round import StochasticRoundState as _StochasticRoundState
from optax_adadelta._stochastic_round import stochastic_round as stochastic_round

__version__ = _version("optax_adadelta")

# Pickles and messages name these modules, so none of them may name a private file.
for _public in (adadelta, scale_by_adadelta, AdadeltaState, stochastic_round):
    _public.__module__ = __name__

for _state in (AdadeltaState, _StochasticRoundState):
    _export.register_namedtuple_serialization(
        _state, serialized_name=f"{__name__}.{_state.__name__}"
    )
