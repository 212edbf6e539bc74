"""The methods that take a learning rate, as their papers have them, by their names."""

from functools import partial

import optax

METHODS = {
    "SGD": optax.sgd,
    "Momentum": partial(optax.sgd, momentum=0.9),
    # Duchi et al. start from zero, Optax from 0.1.
    "Adagrad": partial(optax.adagrad, initial_accumulator_value=0.0),
    "RMSProp": optax.rmsprop,
    "Adam": optax.adam,
}
