"""Which element goes where, when a function of the user's converts the parameters.

The function is called with the numbers of the elements in place of their values. So a function that
does more than move them is noticed, and no average is ever cast or scaled.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from optax_adadelta.convert._arrays import as_numpy, from_reals, is_complex, is_inexact, reals
from optax_adadelta.convert._problems import refuse

# bfloat16 has every integer up to this one, so the function may cast to it. A digit has 8 bits.
_BASE = 256


class Leaf(NamedTuple):
    """A leaf of what the function returns."""

    name: str
    like: Any  # with the leaf's type, dtype and sharding; its values mean nothing
    positions: np.ndarray  # where the elements come from, among the real numbers of all inputs

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the leaf."""
        return self.positions.shape[: -1 if is_complex(self.like) else None]

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the leaf for other numbers in the inputs."""
        dtype = np.result_type(numbers.dtype, np.complex64 if is_complex(self.like) else numbers)
        return from_reals(numbers[self.positions], dtype)


def moved(
    function: Callable[[Any], Any],
    called: str,
    inputs: Sequence[np.ndarray],
    names: Sequence[str],
    build: Callable[[list[np.ndarray]], Any],
    optional: frozenset[str] = frozenset(),
) -> tuple[list[Leaf], Any]:
    """Returns the leaves of what `function` returns, and their tree.

    Args:
      function: takes a tree and returns a tree with the same elements.
      called: what the user calls it.
      inputs: arrays with the shapes and dtypes of the leaves that it takes.
      names: the names of these leaves.
      build: makes the tree that it takes from its leaves.
      optional: the names of leaves that it may leave out.
    """
    sizes = [reals(array).size for array in inputs]
    starts = np.cumsum([0, *sizes])
    # Elements are numbered from 1, so that scaling changes every number.
    numbers = [
        start + 1 + np.arange(reals(array).size).reshape(reals(array).shape)
        for start, array in zip(starts, inputs, strict=False)
    ]

    def called_with(values):
        arrays = zip(values, inputs, strict=True)
        return _call(function, called, build([from_reals(v, a.dtype) for v, a in arrays]))

    # A function that only moves elements also moves what each lacks to the largest digit.
    tree = called_with([_BASE - 1 - number % _BASE for number in numbers])
    lacks = [_digits(leaf) for leaf in jax.tree.leaves(tree)]
    digits: list[list[np.ndarray | None]] = []
    largest = max(int(starts[-1]), 1)
    for place in range(math.ceil(largest.bit_length() / 8)):
        tree = called_with([number // _BASE**place % _BASE for number in numbers])
        digits.append([_digits(leaf) for leaf in jax.tree.leaves(tree)])
    leaves: list[Leaf] = []
    problems: list[str] = []
    with_paths = jax.tree.leaves_with_path(tree)
    for (path, like), lack, *parts in zip(with_paths, lacks, *digits, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "the top"
        positions = _positions(lack, parts, starts[-1])
        if positions is not None:
            leaves.append(Leaf(name, like, positions))
        elif is_inexact(like):
            problems.append(f"{name}: has other values than those that were given")
        else:
            dtype = as_numpy(like).dtype
            problems.append(
                f"{name}: {dtype} is not floating-point; return trained parameters only"
            )
    refuse(
        f"{called} must only rename, transpose, reshape, split or join arrays",
        problems or _not_once(leaves, names, starts, optional),
    )
    return leaves, tree


def _call(function: Callable[[Any], Any], called: str, tree: Any) -> Any:
    try:
        return function(tree)
    except Exception as error:
        error.add_note(
            f"{called} was called with the tree that it takes for the weights, with NumPy arrays"
            " in it, for those parameters that have averages. It must take NumPy arrays and return"
            " nothing else than what it makes of them."
        )
        raise


def _digits(leaf: Any) -> np.ndarray | None:
    """Returns the digits in a leaf, or None if something in it is not a digit."""
    if not is_inexact(leaf):
        return None
    found = reals(as_numpy(leaf))
    with np.errstate(invalid="ignore"):
        digits = np.asarray(found).astype(np.uint8)
    return digits if np.array_equal(digits, found) else None


def _positions(
    lack: np.ndarray | None, digits: list[np.ndarray | None], count: int
) -> np.ndarray | None:
    """Returns where the elements of a leaf come from, or None if they are not those given."""
    known = [digit for digit in digits if digit is not None]
    if lack is None or len(known) < len(digits) or not np.all(lack == _BASE - 1 - known[0]):
        return None
    places = [digit * np.int64(_BASE**i) for i, digit in enumerate(known)]
    positions = np.asarray(sum(places) - 1)
    return positions if np.all((positions >= 0) & (positions < count)) else None


def _not_once(leaves, names, starts, optional) -> list[str]:
    problems = []
    used = np.zeros(starts[-1], bool)
    last = np.zeros(starts[-1], np.int64)
    for leaf in leaves:
        here = np.arange(leaf.positions.size).reshape(leaf.positions.shape)
        last[leaf.positions] = here
        if used[leaf.positions].any() or not np.all(last[leaf.positions] == here):
            problems.append(f"{leaf.name}: has elements that are used more than once")
        used[leaf.positions] = True
    for name, start, end in zip(names, starts, starts[1:], strict=False):
        unused = np.sum(~used[start:end])
        if unused and name not in optional:
            problems.append(f"{name}: {unused} of {end - start} elements are left out")
    return problems
