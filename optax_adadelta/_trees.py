"""Trees and lists of tuples."""

from collections.abc import Iterable
from typing import Any


def unzipped(tuples: Iterable[tuple[Any, ...]], count: int) -> list[list[Any]]:
    """Returns the first elements of all tuples, then the second ones, up to `count`."""
    rows = list(tuples)
    return [[row[i] for row in rows] for i in range(count)]
