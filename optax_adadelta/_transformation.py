"""What the public transformations have in common."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from optax_adadelta._dtypes import dtypes_of_updates
from optax_adadelta._hyperparameters import (
    at_step,
    check_limits,
    described,
    known,
    number,
    number_or_schedule,
    seed_scalar,
    warn_if_mixed_up,
)
from optax_adadelta._operands import operands
from optax_adadelta._sharding import has_manual_axes
from optax_adadelta._state import initial_state, trees_of, varying_with_scalars
from optax_adadelta._state_checks import check_arguments, check_fields
from optax_adadelta._storage import checked_state_bits, storage_with
from optax_adadelta._update import update_tree
from optax_adadelta._validation import check_structure, chosen_leaves, parameters_of


def transformation(
    name: str,
    *,
    sign: float,
    learning_rate: optax.ScalarOrSchedule = 1.0,
    rho: optax.ScalarOrSchedule,
    eps: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any | Callable[[optax.Params], Any] | None = None,
    momentum: optax.ScalarOrSchedule = 0.0,
    nesterov: bool = False,
    relative: bool = False,
    state_bits: int | None,
    seed: int,
) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation that the public function `name` promises.

    `sign` is that of the updates. `relative` says whether eps is relative to each array.
    """
    storage = storage_with(checked_state_bits(state_bits), relative=relative)
    values = {
        key: number_or_schedule(key, value)
        for key, value in (
            ("learning_rate", learning_rate),
            ("rho", rho),
            ("eps", eps),
            ("weight_decay", weight_decay),
            ("momentum", momentum),
        )
    }
    warn_if_mixed_up(name, values, relative=relative)
    check_limits(values, storage)
    decays = known(values["weight_decay"]) != 0.0
    # Only the type may decide: under optax.inject_hyperparams the value is traced in a step.
    if isinstance(values["momentum"], float) and values["momentum"] == 0:
        del values["momentum"]
    seed_value = seed_scalar(seed)

    def init(params: optax.Params) -> Any:
        # An array may not have been computed yet when the optimizer was built.
        for key, value in jax.block_until_ready(values).items():
            if isinstance(value, jax.Array):
                number(key, value)
        check_limits(values, storage)
        state = initial_state(storage, params, trace="momentum" in values, relative=relative)
        if not has_manual_axes():
            return state
        return varying_with_scalars(state, _at(values, state.count))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        del extra_args
        check_arguments(updates, state)
        check_fields(state, trace="momentum" in values, relative=relative)
        for key, tree in trees_of(state).items():
            check_structure(updates, tree, key)
        decayed = dtypes = None
        if params is not None:
            ps = parameters_of(updates, params)
            dtypes = dtypes_of_updates(updates, ps)
            if decays:
                decayed = ps
                if weight_decay_mask is not None:
                    chosen = chosen_leaves(updates, params, weight_decay_mask)
                    decayed = [p if c else None for p, c in zip(ps, chosen, strict=True)]
        elif known(values["weight_decay"], wait=True) != 0.0:
            raise ValueError(
                "params is None, but weight decay needs the parameters: call update(grads, state,"
                " params). A weight_decay from a schedule or traced needs them even if it is zero."
            )
        scalars = operands(sign, _at(values, state.count))
        return update_tree(
            updates,
            state,
            decayed=decayed,
            dtypes=dtypes,
            operands=scalars,
            seed=seed_value,
            nesterov=nesterov,
        )

    # The repr of a transformation shows nothing but these names.
    call = described(name, **values, state_bits=state_bits)
    init.__qualname__, update.__qualname__ = f"{call}.init", f"{call}.update"
    return optax.GradientTransformationExtraArgs(init, update)


def _at(values: dict[str, Any], count: jax.typing.ArrayLike) -> dict[str, Any]:
    """Returns the values of all hyperparameters at step `count`."""
    return {name: at_step(name, value, count) for name, value in values.items()}
