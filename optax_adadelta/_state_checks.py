"""The errors for a state of another optimizer, and for arguments in the wrong order."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from optax_adadelta._state import (
    AdadeltaState,
    adadelta_states,
    has_state_fields,
    is_adadelta_state,
)


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


def check_fields(state: AdadeltaState, *, trace: bool, relative: bool) -> None:
    """Raises an error if a state has not the fields that an optimizer needs, or others."""
    if (state.scale is not None) != relative:
        made, wanted = ("adadelta", "nadadelta") if relative else ("nadadelta", "adadelta")
        raise ValueError(
            f"This state was made by {made}, but the optimizer is {wanted}. To go on with its"
            f" averages, call convert.carry_over(state, {wanted}(...).init(params))."
        )
    if (state.trace is not None) != trace:
        was, is_ = ("without", "with") if trace else ("with", "without")
        raise ValueError(
            f"This state was made {was} momentum, but the optimizer is {is_}. To go on with its"
            " averages, call convert.carry_over(state, optimizer.init(params))."
        )
    if isinstance(state.scale, jax.Array | np.ndarray) and not isinstance(
        state.scale, jax.core.Tracer
    ):
        wrong = ~(np.isfinite(state.scale) & (np.asarray(state.scale) > 0))
        if np.any(wrong):
            raise ValueError(
                "state.scale must be positive and finite, but has"
                f" {np.asarray(state.scale)[wrong].tolist()[:3]}. A state that init makes from"
                " shapes has no scale: use it only as a target to restore a checkpoint into. To"
                " train, call init with the parameters themselves; they must be finite."
            )
