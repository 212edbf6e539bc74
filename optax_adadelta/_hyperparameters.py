"""Checks the hyperparameters that the user gives.

A number becomes a checked Python float. A JAX array is checked and stays an array, because
libraries that trace an optimizer's closure trace it again for every new Python number. A schedule
is evaluated at every step, and the numbers that it returns are checked. The value of an array is
never waited for in a step: arrays from schedules are used unchecked, as traced values are, and an
array that is not computed yet when the optimizer is built is checked in `init`.
"""

import inspect
import math
import numbers
import warnings
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_adadelta._dtypes import whole_count
from optax_adadelta._ranges import RANGES, SCHEDULABLE
from optax_adadelta._storage import Storage

Value: TypeAlias = float | jax.Array
"""A checked number, a checked scalar array or a traced scalar."""


_ARRAYS = (jax.Array, np.ndarray, np.generic)


def number_or_schedule(name: str, value: optax.ScalarOrSchedule) -> Value | optax.Schedule:
    """Checks and returns a schedule, which must take a count, or what `number` takes."""
    if not callable(value):
        return number(name, value)
    # A partial function may hold a table of values. Other callable trees with matrices are models.
    if not isinstance(value, jax.tree_util.Partial) and any(
        np.ndim(leaf) >= 2 for leaf in jax.tree.leaves(value) if hasattr(leaf, "dtype")
    ):
        raise TypeError(_tree_given(name, value))
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # a builtin may have no signature
        return value
    try:
        signature.bind(0)
    except TypeError as error:
        raise TypeError(
            f"{name} is a function, so it must be a schedule that takes the step count; got one"
            f" with the signature {signature}. Use lambda count: ..., or pass a number."
        ) from error
    return value


def at_step(name: str, value: Value | optax.Schedule, count: jax.typing.ArrayLike) -> Value:
    """Returns the value of a hyperparameter at step `count`."""
    if not callable(value):
        return value
    try:
        now = value(whole_count(count))
    except Exception as error:
        error.add_note(
            f"{name} was called with the step count, as a schedule, because it is a"
            f" {type(value).__name__}. If it is a model, pass its parameters to init instead."
        )
        raise
    return number(name, now, scheduled=True)


def number(name: str, value: Any, *, scheduled: bool = False) -> Value:
    """Checks a number and returns it: a JAX array as it is, anything else as a float.

    The range of a value that is not `known` cannot be checked. A `scheduled` value may be zero,
    because a schedule that decays gets there; the equation then raises an eps of zero. A
    `scheduled` array is not read.
    """
    if not is_real(value):
        if value is not None and not jax.tree_util.all_leaves([value]):
            raise TypeError(_tree_given(name, value))
        expected = "a real number, a scalar array or a schedule (a function of the step count)"
        if name not in SCHEDULABLE:
            expected = "a real number or a scalar array"
        raise TypeError(
            f"{name} must be {expected}; got {value!r} of type {type(value).__name__}."
            f"{_cast_hint(value)}"
        )
    if np.shape(value):
        raise ValueError(
            f"{name} must be a scalar; got an array of shape {np.shape(value)}. Pass parameters to"
            " init. For one optimizer per value, use jax.vmap; for one value per part of the"
            " model, use optax.multi_transform."
        )
    if scheduled and isinstance(value, jax.Array):
        return value
    concrete = known(value)
    if concrete is None:
        return value
    allowed = RANGES[name]
    if not (allowed.holds(concrete) or (scheduled and concrete == 0)):
        raise ValueError(
            f"{name} must be {allowed.words}; got {concrete}. {allowed.remedy}{_cast_hint(value)}"
        )
    return value if isinstance(value, jax.Array) else concrete


