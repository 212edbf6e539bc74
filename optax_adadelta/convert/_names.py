"""The names of the parameters, in the order of the optimizer."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from optax_adadelta._storage import Averages
from optax_adadelta.convert._problems import refuse


def named(names: Any) -> dict[str, Any]:
    """Returns a dict from the name of each parameter to the parameter, or to None without one.

    Args:
      names: an iterable of names, of pairs of a name and a parameter, or of variables with a path;
        a mapping from names to parameters; or a list that has one of these for each group.
    """
    return {name: like for group in groups_of(names) for name, like in group.items()}


def groups_of(names: Any) -> list[dict[str, Any]]:
    """Returns the parameters by name for each group; `names` is as for `named`."""
    items = list(names.items() if isinstance(names, Mapping) else names)
    several = bool(items) and all(map(_is_group, items))
    groups = [list(map(_pair, _items(group))) for group in (items if several else [items])]
    check_unique(name for group in groups for name, _ in group)
    return [dict(group) for group in groups]


def check_unique(names: Iterable[str]) -> None:
    """Raises an error that lists the names that are there more than once, if there are any."""
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    refuse("Each name must be there once", [f"{name}: is there more than once" for name in twice])


def shape_problems(
    parameters: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], what: str
) -> list[str]:
    """Returns a line for each parameter that is known and has another shape."""
    return [
        f"{name}: the parameter has shape {tuple(like.shape)}, {what} {shapes[name]}"
        for name, like in parameters.items()
        if like is not None and name in shapes and tuple(like.shape) != shapes[name]
    ]


def averages_problems(parameters: Mapping[str, Any], averages: Mapping[str, Averages]) -> list[str]:
    """Returns a line for each parameter whose shape is not that of its two averages."""
    return shape_problems(
        parameters, {name: _shape(pair.e_g) for name, pair in averages.items()}, "its averages"
    ) + [
        f"{name}: E[g^2] has shape {_shape(e_g)}, E[dx^2] {_shape(e_x)}"
        for name, (e_g, e_x) in averages.items()
        if _shape(e_g) != _shape(e_x)
    ]


def difference(found: Iterable[str], expected: Iterable[str], whose: str) -> list[str]:
    """Returns a line for each name that is missing or too many."""
    found, expected = dict.fromkeys(found), dict.fromkeys(expected)  # sets with an order
    missing = [f"{name}: missing in {whose}" for name in expected if name not in found]
    return missing + [f"{name}: only in {whose}" for name in found if name not in expected]


def _shape(array: Any) -> tuple[int, ...]:
    return tuple(np.shape(array))


def _is_group(item: Any) -> bool:
    known = isinstance(item, (str, tuple)) or hasattr(item, "path") or hasattr(item, "shape")
    return isinstance(item, Iterable) and not known


def _items(group: Any) -> Iterable[Any]:
    return group.items() if isinstance(group, Mapping) else group


def _pair(item: Any) -> tuple[str, Any]:
    if isinstance(item, str):
        return item, None
    if hasattr(item, "path"):
        return item.path, item
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str):
        return item[0], item[1]
    raise TypeError(
        "Parameters must come with their names, such as model.named_parameters() in torch or"
        f" model.trainable_variables in Keras; got a {type(item).__name__}."
    )
