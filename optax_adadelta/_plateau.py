"""Lowers eps when a validation metric has stopped improving."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_adadelta._best import chosen, copied
from optax_adadelta._dtypes import dtype_of
from optax_adadelta._hyperparameters import is_real, known, number
from optax_adadelta._injected import adadelta_paths, injected_eps, is_inside, is_scheduled, path_of
from optax_adadelta._serialization import exportable
from optax_adadelta._sharding import placed_scalar


@exportable("optax_adadelta.PlateauState")
class PlateauState(NamedTuple):
    """The state of :func:`reduce_eps_on_plateau`.

    Attributes:
      best_value: the best value of the metric so far, a float scalar. Infinite before the first.
      plateau_count: the number of values since the last improvement or reduction, an int32 scalar.
      cooldown_count: how many of the next values are ignored, an int32 scalar.
      best: a copy of the tree that had the best value; None without ``restore_best``.
    """

    best_value: jax.Array
    plateau_count: jax.Array
    cooldown_count: jax.Array
    best: Any = None


def reduce_eps_on_plateau(
    factor: jax.typing.ArrayLike = 0.01,
    patience: int = 1,
    *,
    cooldown: int = 0,
    rtol: jax.typing.ArrayLike = 0.0,
    atol: jax.typing.ArrayLike = 0.0,
    min_eps: jax.typing.ArrayLike = 1e-12,
    mode: Literal["min", "max"] = "min",
    restore_best: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies eps by ``factor`` when a validation metric has stopped improving.

    .. math::
        \epsilon \leftarrow \min(\epsilon, \max(f \epsilon, \epsilon_{\min}))

    It belongs outside the optimizer, as Optax's tutorial uses
    :func:`optax.contrib.reduce_on_plateau`: call ``update`` once per validation, with the
    parameters and the state of an optimizer made by :func:`optax.inject_hyperparams`. The eps is in
    that state, so a new eps compiles nothing again. The defaults are those of ESPnet's recipes.

    A value is an improvement if it is better than the best one so far by more than
    ``rtol * abs(best) + atol``, for negative metrics too. NaN is never an improvement.

    Args:
      factor: :math:`f`, above 0 and below 1.
      patience: how many values in a row must be no improvement before eps is reduced, at least 1.
        With 1, the first value that is no improvement reduces it. In torch that is a patience of 0.
      cooldown: how many values after a reduction are ignored if they are no improvement.
      rtol: the share of the best value that an improvement must exceed, from 0 to 1.
      atol: the amount that an improvement must exceed in addition, at least 0.
      min_eps: :math:`\epsilon_{\min}`, positive. Quantized state needs at least 1e-12.
      mode: ``"min"`` for a metric that should fall, such as a loss; ``"max"`` for one that should
        rise, such as an accuracy.
      restore_best: whether a reduction goes back to the tree that had the best value. Only the eps
        is then the new one. If every eps is at ``min_eps`` already, nothing goes back. It takes
        memory for one copy of the tree, which is at the end the best of the run.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs`. Its ``init(tree)`` and its ``update(tree,
      state, value=metric)`` take any tree that contains the optimizer's state; with
      ``restore_best`` it should contain the parameters too. ``init`` returns a
      :class:`PlateauState`. ``update`` returns the tree, in which each injected ``eps`` of an
      Adadelta may be smaller and keeps its dtype, and the next :class:`PlateauState`. Each eps and
      each array of the :class:`PlateauState` is a new array, so the next step may donate the tree;
      with ``restore_best``, so is each array of the tree. A Python number may become an array.
      Functions and other leaves of a whole model stay as they are.

    Raises:
      TypeError: an argument or ``value`` is not a real number.
      ValueError: an argument is out of its range; ``value`` is not a scalar; the tree has no
        injected ``eps``, or one from a schedule, or one whose dtype turns ``min_eps`` into zero; or
        the tree does not match the one that ``init`` got.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optax_adadelta import adadelta, reduce_eps_on_plateau
      >>> optimizer = optax.inject_hyperparams(adadelta)(eps=1e-8)
      >>> params = jnp.array([3.0, -2.0])
      >>> state = optimizer.init(params)
      >>> plateau = reduce_eps_on_plateau()
      >>> watch = plateau.init((params, state))
      >>> for loss in (0.7, 0.5, 0.6, 0.4):  # after each validation
      ...     (params, state), watch = plateau.update((params, state), watch, value=loss)
      ...     print(f"{state.hyperparams['eps']:.0e}")
      1e-08
      1e-08
      1e-10
      1e-10

    References:
      Watanabe et al., `ESPnet: End-to-End Speech Processing Toolkit
      <https://arxiv.org/abs/1804.00015>`_, 2018.
    """
    if mode not in ("min", "max"):
        raise ValueError(f"mode must be 'min' or 'max'; got {mode!r}.")
    rule = _Rule(
        sign=np.float32(1 if mode == "min" else -1),
        factor=number("factor", factor),
        patience=_count("patience", patience, 1),
        cooldown=_count("cooldown", cooldown, 0),
        rtol=number("rtol", rtol),
        atol=number("atol", atol),
        min_eps=number("min_eps", min_eps),
    )
    smallest = known(rule.min_eps)

    def init(params):
        _places(params, smallest)
        return PlateauState(
            placed_scalar(params, rule.sign * np.inf, jnp.result_type(float)),
            placed_scalar(params, 0, jnp.int32),
            placed_scalar(params, 0, jnp.int32),
            copied(params) if restore_best else None,
        )

    def update(updates, state, params=None, *, value=None, **extra_args):
        del params, extra_args
        places = _places(updates, smallest)
        given = jax.tree.leaves(updates)
        eps = [jnp.asarray(given[i], dtype_of(given[i])) for i in places]
        turn = _next(eps, state._replace(best=None), _checked(value), rule)
        best = None
        if restore_best:
            updates, best = chosen(updates, state.best, turn.improved, turn.reduced)
        leaves, structure = jax.tree.flatten(updates)
        for i, new in zip(places, turn.eps, strict=True):
            leaves[i] = new
        return jax.tree.unflatten(structure, leaves), turn.state._replace(best=best)

    return optax.GradientTransformationExtraArgs(init, update)


