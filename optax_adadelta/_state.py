"""The state of the optimizer: how to make, check and find it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_adadelta._dtypes import dtype_of
from optax_adadelta._mismatch import check_dense
from optax_adadelta._scale import initial_scale
from optax_adadelta._serialization import exportable
from optax_adadelta._sharding import placed, placed_scalar, varying_with
from optax_adadelta._storage import Storage
from optax_adadelta._trees import unzipped
from optax_adadelta._validation import dtype_of_averages


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
      trace: the momentum of :func:`nadadelta`, a tree like ``e_g``; complex for complex parameters.
        None without momentum.
      scale: the scale of each array in :func:`nadadelta`, in the order of ``jax.tree.leaves``: one
        float32 vector. None in :func:`adadelta`.
    """

    count: jax.Array
    e_g: optax.Updates
    e_x: optax.Updates
    unit: jax.Array | None = None
    trace: optax.Updates | None = None
    scale: jax.Array | None = None


def trees_of(state: AdadeltaState) -> dict[str, optax.Updates]:
    """Returns the parts that have the structure of the parameters, by their names in errors."""
    trees = {"state.e_g": state.e_g, "state.e_x": state.e_x, "state.trace": state.trace}
    return {name: tree for name, tree in trees.items() if tree is not None}


def initial_state(
    storage: Storage, params: optax.Params, *, trace: bool = False, relative: bool = False
) -> AdadeltaState:
    """Returns the state before the first update, with averages of zero.

    `trace` says whether there is momentum, `relative` whether there is a scale for each array.
    """
    check_dense("params", params)

    def initial_trace(path: jax.tree_util.KeyPath, p: Any) -> jax.Array:
        dtype = dtype_of_averages(path, p)
        wide = np.result_type(dtype, np.complex64) if jnp.iscomplexobj(p) else dtype
        return storage.init_trace(p, wide)

    leaves, structure = jax.tree.flatten_with_path(params)
    averages = [storage.init(p, dtype_of_averages(path, p)) for path, p in leaves]
    e_g, e_x = map(structure.unflatten, unzipped(averages, 2))
    return AdadeltaState(
        count=placed_scalar(params, 0, jnp.int32),
        e_g=e_g,
        e_x=e_x,
        # A code of zero means an average of zero in any unit, so the eps need not be known yet.
        unit=placed_scalar(params, 0, jnp.float32) if storage.quantized else None,
        trace=jax.tree.map_with_path(initial_trace, params) if trace else None,
        scale=placed(params, initial_scale(params)) if relative else None,
    )


def varying_with_scalars(state: AdadeltaState, values: Mapping[str, Any]) -> AdadeltaState:
    """Returns the state with the types that updates with these hyperparameters give it.

    Inside `jax.shard_map`, a type says over which axes a value varies. `jax.lax.scan` requires a
    state whose types do not change. The count is the same on all devices, and so is the unit,
    unless eps varies.
    """
    entering = [values[name] for name in ("rho", "eps", "weight_decay")]
    if state.scale is not None:
        entering.append(jnp.sum(state.scale))

    def varying(tree, *more):
        return jax.tree.map(lambda leaf: varying_with(leaf, *entering, *more), tree)

    return state._replace(
        e_g=varying(state.e_g),
        e_x=varying(state.e_x),
        unit=None if state.unit is None else varying_with(state.unit, values["eps"]),
        trace=varying(state.trace, values.get("momentum")),
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
