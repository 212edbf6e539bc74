"""Look into a run: its running averages, its effective learning rates, summaries, and plots.

Public names:
  effective_learning_rate: what multiplies each gradient.
  summaries: a dictionary of scalars that shows how a run is doing, for any logger.
  averages: E[g^2] and E[dx^2] as floats, from any storage.
  find_state: the ``AdadeltaState`` in the state of a chain or a wrapper.
  choose_coordinates, sample: rates and updates of a few coordinates, to follow over a run.
  plot_samples, plot_curves: draw samples, and curves of several runs.
  Averages, Sample: the named tuples that ``averages`` and ``sample`` return.
"""

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
