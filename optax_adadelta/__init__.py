"""The Adadelta optimizer (Zeiler, 2012) for JAX, as an Optax transformation."""

from importlib.metadata import version as _version

from optax_adadelta import diagnostics as diagnostics
from optax_adadelta._rounding import stochastic_round as stochastic_round
from optax_adadelta._transform import AdadeltaState as AdadeltaState
from optax_adadelta._transform import adadelta as adadelta
from optax_adadelta._transform import scale_by_adadelta as scale_by_adadelta

__version__ = _version("optax_adadelta")
