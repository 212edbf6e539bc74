"""States from and to optax.adadelta and optax.scale_by_adadelta."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_adadelta._averages import read_averages
from optax_adadelta._sharding import placed
from optax_adadelta._state import AdadeltaState, find_state
from optax_adadelta._validation import dtype_of_averages
from optax_adadelta.convert._matching import name_of, places_in, shown
from optax_adadelta.convert._names import difference
from optax_adadelta.convert._owned import owned, owned_at
from optax_adadelta.convert._problems import place, refuse
from optax_adadelta.convert._storage_bits import without_wrappers


def from_optax(state: Any, *, count: jax.typing.ArrayLike | None = None) -> AdadeltaState:
    """Returns the state of a run that began with ``optax.adadelta`` or ``scale_by_adadelta``.

    Args:
      state: the state of an optimizer that contains exactly one of the two, however deep: a chain,
        an injected state.
      count: the number of updates made so far, which schedules depend on. It is required if Optax
        has not counted them: it counts only for a schedule or for injected hyperparameters.

    Returns:
      An :class:`.AdadeltaState` in full precision, of copies. If the optimizer is more than
      :func:`.adadelta`, put it into the state of that optimizer:
      ``carry_over(from_optax(state), optimizer.init(params))``.

    Raises:
      TypeError: the averages are complex. Optax squares complex gradients without taking their
        modulus, so there is no equivalent. Those of
        ``optax.contrib.split_real_and_imaginary(optax.adadelta())`` are real.
      ValueError: there is no such state or there are several; or ``count`` is missing.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optax_adadelta import adadelta
      >>> from optax_adadelta.convert import from_optax
      >>> params = {"w": jnp.array([3.0, -2.0])}
      >>> old = optax.adadelta(1.0)
      >>> updates, old_state = old.update(params, old.init(params), params)
      >>> state = from_optax(old_state, count=1)
      >>> updates, state = adadelta(rho=0.9).update(params, state, params)
      >>> print(state.count)
      2
    """
    found = _only(state)
    counts = [leaf for path, leaf in _with_paths(state) if _is_count(path, leaf)]
    if count is None and not counts:
        raise ValueError(
            "Optax has not counted the updates. Pass count=..., the number of updates made so far."
        )
    count = max(counts) if count is None else count

    def converted(path, average):
        if jnp.iscomplexobj(average):
            raise TypeError(
                f"The averages at {place(path)} are complex. Optax"
                " averages g^2, not |g|^2, so they cannot be converted. Start with a new state."
            )
        return owned(jnp.asarray(average, dtype_of_averages(path, average)))

    e_g, e_x = (jax.tree.map_with_path(converted, tree) for tree in (found.e_g, found.e_x))
    return AdadeltaState(placed(e_g, owned(jnp.asarray(count, jnp.int32))), e_g, e_x)


def to_optax(state: Any, new_state: Any) -> Any:
    """Returns the state of an Optax optimizer with the averages of this one.

    Of a state of :func:`.nadadelta`, the averages are converted, in the units of the parameters.
    The trace and the scale are left out.

    Args:
      state: an :class:`.AdadeltaState`, or the state of any optimizer that contains exactly one,
        in any storage.
      new_state: the state that ``init(params)`` of the Optax optimizer returns. It must contain
        exactly one state of ``optax.adadelta`` or ``optax.scale_by_adadelta``.

    Returns:
      ``new_state`` with the averages, cast to the dtypes that they have there: those of the
      parameters. All its fields called ``count`` get the number of updates made so far. All arrays
      are copies.

    Raises:
      ValueError: the parameters or their shapes do not match, which the error lists; or one of the
        states has no averages, or several.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optax_adadelta import adadelta
      >>> from optax_adadelta.convert import to_optax
      >>> params = {"w": jnp.array([3.0, -2.0])}
      >>> _, state = adadelta().update(params, adadelta().init(params))
      >>> optimizer = optax.adadelta(1.0, rho=0.95)
      >>> new_state = to_optax(state, optimizer.init(params))
      >>> updates, new_state = optimizer.update(params, new_state, params)
    """
    old, target = without_wrappers(find_state(state)), _only(new_state)
    found = read_averages(old)
    e_g, e_x, expected = (places_in(t).trained for t in (found.e_g, found.e_x, target.e_g))
    problems = difference(map(shown, e_g), map(shown, expected), "state")
    problems += [
        f"{shown(name)}: has shape {e_g[name].shape} in state, {like.shape} in new_state"
        for name, like in expected.items()
        if name in e_g and e_g[name].shape != like.shape
    ]
    refuse("The averages do not fit", problems)

    def filled(by_name, like):
        return jax.tree.map_with_path(
            lambda path, leaf: owned_at(by_name[name_of(path)].astype(leaf.dtype), leaf), like
        )

    written = target._replace(e_g=filled(e_g, target.e_g), e_x=filled(e_x, target.e_x))

    def replaced(path, part):
        if _is_optax_state(part):
            return written
        return owned_at(old.count.astype(part.dtype) if _is_count(path, part) else part, part)

    return jax.tree.map_with_path(replaced, new_state, is_leaf=_is_optax_state)


def _is_count(path: jax.tree_util.KeyPath, leaf: Any) -> bool:
    """Returns whether a leaf counts updates: a whole number in a field with this name."""
    return (
        _field(path) == "count"
        and not _is_optax_state(leaf)
        and jnp.ndim(leaf) == 0
        and jnp.issubdtype(leaf.dtype, jnp.integer)
    )


def _field(path: jax.tree_util.KeyPath) -> str | None:
    fields = [getattr(key, "name", None) for key in path]
    if fields[-1:] == ["value"]:  # of the variable of Flax NNX that wraps the field
        fields.pop()
    return fields[-1] if fields else None


def _with_paths(state: Any) -> list[tuple[jax.tree_util.KeyPath, Any]]:
    return jax.tree.leaves_with_path(state, is_leaf=_is_optax_state)


def _is_optax_state(part: Any) -> bool:
    return isinstance(part, optax.ScaleByAdaDeltaState)


def _only(state: Any) -> optax.ScaleByAdaDeltaState:
    parts = _with_paths(state)
    found = {f"state{jax.tree_util.keystr(path)}": p for path, p in parts if _is_optax_state(p)}
    if len(found) != 1:
        where = f"There are {len(found)}, at {', '.join(found)}" if found else "There is none"
        raise ValueError(
            f"{where}: the state must contain exactly one state of optax.adadelta or"
            f" optax.scale_by_adadelta. It is {jax.tree.structure(state)}."
        )
    (part,) = found.values()
    return part
