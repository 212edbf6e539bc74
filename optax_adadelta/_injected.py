"""Finds the eps that optax.inject_hyperparams keeps in its state, and the optimizer it is for.

It goes by the names of fields, because some frameworks turn the named tuples of a state into other
containers.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import optax

from optax_adadelta._hyperparameters import number, number_or_schedule
from optax_adadelta._state import (
    AdadeltaState,
    has_state_fields,
    is_adadelta_state,
    none_found,
)

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


def states_with_eps(
    state: Any, eps: optax.ScalarOrSchedule | None
) -> list[tuple[AdadeltaState, Any]]:
    """Returns each AdadeltaState with its eps, or the schedule of it."""
    keyed = jax.tree.leaves_with_path(state, is_leaf=is_adadelta_state)
    paths = [path_of(keys) for keys, _ in keyed]
    parts = [part for _, part in keyed]
    found = [
        (path, part) for path, part in zip(paths, parts, strict=True) if is_adadelta_state(part)
    ]
    if not found:
        raise none_found(state)
    if eps is not None:
        value = number_or_schedule("eps", eps)
        return [(part, value) for _, part in found]
    injected = injected_eps(paths)

    def of(path: Path) -> Any:
        around = [outer for outer in injected if is_inside(path, outer)]
        if not around:
            raise ValueError(
                "eps is None, but the state has no eps: pass the optimizer's eps or its schedule,"
                " or make the optimizer with optax.inject_hyperparams(adadelta)."
            )
        return number("eps", parts[injected[max(around, key=len)]], scheduled=True)

    return [(part, of(path)) for path, part in found]
