"""Functions of two numbers that are hard to walk down, each in its own way."""

from collections.abc import Callable
from typing import NamedTuple


class Function(NamedTuple):
    """A function of x and y, where walks on it start, and its minima, at which it is 0."""

    value: Callable
    start: tuple[float, float]
    minima: list[tuple[float, float]]


def beale(x, y):
    """Returns Beale's function."""
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


FUNCTIONS = {
    "Rosenbrock": Function(lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2, (-1.2, 1), [(1, 1)]),
    "Beale": Function(beale, (1, 1), [(3, 0.5)]),
    "Ravine": Function(lambda x, y: (x**2 + 100 * y**2) / 2, (-2, 0.5), [(0, 0)]),
    # The start is just off the ridge between the two hollows.
    "Saddle": Function(
        lambda x, y: x**2 / 2 + (y**2 - 1) ** 2 / 4, (-1.5, 0.01), [(0, 1), (0, -1)]
    ),
}
WINDOWS = {  # Least and greatest x, least and greatest y.
    "Rosenbrock": (-1.7, 2, -1.3, 2.8),
    "Beale": (0.5, 4.1, -1.2, 1.3),
    "Ravine": (-2.3, 1, -0.65, 0.65),
    "Saddle": (-1.8, 1.5, -1.4, 1.6),
}