def is_real(value: Any) -> bool:
    """Returns whether a value is a real number or an array of real numbers."""
    if isinstance(value, _ARRAYS):
        return jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def known(value: Any, *, wait: bool = False) -> float | None:
    """Returns a value as a float, or None if it is a schedule or traced.

    Without `wait`, the value of an array that is still being computed is not known either. Such an
    array comes from `optax.inject_hyperparams` with schedules, which builds an optimizer at every
    step: waiting would make each step wait for the one before.
    """
    if callable(value) or isinstance(value, jax.core.Tracer):
        return None
    # jax.Array does not declare this method, but the arrays of jaxlib have it.
    is_ready = getattr(value, "is_ready", None)
    if is_ready is not None and not wait and not is_ready():
        return None
    try:
        return float(value)
    except OverflowError:  # a Python integer too large for a float
        return math.inf


def described(name: str, **hyperparameters: Any) -> str:
    """Returns the call that makes an optimizer, with names and types for schedules and arrays."""

    def word(value):
        if callable(value):
            return getattr(value, "__name__", type(value).__name__)
        if isinstance(value, jax.Array):
            return type(value).__name__
        return f"{value:g}" if isinstance(value, float) else repr(value)

    return f"{name}({', '.join(f'{key}={word(v)}' for key, v in hyperparameters.items())})"


def warn_if_mixed_up(
    name: str, values: Mapping[str, Value | optax.Schedule], *, relative: bool
) -> None:
    """Warns if the numbers are allowed, but look as if they were meant for something else.

    It is not an error, because a search over hyperparameters may try such numbers.
    """
    rate, rho, eps = (known(values[key]) for key in ("learning_rate", "rho", "eps"))
    if rho is None or eps is None:
        return
    if 0.1 < eps < 1 and rho < 0.1:
        guess = "Are rho and eps swapped?"
    elif 0.9 <= eps < 1 and rate is not None and rate <= 0.1:
        guess = "Is this Adam's order? Adadelta has no second beta."
    elif relative and eps >= 1e-2:
        guess = "In nadadelta, eps is a share of the mean square of each array, not absolute."
    else:
        return
    order = "rho, eps" if name.startswith("scale_by") else "learning_rate, rho, eps"
    usual = "1e-6 and 1e-4" if relative else "1e-8 and 1e-4"
    warnings.warn(
        f"rho is {rho:g} and eps is {eps:g}. {guess} The order of the arguments is"
        f" {name}({order}); eps is usually between {usual}.",
        UserWarning,
        stacklevel=4,
    )


def check_limits(values: Mapping[str, Value | optax.Schedule], storage: Storage) -> None:
    """Raises an error if a storage is too coarse for these values."""
    for name, least in (("rho", storage.least_rho), ("eps", storage.least_eps)):
        concrete = known(values[name])
        # A float32 scalar can lie below the number that it was made from.
        if concrete is not None and concrete < least * (1 - 1e-6):
            raise ValueError(
                f"{name} must be at least {least:g} with state_bits={storage.bits}, whose codes are"
                f" too coarse for less; got {concrete}. Use a larger {name}, or state_bits=None."
            )


def seed_scalar(seed: Any) -> jax.Array | np.uint32:
    """Returns the seed as the uint32 scalar that the compiled update takes."""
    if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jnp.integer) and not seed.shape:
        return seed.astype(jnp.uint32)
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise TypeError(
            f"seed must be an integer; got {seed!r} of type {type(seed).__name__}. It is a plain"
            " number, not a PRNG key: any integer works equally well."
        )
    return np.uint32(int(seed) % 2**32)


def _tree_given(name: str, value: Any) -> str:
    leaves = len(jax.tree.leaves(value))
    return (
        f"{name} must be a number or a schedule; got a {type(value).__name__} with {leaves} leaves."
        " Pass parameters to init: optimizer = adadelta(); state = optimizer.init(params)."
    )


def _cast_hint(value: Any) -> str:
    dtype = value.dtype if isinstance(value, _ARRAYS) else np.dtype(float)
    if dtype.itemsize >= 4 and not jnp.issubdtype(dtype, jnp.complexfloating):
        return ""
    return (
        f" Its dtype is {dtype}. If optax.inject_hyperparams cast it to the dtype of the model,"
        " call that with hyperparam_dtype=jnp.float32."
    )
