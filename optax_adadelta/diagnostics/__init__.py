"""What an Adadelta run is doing: its averages, its effective learning rates, pictures of both."""

from optax_adadelta.diagnostics._averages import Averages as Averages
from optax_adadelta.diagnostics._averages import averages as averages
from optax_adadelta.diagnostics._averages import find_state as find_state
from optax_adadelta.diagnostics._plots import plot_curves as plot_curves
from optax_adadelta.diagnostics._plots import plot_samples as plot_samples
from optax_adadelta.diagnostics._rates import effective_learning_rate as effective_learning_rate
from optax_adadelta.diagnostics._samples import Sample as Sample
from optax_adadelta.diagnostics._samples import choose_coordinates as choose_coordinates
from optax_adadelta.diagnostics._samples import sample as sample

for _public in (
    Averages,
    averages,
    find_state,
    plot_curves,
    plot_samples,
    effective_learning_rate,
    Sample,
    choose_coordinates,
    sample,
):
    _public.__module__ = __name__
