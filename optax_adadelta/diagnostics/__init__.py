"""Look into a run: its running averages, its effective learning rates, summaries, and plots."""

from optax_adadelta._state import find_state
from optax_adadelta.diagnostics._averages import Averages, averages
from optax_adadelta.diagnostics._plots import plot_curves, plot_samples
from optax_adadelta.diagnostics._rates import effective_learning_rate
from optax_adadelta.diagnostics._samples import Sample, choose_coordinates, sample
from optax_adadelta.diagnostics._summaries import summaries

__all__ = [
    "Averages",
    "Sample",
    "averages",
    "choose_coordinates",
    "effective_learning_rate",
    "find_state",
    "plot_curves",
    "plot_samples",
    "sample",
    "summaries",
]

# Pickles and error messages then name this module and not a private file.
for _name in __all__:
    globals()[_name].__module__ = __name__


def __dir__() -> list[str]:
    return __all__
