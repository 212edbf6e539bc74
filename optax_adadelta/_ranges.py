"""The range that each number must be in, and what to say if it is not."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np


class Range(NamedTuple):
    """The values that are allowed, in code and in words, and a remedy for the others."""

    holds: Callable[[float], bool]
    words: str
    remedy: str


_LARGEST = float(np.finfo(np.float32).max)

SCHEDULABLE = ("learning_rate", "rho", "eps", "weight_decay", "momentum")

RANGES = {
    "learning_rate": Range(
        lambda value: 0 <= value <= _LARGEST,
        "at least 0 and finite in float32",
        "Adadelta needs no learning rate: leave it at 1.0. To maximise, use"
        " optax.chain(optax.scale(-1.0), adadelta()).",
    ),
    "rho": Range(
        lambda value: 0 <= value < 1,
        "at least 0 and below 1",
        "It is the share of the running averages that each step keeps; the paper uses 0.95.",
    ),
    "eps": Range(
        lambda value: 0 < value <= _LARGEST,
        "positive and finite in float32",
        "It sets the size of the first steps, and with 0 there are none. The paper uses 1e-6, and"
        " the default of nadadelta is 1e-5.",
    ),
    "weight_decay": Range(
        lambda value: 0 <= value <= _LARGEST,
        "at least 0 and finite in float32",
        "Use 0.0 for no decay.",
    ),
    "momentum": Range(
        lambda value: 0 <= value < 1,
        "at least 0 and below 1",
        "It is the share of the last step that the next one keeps; 0.9 is common.",
    ),
    "max_norm": Range(
        lambda value: value >= 0,
        "at least 0",
        "It is the largest global norm that gradients may have; 1.0 and 5.0 are common.",
    ),
    "factor": Range(
        lambda value: 0 < value < 1,
        "above 0 and below 1",
        "It multiplies eps at each reduction; ESPnet uses 0.01.",
    ),
    "rtol": Range(
        lambda value: 0 <= value <= 1,
        "at least 0 and at most 1",
        "It is the share of the best value by which a better one must improve; 0.0 asks for any.",
    ),
    "atol": Range(
        lambda value: 0 <= value <= _LARGEST,
        "at least 0 and finite in float32",
        "It is the amount by which a better value must improve; 0.0 asks for any.",
    ),
    "min_eps": Range(
        lambda value: 0 < value <= _LARGEST,
        "positive and finite in float32",
        "It is the smallest eps; 1e-12 suits every storage.",
    ),
}


def out_of_range(values: Mapping[str, float]) -> list[str]:
    """Returns a line for each number that is not in its range."""
    return [
        f"{name} must be {RANGES[name].words}; it is {value}"
        for name, value in values.items()
        if not RANGES[name].holds(value)
    ]
