"""The Adadelta optimizer (Zeiler, 2012) for JAX, as an Optax transformation."""

from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version

from optax_adadelta import convert, diagnostics
from optax_adadelta._clip import clip_by_global_norm
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
    "reduce_eps_on_plateau",
    "scale_by_adadelta",
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
    reduce_eps_on_plateau,
    scale_by_adadelta,
    stochastic_round,
):
    _public.__module__ = __name__


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
