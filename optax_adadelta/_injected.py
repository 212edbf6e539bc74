"""Finds the eps that optax.inject_hyperparams keeps in its state, and the optimizer it is for.

It goes by the names of fields, because some frameworks turn the named tuples of a state into other
containers.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax

from optax_adadelta._state import has_state_fields

Path: TypeAlias = tuple[str, ...]


def path_of(keys: Sequence[Any]) -> Path:
    """Returns the path of a leaf, as JAX gives it, as names."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)


def injected_eps(paths: Sequence[Path]) -> dict[Path, int]:
    """Returns the path of each state of inject_hyperparams that has an eps, and its eps' index."""
    found = {}
    for i, path in enumerate(paths):
        for start in range(len(path) - 1):
            if path[start : start + 2] == ("hyperparams", "eps"):
                found[path[:start]] = i
    return found


def adadelta_paths(tree: Any) -> list[Path]:
    """Returns the path of the state of each Adadelta, in whatever container it is."""
    parts = jax.tree.leaves_with_path(tree, is_leaf=has_state_fields)
    return [path_of(keys) for keys, part in parts if has_state_fields(part)]


def is_inside(path: Path, state: Path) -> bool:
    """Returns whether `path` leads into the optimizer that the state at `state` belongs to."""
    return path[: len(state) + 1] == (*state, "inner_state")


def is_scheduled(paths: Sequence[Path], state: Path) -> bool:
    """Returns whether the eps in the state at `state` comes from a schedule."""
    schedule = (*state, "hyperparams_states", "eps")
    return any(path[: len(schedule)] == schedule for path in paths)
