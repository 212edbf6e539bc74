"""Which element goes where, when a function of the user's converts the parameters.

The function is called with the numbers of the elements in place of their values. So a function that
does more than move them is noticed, and no average is ever cast or scaled. Models are large, so the
numbers are made and read in parts, and kept in few bytes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from optax_adadelta._dtypes import dtype_of
from optax_adadelta.convert._arrays import as_numpy, from_reals, is_complex, real_size, reals
from optax_adadelta.convert._owned import chosen_sharding
from optax_adadelta.convert._problems import refuse

# bfloat16 has every integer up to this one, so the function may cast to it. A digit has 8 bits.
_BASE = 256
_PART = 2**18  # as many elements are handled at once


class Kind(NamedTuple):
    """What is known of a leaf without its values."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    sharding: jax.sharding.Sharding | None  # if one was chosen


class Leaf(NamedTuple):
    """A leaf of what the function returns."""

    kind: Kind
    positions: np.ndarray  # where the elements come from, among the real numbers of all inputs

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the leaf for other numbers in the inputs."""
        picked = np.empty(self.positions.shape, numbers.dtype)
        values, positions = picked.reshape(-1), self.positions.reshape(-1)
        for part in _parts(positions.size):
            values[part] = numbers[positions[part]]
        complex_dtype = np.result_type(numbers, np.complex64)
        return from_reals(picked, complex_dtype if is_complex(self.kind) else numbers.dtype)


def moved(
    function: Callable[[Any], Any],
    called: str,
    inputs: Sequence[np.ndarray],
    names: Sequence[str],
    build: Callable[[list[np.ndarray]], Any],
    optional: frozenset[str] = frozenset(),
) -> tuple[list[Leaf], Any]:
    """Returns the leaves of what `function` returns, and the structure of their tree.

    Args:
      function: takes a tree and returns a tree with the same elements.
      called: what the user calls it.
      inputs: arrays with the shapes and dtypes of the leaves that it takes.
      names: the names of these leaves.
      build: makes the tree that it takes from its leaves.
      optional: the names of leaves that it may leave out.
    """
    starts = np.cumsum([0, *map(real_size, inputs)])

    def called_with(digit: Callable[[np.ndarray], np.ndarray]) -> tuple[list[Any], Any]:
        tree = _call(
            function,
            called,
            build([_filled(a, start, digit) for a, start in zip(inputs, starts, strict=False)]),
        )
        return [_read(*leaf) for leaf in jax.tree.leaves_with_path(tree)], jax.tree.structure(tree)

    # First come complements: the largest digit minus the last digit of each number. If the function
    # only moves elements, they stay complements of the digits that it is called with next. Elements
    # are numbered from 1, so that scaling changes every number.
    seen, structure = called_with(lambda numbers: _BASE - 1 - numbers % _BASE)
    places = math.ceil(max(int(starts[-1]), 1).bit_length() / 8)
    bytes_of = [
        None if found is None else np.zeros((*found.shape, 4 if places <= 4 else 8), np.uint8)
        for _, found in seen
    ]
    for i in range(places):
        digits, _ = called_with(lambda numbers, i=i: numbers // _BASE**i % _BASE)
        for leaf, (_, digit) in enumerate(digits):
            found = bytes_of[leaf]
            if found is None or digit is None or (i == 0 and not _adds_up(seen[leaf][1], digit)):
                bytes_of[leaf] = None
            else:
                found[..., i] = digit
    positions = [_positions(found, starts[-1]) for found in bytes_of]
    leaves = [Leaf(kind, p) for (kind, _), p in zip(seen, positions, strict=True) if p is not None]
    problems = [
        f"{kind.name}: has other values than those that were given"
        if kind.dtype.kind in "fcV"
        else f"{kind.name}: {kind.dtype} is not floating-point; return trained parameters only"
        for (kind, _), found in zip(seen, positions, strict=True)
        if found is None
    ]
    refuse(
        f"{called} must only rename, transpose, reshape, split or join arrays",
        problems or _not_once(leaves, names, starts, optional),
    )
    return leaves, structure


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


def _parts(size: int) -> Iterator[slice]:
    """Yields slices that together are all elements of an array."""
    for start in range(0, size, _PART):
        yield slice(start, min(start + _PART, size))


def _filled(like: np.ndarray, start: int, digit: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Returns an array like this one, filled with one digit of each element's number."""
    numbers = np.empty(real_size(like), like.real.dtype)
    for part in _parts(numbers.size):
        numbers[part] = digit(start + 1 + np.arange(part.start, part.stop))
    return numbers.view(like.dtype).reshape(like.shape)


def _read(path: jax.tree_util.KeyPath, leaf: Any) -> tuple[Kind, np.ndarray | None]:
    """Returns the kind of a leaf, and its elements if all of them are digits."""
    name = jax.tree_util.keystr(path, simple=True, separator="/") or "the top"
    array = as_numpy(leaf)
    if array.dtype.kind not in "fc":
        return Kind(name, array.shape, array.dtype, None), None
    dtype = array.dtype if hasattr(leaf, "detach") else dtype_of(leaf)
    found = reals(array)
    with np.errstate(invalid="ignore"):
        digits = found.astype(np.uint8)
    known = np.array_equal(digits, found)
    return Kind(name, array.shape, dtype, chosen_sharding(leaf)), digits if known else None


def _adds_up(complements: np.ndarray | None, digits: np.ndarray) -> bool:
    return complements is not None and np.array_equal(complements, _BASE - 1 - digits)


def _positions(found: np.ndarray | None, count: int) -> np.ndarray | None:
    """Returns where the elements of a leaf come from, or None if they are not those given."""
    if found is None:
        return None
    positions = found.view(f"<u{found.shape[-1]}")[..., 0]
    positions -= 1  # makes the largest integer of 0
    return positions if not positions.size or positions.max() < count else None


def _not_once(
    leaves: list[Leaf], names: Sequence[str], starts: np.ndarray, optional: frozenset[str]
) -> list[str]:
    """Returns a line for each input or leaf whose elements are not used exactly once."""
    used = np.zeros(starts[-1], bool)
    for leaf in leaves:
        positions = leaf.positions.reshape(-1)
        for part in _parts(positions.size):
            used[positions[part]] = True
    repeated = sum(leaf.positions.size for leaf in leaves) > np.count_nonzero(used)
    problems = _repeated(leaves, used.size) if repeated else []
    for name, start, end in zip(names, starts, starts[1:], strict=False):
        unused = end - start - np.count_nonzero(used[start:end])
        if unused and name not in optional:
            problems.append(f"{name}: {unused} of {end - start} elements are left out")
    return problems


def _repeated(leaves: list[Leaf], size: int) -> list[str]:
    problems = []
    used = np.zeros(size, bool)
    for leaf in leaves:
        once = np.unique(leaf.positions)
        if once.size < leaf.positions.size or used[once].any():
            problems.append(f"{leaf.kind.name}: has elements that are used more than once")
        used[once] = True
    return problems
