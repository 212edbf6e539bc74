"""Which parameter of one tree is which of another: the one with the same name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

import jax

from optax_adadelta._mismatch import is_nothing

Name: TypeAlias = tuple[str, ...]
"""The parts of a name such as layers/0/weight."""


class Places(NamedTuple):
    """What is where in the trees of a state."""

    trained: dict[Name, Any]  # the leaves
    names: frozenset[Name]  # of the leaves, and of the placeholders for what is not trained


def name_of(path: jax.tree_util.KeyPath) -> Name:
    """Returns the name of a parameter, which does not depend on the types of its containers."""
    parts = jax.tree_util.keystr(path, simple=True, separator="/").split("/") if path else []
    while parts and parts[-1] == "value":  # Flax wraps an array in a variable with this attribute
        parts.pop()
    return tuple(parts)


def places_in(tree: Any) -> Places:
    """Returns what is where in a tree of averages."""
    trained: dict[Name, Any] = {}
    names = set()
    for path, leaf in jax.tree.leaves_with_path(tree, is_leaf=is_nothing):
        name = name_of(path)
        names.add(name)
        if is_nothing(leaf):
            continue
        if name in trained:
            raise ValueError(f"Two parameters have the same name, {shown(name)}. Rename one.")
        trained[name] = leaf
    return Places(trained, frozenset(names))


def together(groups: Iterable[Places]) -> Places:
    """Returns what is where in several groups of the same parameters."""
    groups = list(groups)
    trained = {name: leaf for group in groups for name, leaf in group.trained.items()}
    return Places(trained, frozenset(name for group in groups for name in group.names))


def shown(name: Name) -> str:
    """Returns how errors show a name."""
    return "/".join(name) or "the top"


def matches(old: Places, new: Places) -> dict[Name, Name]:
    """Returns the old name of each new parameter that the old tree has too.

    Raises:
      ValueError: there are parameters in both trees, but not one is the same.
    """
    if old.names & new.names or not (old.trained and new.trained):
        found = {name: name for name in new.trained if name in old.trained}
    else:
        found = {inner: name for name, inner in _without_container(old, new).items()}
        found = found or _without_container(new, old)
    if old.trained and new.trained and not found:
        raise ValueError(
            "No trained parameter has the same name in both states, so nothing can be carried over."
            f" The old state has {_listed(old.trained)}. The new one has {_listed(new.trained)}. If"
            " they are the same parameters, rename them in one of the two. If not, use the new"
            " state as it is."
        )
    return found


def _without_container(outer: Places, inner: Places) -> dict[Name, Name]:
    """Returns the inner name of each outer parameter that the inner tree has outside a container.

    All names of the outer tree must begin with that container, and all parameters of one tree must
    be in the other. Otherwise a parameter of one part could be taken for that of another part.
    """
    for length in range(1, len(_common_prefix(outer)) + 1):
        names = {name[length:] for name in outer.names}
        trained = {name[length:]: name for name in outer.trained}
        found = {name: short for short, name in trained.items() if short in inner.trained}
        if found and (trained.keys() <= inner.names or inner.trained.keys() <= names):
            return found
    return {}


def _common_prefix(places: Places) -> Name:
    # In alphabetical order, what the first and the last name begin with, all names begin with.
    first, last = min(places.names), max(places.names)
    length = next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )
    return first[:length]


def _listed(names: Iterable[Name]) -> str:
    first = [shown(name) for name in names]
    more = f" and {len(first) - 5} more" if len(first) > 5 else ""
    return ", ".join(first[:5]) + more
