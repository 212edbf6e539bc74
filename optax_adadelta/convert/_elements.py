"""Which element goes where, when a function of the user's converts the parameters.

The function is called with the numbers of the elements in place of their values. So a function that
does more than move them is noticed, and no average is ever cast or scaled.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from optax_adadelta.convert._arrays import as_numpy, from_reals, is_complex, reals
from optax_adadelta.convert._problems import refuse

# bfloat16 has every integer up to this one, so the function may cast to it.
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
    lacks = jax.tree.leaves(called_with([_BASE - 1 - number % _BASE for number in numbers]))
    digits: list[list[np.ndarray]] = []
    tree: Any = None
    place = 1
    while place <= starts[-1] or not digits:
        tree = called_with([number // place % _BASE for number in numbers])
        digits.append([place * _digits(leaf) for leaf in jax.tree.leaves(tree)])
        place *= _BASE
    leaves: list[Leaf] = []
    problems: list[str] = []
    with_paths = jax.tree.leaves_with_path(tree)
    for (path, like), lack, *parts in zip(with_paths, lacks, *digits, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "the top"
        leaves.append(Leaf(name, like, np.asarray(sum(parts) - 1)))
        problems += _changed(leaves[-1], _digits(lack), parts, starts[-1])
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


def _digits(leaf: Any) -> np.ndarray:
    """Returns the values of a leaf, and -1 in place of those that are no digits."""
    array = as_numpy(leaf)
    if array.dtype.kind not in "fc":
        return np.full(array.shape, -1)
    found = reals(array)
    valid = np.isin(found, np.arange(_BASE))
    return np.where(valid, found, -1).astype(np.int64)


def _changed(leaf: Leaf, lack: np.ndarray, parts: list[np.ndarray], count: int) -> list[str]:
    dtype = as_numpy(leaf.like).dtype
    if dtype.kind not in "fc":
        return [f"{leaf.name}: {dtype} is not floating-point; return trained parameters only"]
    same = all((part >= 0).all() for part in parts) and np.all(lack + parts[0] == _BASE - 1)
    if not same or not np.all((leaf.positions >= 0) & (leaf.positions < count)):
        return [f"{leaf.name}: has other values than those that were given"]
    return []


def _not_once(leaves, names, starts, optional) -> list[str]:
    problems = []
    used = np.zeros(starts[-1], np.int64)
    for leaf in leaves:
        again = used[leaf.positions].any()
        np.add.at(used, leaf.positions, 1)
        if again or (used[leaf.positions] > 1).any():
            problems.append(f"{leaf.name}: has elements that are used more than once")
    for name, start, end in zip(names, starts, starts[1:], strict=False):
        unused = np.sum(used[start:end] == 0)
        if unused and name not in optional:
            problems.append(f"{name}: {unused} of {end - start} elements are left out")
    return problems
