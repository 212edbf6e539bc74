"""States from averages with names, and averages with names from states."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_adadelta._averages import read_averages
from optax_adadelta._state import (
    AdadeltaState,
    adadelta_states,
    find_state,
    initial_state,
)
from optax_adadelta._storage import Averages, storage_with
from optax_adadelta._trees import unzipped
from optax_adadelta.convert._arrays import (
    as_numpy,
    empty_like,
    from_reals,
    is_complex,
    real_size,
    reals,
)
from optax_adadelta.convert._elements import Leaf, moved
from optax_adadelta.convert._names import difference, shape_problems
from optax_adadelta.convert._owned import chosen_sharding, owned_at
from optax_adadelta.convert._problems import refuse
from optax_adadelta.convert._storage_bits import without_wrappers

_LARGEST_COUNT = np.iinfo(np.int32).max


class Named(NamedTuple):
    """The averages of each parameter, by name."""

    count: int
    averages: Mapping[str, Averages]
    fresh: frozenset[str] = frozenset()  # the parameters that have not been trained yet


def state_of(saved: Named, to_params: Callable[[dict[str, np.ndarray]], Any]) -> AdadeltaState:
    """Returns the state with these averages, for the tree that `to_params` makes of them."""
    names = list(saved.averages)
    pairs = list(saved.averages.values())
    inputs = [empty_like(pair.e_g) for pair in pairs]

    def by_name(arrays):
        return dict(zip(names, arrays, strict=True))

    try:
        leaves, structure = moved(
            to_params, "to_params", inputs, names, by_name, optional=saved.fresh
        )
    except KeyError as error:
        raise ValueError(
            f"to_params asks for {error}, but the parameters with averages are {names}. If it has"
            " not been trained yet, give its shape: pass the parameters with their names, not the"
            " names alone. If the optimizer does not train it, leave it out of the tree."
        ) from error
    params = structure.unflatten(map(_parameter, leaves))
    fresh = initial_state(storage_with(None), params)
    count = np.array(min(saved.count, _LARGEST_COUNT), np.int32)
    filled = (
        _filled(field, _numbers(inputs, arrays), leaves)
        for field, arrays in zip((fresh.e_g, fresh.e_x), unzipped(pairs, 2), strict=True)
    )
    return AdadeltaState(owned_at(count, fresh.count), *filled)


def _parameter(leaf: Leaf) -> Any:
    """Returns what stands for a parameter in init: with no elements, so that it takes no memory."""
    kind, dtype = leaf.kind, leaf.kind.dtype
    shape = (0,) * len(kind.shape)
    if not is_complex(kind):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=kind.sharding)
    real = jax.ShapeDtypeStruct(shape, jnp.finfo(dtype).dtype, sharding=kind.sharding)
    return _pair()(real, real)


def _numbers(likes: list[np.ndarray], arrays: list[Any]) -> np.ndarray:
    """Returns all real numbers in some arrays, one after another."""
    if len(arrays) == 1:
        return reals(as_numpy(arrays[0])).ravel()
    dtype = np.result_type(np.float32, *(like.real.dtype for like in likes))
    numbers = np.empty(sum(map(real_size, likes)), dtype)
    start = 0
    for array in arrays:
        values = reals(as_numpy(array)).ravel()
        numbers[start : start + values.size] = values
        start += values.size
    return numbers


def _filled(field: Any, numbers: np.ndarray, leaves: list[Leaf]) -> Any:
    """Returns a tree of averages with these numbers, like those in `field`."""
    likes, structure = jax.tree.flatten(field)
    values = (part for leaf in leaves for part in _real_parts(leaf.of(numbers)))
    return structure.unflatten(
        [
            jax.device_put(np.asarray(value, like.dtype), chosen_sharding(like))
            for value, like in zip(values, likes, strict=True)
        ]
    )


def _real_parts(array: np.ndarray) -> tuple[np.ndarray, ...]:
    return (array.real, array.imag) if is_complex(array) else (array,)


def averages_of(
    state: Any,
    function: Callable[[Any], Mapping[str, Any]],
    called: str,
    parameters: Mapping[str, Any],
) -> Named:
    """Returns the averages that `function` makes of those in `state`.

    Each is what the function returns: a tensor or an array.
    """
    whole = _whole(state)
    e_g, e_x = (_joined(tree) for tree in whole[1:3])
    given, structure = jax.tree.flatten(e_g)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(e_g)]

    def mapping(tree):
        made = function(tree)
        if not isinstance(made, Mapping):
            raise TypeError(
                f"{called} must return a mapping from names to arrays; got a {type(made).__name__}."
            )
        return dict(made)

    leaves, made = moved(mapping, called, given, paths, structure.unflatten)
    kinds = {leaf.kind.name: leaf.kind for leaf in leaves}
    shapes = {name: kind.shape for name, kind in kinds.items()}
    problems = difference(made.unflatten(kinds), parameters, f"what {called} returns")
    problems += shape_problems(parameters, shapes, f"what {called} returns")
    problems += [
        f"{name}: the parameter is complex, and its averages here are real. Only with"
        " optax.contrib.split_real_and_imaginary(adadelta()) are they those of other libraries"
        for name, like in parameters.items()
        if like is not None and name in kinds and is_complex(like) > is_complex(kinds[name])
    ]
    refuse("The state does not fit the parameters", problems)
    squares, updates = map(function, (e_g, e_x))
    return Named(
        int(whole.count),
        {name: Averages(squares[name], updates[name]) for name in parameters if name in kinds},
        frozenset(name for name in parameters if name not in kinds),
    )


def _whole(state: Any) -> AdadeltaState:
    """Returns one state in full precision, joined from those of the groups of parameters."""
    parts = list(adadelta_states(state).values())
    if len(parts) < 2:
        parts = [find_state(state)]
    parts = [without_wrappers(part) for part in parts]
    read = [read_averages(part) for part in parts]
    if len(parts) == 1:
        return AdadeltaState(parts[0].count, *read[0])
    try:
        joined = list(map(_united, unzipped(read, 2)))
    except ValueError:
        return find_state(state)  # raises, and says where the states are
    return AdadeltaState(max(part.count for part in parts), *joined)


def _united(trees: Sequence[Any]) -> Any:
    """Returns the tree that has all leaves of those trees, each of which masks other leaves."""
    found = [tree for tree in trees if not isinstance(tree, optax.MaskedNode)]
    if len(found) < 2:
        return found[0] if found else trees[0]
    if jax.tree_util.all_leaves(found):
        raise ValueError("Two states have averages of the same parameter.")
    levels = [jax.tree.flatten(tree, is_leaf=lambda x, tree=tree: x is not tree) for tree in found]
    children = zip(*(children for children, _ in levels), strict=True)
    return levels[0][1].unflatten(map(_united, children))


@functools.cache
def _pair() -> Any:
    """Returns the class of Optax's pairs of real and imaginary parts, which has no public name."""

    def init(params):
        return params

    inner = optax.GradientTransformation(init, optax.identity().update)
    state: Any = optax.contrib.split_real_and_imaginary(inner).init(np.zeros((), np.complex64))
    return type(state.inner_state)


def _joined(tree: Any) -> Any:
    """Returns a tree of NumPy arrays in which such parts are complex again."""

    def join(leaf):
        if not isinstance(leaf, _pair()):
            return np.array(leaf)
        parts = np.stack(leaf, axis=-1)
        return from_reals(parts, np.result_type(parts, np.complex64))

    return jax.tree.map(join, tree, is_leaf=lambda leaf: isinstance(leaf, _pair()))