class _Rule(NamedTuple):
    sign: Any  # 1 for a metric that should fall, -1 for one that should rise
    factor: Any
    patience: Any
    cooldown: Any
    rtol: Any
    atol: Any
    min_eps: Any


class _Turn(NamedTuple):
    """What follows from one value."""

    eps: list[jax.Array]
    state: PlateauState
    improved: jax.Array
    reduced: jax.Array


@jax.jit
def _next(eps: Sequence[jax.Array], state: PlateauState, value: Any, rule: _Rule) -> _Turn:
    dtype = state.best_value.dtype
    sign, rtol, atol = (jnp.asarray(x).astype(dtype) for x in (rule.sign, rule.rtol, rule.atol))
    value, best = sign * jnp.asarray(value).astype(dtype), sign * state.best_value
    # Before the first value the best is infinite, and so would be the margin.
    margin = jnp.where(jnp.isfinite(best), rtol * jnp.abs(best) + atol, jnp.zeros_like(best))
    improved = value < best - margin

    waiting = state.cooldown_count > 0
    zero = jnp.zeros_like(state.plateau_count)
    count = jnp.where(improved | waiting, zero, state.plateau_count + 1)
    due = count >= rule.patience
    cooldown = jnp.where(due, rule.cooldown, jnp.maximum(state.cooldown_count - 1, zero))

    def lower(e):
        least = jnp.asarray(rule.min_eps).astype(e.dtype)
        lowered = jnp.maximum(jnp.asarray(rule.factor).astype(e.dtype) * e, least)
        return jnp.where(due, jnp.minimum(e, lowered), e)

    lowered = [lower(e) for e in eps]
    changed = [jnp.any(new < e) for new, e in zip(lowered, eps, strict=True)]
    after = PlateauState(
        sign * jnp.where(improved, value, best), jnp.where(due, zero, count), cooldown
    )
    return _Turn(lowered, after, improved, jnp.any(jnp.stack(changed)))


def _places(tree: Any, min_eps: float | None) -> list[int]:
    """Returns the indices of the leaves that are the eps of an Adadelta, having checked them."""
    leaves = jax.tree.leaves_with_path(tree)
    paths = [path_of(keys) for keys, _ in leaves]
    ours = adadelta_paths(tree)
    states = {
        state: i
        for state, i in injected_eps(paths).items()
        if any(is_inside(path, state) for path in ours)
    }
    if not states:
        raise ValueError(
            "The tree has no eps to reduce. Make the optimizer with"
            " optax.inject_hyperparams(adadelta)(eps=1e-8), and pass its state, alone or with the"
            " parameters: update((params, state), plateau_state, value=metric). Call it yourself"
            " after each validation; it does not work in an optax.chain."
        )
    for state, i in states.items():
        name, dtype = jax.tree_util.keystr(leaves[i][0]), dtype_of(leaves[i][1])
        if is_scheduled(paths, state):
            raise ValueError(
                f"The eps at {name} comes from a schedule, which would overwrite every reduction."
                " Build the optimizer with a number."
            )
        if min_eps is not None and not dtype.type(min_eps) > 0:
            raise ValueError(
                f"min_eps is {min_eps:g}, which is zero in {dtype}, the dtype of the eps at {name}."
                " Call optax.inject_hyperparams with hyperparam_dtype=jnp.float32."
            )
    return list(states.values())


def _count(name: str, value: Any, least: int) -> np.int32:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer; got {value!r} of type {type(value).__name__}.")
    if not least <= value < 2**31:
        raise ValueError(f"{name} must be at least {least} and below 2**31; got {value}.")
    return np.int32(value)


def _checked(value: Any) -> Any:
    if not is_real(value):
        raise TypeError(f"value must be a real number, the validation metric; got {value!r}.")
    if np.shape(value):
        raise ValueError(
            f"value must be a scalar; got an array of shape {np.shape(value)}. Pass the mean over"
            " the validation set; for one value per model, use jax.vmap."
        )
    return value
