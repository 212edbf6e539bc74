"""The errors for trees that do not match: where they differ, and what to do."""

from typing import Any

import jax
import optax


def mismatch(updates: optax.Updates, tree: Any, name: str) -> ValueError:
    """Returns the error that says how `tree` differs from `updates`, and what to do."""
    return ValueError(
        f"updates and {name} must have the same structure: {_difference(updates, tree, name)}."
        f" {_advice(updates, tree, name)}"
    )


def check_dense(name: str, tree: Any) -> None:
    """Raises an error that names the first sparse array, if there is one."""

    def is_sparse(leaf: Any) -> bool:
        return hasattr(leaf, "todense")

    for path, leaf in jax.tree.leaves_with_path(tree, is_leaf=is_sparse):
        if is_sparse(leaf):
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} is a {type(leaf).__name__}, a sparse"
                " array, but parameters and gradients must be dense: call .todense(), or update"
                " only the rows that have a gradient, as docs/recipes.md shows."
            )


def is_nothing(leaf: Any) -> bool:
    """Returns whether a node of a tree is a placeholder for a leaf that is left out."""
    return leaf is None or isinstance(leaf, optax.MaskedNode)


def _difference(updates: optax.Updates, tree: Any, name: str) -> str:
    ours, theirs = (
        {
            jax.tree_util.keystr(path) or "a single leaf": leaf
            for path, leaf in jax.tree.leaves_with_path(t, is_leaf=is_nothing)
        }
        for t in (updates, tree)
    )
    if name == "params":  # params may have anything where updates has a placeholder
        free = tuple(path for path, leaf in ours.items() if is_nothing(leaf))
        ours = {path: leaf for path, leaf in ours.items() if path not in free}
        theirs = {path: leaf for path, leaf in theirs.items() if not path.startswith(free)}
    extra, missing = _missing_from(theirs, ours), _missing_from(ours, theirs)
    if extra and missing:
        return f"updates has {extra}, {name} has {missing}"
    if extra:
        return f"updates has {extra}, {name} does not"
    if missing:
        return f"{name} has {missing}, updates does not"
    return _difference_of_types(jax.tree.structure(updates), jax.tree.structure(tree), name)


def _missing_from(some: dict[str, Any], others: dict[str, Any]) -> str:
    """Returns up to three paths of `others` that are missing in `some`, joined by commas.

    A path is missing, too, if one of the two has None there and the other a leaf.
    """
    missing = [
        f"None at {path}" if leaf is None else path
        for path, leaf in sorted(others.items(), key=lambda item: item[0])
        if path not in some or (some[path] is None) != (leaf is None)
    ]
    return ", ".join(missing[:3])


def _difference_of_types(ours: Any, theirs: Any, name: str) -> str:
    node, other = ours.node_data(), theirs.node_data()
    children = zip(ours.children(), theirs.children(), strict=False)
    differing = [pair for pair in children if pair[0] != pair[1]]
    if node == other and differing:
        return _difference_of_types(*differing[0], name)
    if node is not None and other is not None and node[0] is not other[0]:
        return (
            f"updates has a {_name_of(node[0])} where {name} has a {_name_of(other[0])} with the"
            " same leaves"
        )
    return f"updates is {ours}, {name} is {theirs}"


def _name_of(container: type) -> str:
    name = container.__name__
    return name if container.__module__ == "builtins" else f"{container.__module__}.{name}"


def _advice(updates: optax.Updates, tree: Any, name: str) -> str:
    check_dense("updates", updates)
    if isinstance(updates, tuple) and len(updates) == 2:
        pairs = ((1, "(value, grads) from jax.value_and_grad"), (0, "(grads, aux) from jax.grad"))
        for part, what in pairs:
            if jax.tree.structure(updates[part]) == jax.tree.structure(tree):
                return f"updates looks like {what}: pass the gradients alone."
    without = jax.tree.map(lambda _: None, tree)
    if jax.tree.structure(jax.tree.map(lambda _: None, updates)) == jax.tree.structure(without):
        return (
            "If a parameter never has a gradient, give init a None in its place, or mask it. If it"
            " has none in this step, pass zeros."
        )
    paths = [[path for path, _ in jax.tree.leaves_with_path(t)] for t in (updates, tree)]
    if paths[0] == paths[1]:
        return "Use the same containers in both trees."
    if name == "params":
        return "Pass the parameters that these updates are for."
    return "Call init with the parameters that these updates are for."
