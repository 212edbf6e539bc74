"""The state of the optimizer: how to make, check and find it."""

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_adadelta._dtypes import dtype_of
from optax_adadelta._mismatch import check_dense
from optax_adadelta._serialization import exportable
from optax_adadelta._sharding import placed_scalar, varying_with
from optax_adadelta._storage import Averages, Storage
from optax_adadelta._validation import dtype_of_averages, storages_of


@exportable("optax_adadelta.AdadeltaState")
class AdadeltaState(NamedTuple):
    """The state of Adadelta.

    Attributes:
      count: the number of updates made so far, an int32 scalar that stops at its maximum.
      e_g: E[g^2], the running average of the squared gradients: a tree with the structure of the
        parameters and arrays of their shapes. In full precision they are float32, or float64 for
        float64 and complex128 parameters. With ``state_bits=16`` or ``8`` they are codes, uint16
        or uint8, which :func:`optax_adadelta.diagnostics.averages` reads.
      e_x: E[dx^2], the running average of the squared updates, with the same structure, shapes and
        dtypes.
      unit: the eps of the last update, a float32 scalar, which the codes are relative to. None in
        full precision.
    """

    count: jax.Array
    e_g: optax.Updates
    e_x: optax.Updates
    unit: jax.Array | None = None


def initial_state(storage: Storage, params: optax.Params) -> AdadeltaState:
    """Returns the state before the first update, with averages of zero."""
    check_dense("params", params)
    averages = jax.tree.map_with_path(
        lambda path, p: storage.init(p, dtype_of_averages(path, p)), params
    )
    e_g, e_x = (
        jax.tree.map(itemgetter(i), averages, is_leaf=lambda leaf: isinstance(leaf, Averages))
        for i in range(2)
    )
    # A code of zero means an average of zero in any unit, so the eps need not be known yet.
    unit = placed_scalar(params, 0, jnp.float32) if storage.quantized else None
    return AdadeltaState(placed_scalar(params, 0, jnp.int32), e_g, e_x, unit)


def varying_with_scalars(state: AdadeltaState, rho: Any, eps: Any, decay: Any) -> AdadeltaState:
    """Returns the state with the types that updates with these hyperparameters give it.

    Inside `jax.shard_map`, a type says over which axes a value varies. `jax.lax.scan` requires a
    state whose types do not change. The count is the same on all devices, and so is the unit,
    unless eps varies.
    """
    e_g, e_x = jax.tree.map(
        lambda leaf: varying_with(leaf, rho, eps, decay), (state.e_g, state.e_x)
    )
    unit = None if state.unit is None else varying_with(state.unit, eps)
    return AdadeltaState(state.count, e_g, e_x, unit)


def check_arguments(updates: Any, state: Any) -> None:
    """Raises an error that names what was given, if it is not gradients and a state."""
    if is_adadelta_state(updates):
        raise TypeError(
            "updates is an AdadeltaState: call update(grads, state, params), in this order."
        )
    if is_adadelta_state(state):
        return
    if inner := adadelta_states(state):
        advice = (
            f"There is one at {', '.join(inner)}, so this is the state of a chain or a wrapper:"
            " call the update of the whole optimizer that made it."
        )
    elif isinstance(state, Mapping) and has_state_fields(state):
        advice = (
            "It has the right keys, so it was probably restored without a target: pass"
            " AdadeltaState(**state)."
        )
    else:
        advice = (
            "Call update(grads, state, params), in this order, with the state of this optimizer."
        )
    raise TypeError(
        f"state must be the AdadeltaState that init returns; got a {type(state).__name__}. {advice}"
    )


def is_adadelta_state(part: Any) -> bool:
    """Returns whether a part of an optimizer's state is an :class:`.AdadeltaState`."""
    return isinstance(part, AdadeltaState)


def has_state_fields(node: Any) -> bool:
    """Returns whether a node of a tree is the state of an Adadelta, in whatever container.

    Frameworks and checkpoints turn a named tuple into a mapping, and leave out a field that is
    None. Another optimizer may have parameters with the names of the fields, but its averages of
    them are floats, and the count is an integer.
    """
    if isinstance(node, AdadeltaState | optax.ScaleByAdaDeltaState):
        return True
    names = node if isinstance(node, Mapping) else getattr(node, "_fields", ())
    if not {"count", "e_g", "e_x"} <= set(names) <= set(AdadeltaState._fields):
        return False
    count = node["count"] if isinstance(node, Mapping) else node.count
    return all(jnp.issubdtype(dtype_of(leaf), jnp.integer) for leaf in jax.tree.leaves(count))


def find_state(state: Any) -> AdadeltaState:
    """Returns the one :class:`.AdadeltaState` in the state of any optimizer.

    Args:
      state: the state of an optimizer: of a chain, a mask or a wrapper, nested however deep.

    Returns:
      The :class:`.AdadeltaState` in it.

    Raises:
      ValueError: there is none, or there are several.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optax_adadelta import adadelta
      >>> from optax_adadelta.diagnostics import find_state
      >>> optimizer = optax.MultiSteps(adadelta(), every_k_schedule=4)
      >>> print(find_state(optimizer.init(jnp.ones(2))).count)
      0
    """
    found = adadelta_states(state)
    if not found:
        raise none_found(state)
    if len(found) > 1:
        paths = ", ".join(found)
        raise ValueError(f"There are {len(found)} AdadeltaStates, at {paths}; pass one of them.")
    (part,) = found.values()
    return part


def none_found(state: Any) -> ValueError:
    """Returns the error for a state without any :class:`.AdadeltaState`."""
    return ValueError(
        f"There is no AdadeltaState in {jax.tree.structure(state)}. Pass the state of an optimizer"
        " that contains adadelta or scale_by_adadelta."
    )


def adadelta_states(state: Any) -> dict[str, AdadeltaState]:
    """Returns every :class:`.AdadeltaState` in the state of an optimizer, by its path."""
    return {
        f"state{jax.tree_util.keystr(path)}": part
        for path, part in jax.tree.leaves_with_path(state, is_leaf=is_adadelta_state)
        if is_adadelta_state(part)
    }


def map_averages(
    function: Callable[[Storage, Averages], Averages], state: AdadeltaState
) -> Averages:
    """Applies `function` to the storage and the stored averages of each leaf; returns two trees."""
    e_gs, structure = jax.tree.flatten(state.e_g)
    e_xs = jax.tree.leaves(state.e_x)
    leaves = [
        function(storage, Averages(e_g, e_x))
        for storage, e_g, e_x in zip(storages_of(state), e_gs, e_xs, strict=True)
    ]
    return Averages(*(jax.tree.unflatten(structure, [leaf[i] for leaf in leaves]) for i in (0, 1)))


def read_averages(state: AdadeltaState) -> Averages:
    """Returns both averages as floats; in full precision they are the arrays of the state."""
    return map_averages(lambda storage, stored: storage.read(stored, state.unit), state)
