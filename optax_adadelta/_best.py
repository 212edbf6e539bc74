"""The best tree of a run: keeps a copy of it, and goes back to it.

Only arrays and Python numbers are kept. Other leaves pass as they are: models have functions.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_adadelta._dtypes import dtype_of

_PYTHON = int | float | complex
_ARRAYS = (np.number, np.bool_, jax.dtypes.extended)


def copied(tree: Any) -> Any:
    """Returns the tree with new arrays."""

    def copy(leaf: Any) -> Any:
        # To restore a checkpoint, a target is made from shapes instead of arrays.
        abstract = isinstance(leaf, jax.ShapeDtypeStruct)
        return jnp.copy(leaf) if _is_array(leaf) and not abstract else leaf

    return jax.tree.map(copy, tree)


def chosen(tree: Any, best: Any, improved: jax.Array, reduced: jax.Array) -> tuple[Any, Any]:
    """Returns the tree to go on with and the best one; no two of their arrays share memory."""
    leaves, structure = jax.tree.flatten(tree)
    others, other_structure = jax.tree.flatten(best)
    if structure != other_structure or list(map(_type, leaves)) != list(map(_type, others)):
        raise ValueError(
            "The tree has other containers, shapes or dtypes than the one that init got, so the"
            " best one cannot replace it. Call init again with this tree."
        )
    places = [i for i, pair in enumerate(zip(leaves, others, strict=True)) if _may_differ(*pair)]
    old, new = ([some[i] for i in places] for some in (others, leaves))
    for i, leaf, other in zip(places, *_choose(new, old, improved, reduced), strict=True):
        leaves[i], others[i] = leaf, other
    return jax.tree.unflatten(structure, leaves), jax.tree.unflatten(structure, others)


@jax.jit
def _choose(
    leaves: Sequence[Any], best: Sequence[Any], improved: jax.Array, reduced: jax.Array
) -> tuple[list[jax.Array], list[jax.Array]]:
    back = [jnp.where(reduced, b, x) for x, b in zip(leaves, best, strict=True)]
    return back, [jnp.where(improved, x, b) for x, b in zip(leaves, best, strict=True)]


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, _PYTHON) or not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        return False
    return any(jax.dtypes.issubdtype(leaf.dtype, parent) for parent in _ARRAYS)


def _may_differ(leaf: Any, best: Any) -> bool:
    # A number that is the same in both, such as a flag of a model, must not become an array.
    numbers = isinstance(leaf, _PYTHON) and isinstance(best, _PYTHON)
    return leaf != best if numbers else _type(leaf) is not None


def _type(leaf: Any) -> tuple[tuple[int, ...], Any] | None:
    """Returns the shape and the dtype of an array or a number, and None for other leaves."""
    if isinstance(leaf, _PYTHON):
        return (), dtype_of(leaf)
    if not _is_array(leaf):
        return None
    keys = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)
    return leaf.shape, leaf.dtype if keys else dtype_of(leaf)
