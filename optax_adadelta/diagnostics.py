"""What an Adadelta run is doing: its effective learning rates, a few coordinates, pictures."""

from optax_adadelta._plots import plot_curves as plot_curves
from optax_adadelta._plots import plot_samples as plot_samples
from optax_adadelta._rates import effective_learning_rate as effective_learning_rate
from optax_adadelta._rates import find_state as find_state
from optax_adadelta._samples import Sample as Sample
from optax_adadelta._samples import choose_coordinates as choose_coordinates
from optax_adadelta._samples import sample as sample
