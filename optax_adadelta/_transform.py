"""The public transformations, their state, and the pass over the tree."""

import functools
from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_adadelta._equation import Scalar, equation
from optax_adadelta._hyperparameters import (
    Operands,
    at_step,
    bits_or_none,
    number_or_schedule,
    operands,
    seed_number,
)
from optax_adadelta._placement import count_sharding, zeros_like
from optax_adadelta._rounding import dithers
from optax_adadelta._storage import Averages, advance, is_low, zeros
from optax_adadelta._trees import (
    arithmetic_dtype,
    check_leaves,
    chosen_leaves,
    inexact_dtype,
    leaves_like,
)


class AdadeltaState(NamedTuple):
    """What Adadelta carries from step to step.

    Attributes:
      count: how many updates were made, an int32 scalar that stops at its maximum.
      e_g: E[g^2], the running average of the squared gradients; the structure and shapes of
        the parameters, float64 for float64 and complex128 parameters, else float32. With
        ``state_bits``, each array is a small tree instead, of codes and of what they mean.
      e_x: E[dx^2], the running average of the squared updates, alike.
    """

    count: jax.typing.ArrayLike
    e_g: optax.Updates
    e_x: optax.Updates


def adadelta(
    learning_rate: optax.ScalarOrSchedule | None = 1.0,
    rho: optax.ScalarOrSchedule = 0.95,
    eps: optax.ScalarOrSchedule = 1e-6,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any | Callable[[optax.Params], Any] | None = None,
    *,
    state_bits: int | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""The Adadelta optimizer: steps in the units of the parameters, no learning rate to tune.

    Each coordinate moves by the root mean square of its past updates over that of its past
    gradients,

    .. math::
        \begin{align*}
        g'_t &= g_t + \lambda \theta_{t-1} \\
        E[g^2]_t &= \rho E[g^2]_{t-1} + (1 - \rho) |g'_t|^2 \\
        \Delta x_t &= \frac{\sqrt{E[\Delta x^2]_{t-1} + \epsilon}}
                          {\sqrt{E[g^2]_t + \epsilon}} g'_t \\
        E[\Delta x^2]_t &= \rho E[\Delta x^2]_{t-1} + (1 - \rho) |\Delta x_t|^2 \\
        \theta_t &= \theta_{t-1} - \alpha \Delta x_t
        \end{align*}

    where :math:`\theta` are the parameters, :math:`\alpha` is the learning rate,
    :math:`\lambda` the weight decay, and both averages start at zero. The arithmetic and both
    averages are float64 for float64 and complex128 parameters, and float32 for all others. A
    gradient too large to square is held to the largest that is not, so that the averages stay
    finite. A NaN stays in its own coordinate.

    Args:
      learning_rate: :math:`\alpha`, at least 0; None means 1.0, the paper's algorithm. It
        scales the updates and never enters the averages.
      rho: :math:`\rho`, the share that the averages keep at each step, at least 0 and below 1.
      eps: :math:`\epsilon`, positive. It makes the first steps, of at most
        ``sqrt(eps / (1 - rho))``, and floors both roots.
      weight_decay: :math:`\lambda`, at least 0; L2, that is, added to the gradient.
      weight_decay_mask: a tree of bools that is a prefix of the parameters, or a function of
        the parameters that returns one; only leaves under True decay.

      state_bits: how the averages are kept: None in full precision, 8 bytes a parameter; 16 in
        4 bytes; 8 in about 2.1, but leaves of fewer than 4096 elements in full precision. With
        16 or 8, gradients beyond 65504 count as that, ``rho`` must be at least 0.5 and
        ``eps`` at least 1e-10.
      seed: an integer that chooses among dithers that are equally good, for 16 and 8 bits.

      The first four are each a number, a scalar array, a traced scalar, or a schedule that maps
      the count of updates made so far to a number.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs`. Its ``init(params)`` takes a tree of
      floating-point or complex arrays, or of :class:`jax.ShapeDtypeStruct`, and returns an
      :class:`AdadeltaState`. Its ``update(grads, state, params=None)`` returns the updates to
      add to the parameters, of the shapes and dtypes of ``grads``, and the next state;
      it needs ``params`` only where there is weight decay.

    Raises:
      TypeError: a hyperparameter is not a real number, a parameter or gradient not an array of
        floating-point or complex numbers, the mask not of bools, the state not of this
        optimizer or cast to another dtype.
      ValueError: a hyperparameter is out of its range or not a scalar; trees or shapes differ;
        ``params`` is missing though there is weight decay. The range of a traced hyperparameter
        cannot be checked.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optax_adadelta import adadelta
      >>> optimizer = adadelta()
      >>> params = jnp.array([3.0, -2.0])
      >>> state = optimizer.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...     loss, grads = jax.value_and_grad(lambda x: jnp.sum(x**2))(params)
      ...     updates, state = optimizer.update(grads, state, params)
      ...     return optax.apply_updates(params, updates), state, loss
      >>> for _ in range(1000):
      ...     params, state, loss = step(params, state)
      >>> print(f"{loss:.3f} after {state.count} steps")
      0.000 after 1000 steps

    References:
      Zeiler, `ADADELTA: An Adaptive Learning Rate Method
      <https://arxiv.org/abs/1212.5701>`_, 2012.
    """
    if learning_rate is None:
        learning_rate = 1.0
    return _transformation(
        -1.0, learning_rate, rho, eps, weight_decay, weight_decay_mask, state_bits, seed
    )


def scale_by_adadelta(
    rho: optax.ScalarOrSchedule = 0.95,
    eps: optax.ScalarOrSchedule = 1e-6,
    *,
    state_bits: int | None = None,
    seed: int = 0,
) -> optax.GradientTransformation:
    r"""Rescales gradients by Adadelta's rule, keeping their sign, to be chained with others.

    .. math::
        \begin{align*}
        E[g^2]_t &= \rho E[g^2]_{t-1} + (1 - \rho) |g_t|^2 \\
        \Delta x_t &= \frac{\sqrt{E[\Delta x^2]_{t-1} + \epsilon}}
                          {\sqrt{E[g^2]_t + \epsilon}} g_t \\
        E[\Delta x^2]_t &= \rho E[\Delta x^2]_{t-1} + (1 - \rho) |\Delta x_t|^2
        \end{align*}

    As with Optax's other ``scale_by`` transformations, descending takes a later
    :func:`optax.scale_by_learning_rate`, which flips the sign.

    Args:
      rho: :math:`\rho`, the share that the averages keep at each step, at least 0 and below 1;
        a number, a scalar array, a traced scalar, or a schedule, as for :func:`adadelta`.
      eps: :math:`\epsilon`, positive, alike.
      state_bits: as for :func:`adadelta`.
      seed: as for :func:`adadelta`.

    Returns:
      A :class:`optax.GradientTransformation` with an :class:`AdadeltaState`; its ``update``
      returns :math:`\Delta x`, of the shapes and dtypes of the gradients.

    Raises:
      TypeError: as :func:`adadelta`.
      ValueError: as :func:`adadelta`.

    Example:
      Adadelta with decoupled weight decay.

      >>> import jax.numpy as jnp, optax
      >>> from optax_adadelta import scale_by_adadelta
      >>> optimizer = optax.chain(
      ...     scale_by_adadelta(),
      ...     optax.add_decayed_weights(1e-4),
      ...     optax.scale_by_learning_rate(1.0),
      ... )
      >>> params = jnp.array([3.0, -2.0])
      >>> updates, state = optimizer.update(2 * params, optimizer.init(params), params)
      >>> print(updates)
      [-0.00477213  0.00467213]

    References:
      Zeiler, `ADADELTA: An Adaptive Learning Rate Method
      <https://arxiv.org/abs/1212.5701>`_, 2012.
    """
    return _transformation(1.0, 1.0, rho, eps, 0.0, None, state_bits, seed)


def _transformation(
    sign, learning_rate, rho, eps, weight_decay, weight_decay_mask, state_bits, seed
):
    learning_rate = number_or_schedule("learning_rate", learning_rate)
    rho = number_or_schedule("rho", rho)
    eps = number_or_schedule("eps", eps)
    weight_decay = number_or_schedule("weight_decay", weight_decay)
    decays = not (isinstance(weight_decay, float) and weight_decay == 0.0)
    state_bits, seed = bits_or_none(state_bits, rho, eps), seed_number(seed)

    def update(updates, state, params=None, **extra_args):
        del extra_args
        if not isinstance(state, AdadeltaState):
            raise TypeError(
                f"state must be the AdadeltaState that init returns; got {type(state).__name__}."
                " Does it belong to another optimizer, or was it restored without a target?"
            )
        count = state.count
        hyper = operands(
            sign,
            at_step("learning_rate", learning_rate, count),
            at_step("rho", rho, count),
            at_step("eps", eps, count),
            at_step("weight_decay", weight_decay, count),
        )
        if not decays:
            return _update(updates, state, None, None, hyper, seed)
        if params is None:
            raise ValueError(
                "params is None, but weight decay needs the parameters: call update(grads, state,"
                " params). A weight_decay known only later counts as decay even if it is zero."
            )
        mask = weight_decay_mask(params) if callable(weight_decay_mask) else weight_decay_mask
        decayed = None if mask is None else chosen_leaves(params, mask)
        return _update(updates, state, params, decayed, hyper, seed)

    return optax.GradientTransformationExtraArgs(functools.partial(_init, state_bits), update)


def _init(state_bits: int | None, params: optax.Params) -> AdadeltaState:
    averages = jax.tree.map_with_path(functools.partial(_zeros_for, state_bits), params)
    e_g, e_x = (
        jax.tree.map(itemgetter(i), averages, is_leaf=lambda leaf: isinstance(leaf, Averages))
        for i in range(2)
    )
    return AdadeltaState(jnp.zeros([], jnp.int32, device=count_sharding(params)), e_g, e_x)


def _zeros_for(state_bits, path, p) -> Averages:
    bits = jnp.finfo(inexact_dtype("params", path, p)).bits
    if state_bits and (low := zeros(p, state_bits)):
        return low
    dtype = jnp.float64 if bits > 32 else jnp.float32
    return Averages(*(zeros_like(p, dtype) for _ in range(2)))


# Compiled by itself so that leaves of one shape are traced once.
@jax.jit
def _update_leaf(g, e_g, e_x, p, hyper: Operands, dithers):
    dtype = hyper.eps.dtype
    kind = np.result_type(dtype, np.complex64) if jnp.iscomplexobj(g) else dtype
    wide = g.astype(kind)
    if p is not None:
        wide += hyper.weight_decay.astype(kind) * p.astype(kind)
    if is_low(e_g):
        terms: list[tuple[Scalar, jax.Array]] = [(np.float32(1), g)]
        if p is not None:
            terms.append((hyper.weight_decay.astype(jnp.float32), p))
        old = Averages(e_g, e_x)
        dx, e_g, e_x = advance(wide, terms, old, hyper.rho, hyper.eps, dithers)
    else:
        dx, e_g, e_x = equation(wide, e_g, e_x, hyper.rho, hyper.eps)
    return (hyper.scale.astype(kind) * dx).astype(g.dtype), e_g, e_x


@functools.partial(jax.jit, static_argnames="decayed")
def _update(updates, state, params, decayed: tuple[bool, ...] | None, hyper, seed):
    """The update of a tree; with `params`, they decay, or those that `decayed` says.

    The checks run when it is traced, so they cost a step nothing.
    """
    # Under jax.disable_jit, NumPy arrays and numbers come as they are.
    updates, state, params = jax.tree.map(jnp.asarray, (updates, state, params))
    gs, structure = jax.tree.flatten(updates)
    e_gs = leaves_like(updates, state.e_g, "state.e_g")
    e_xs = leaves_like(updates, state.e_x, "state.e_x")
    ps = leaves_like(updates, params, "params") if params is not None else [None] * len(gs)
    if decayed is not None:
        ps = [p if decays else None for p, decays in zip(ps, decayed, strict=True)]
    check_leaves(updates, e_gs, e_xs, ps)
    dtypes = [arithmetic_dtype(g, e_g) for g, e_g in zip(gs, e_gs, strict=True)]
    hypers = {dtype: hyper.astype(dtype) for dtype in dict.fromkeys(dtypes)}
    low = any(map(is_low, e_gs))
    dither = dithers(seed, state.count, len(gs)) if low else [None] * len(gs)
    leaves = [
        _update_leaf(g, e_g, e_x, p, hypers[dtype], d if is_low(e_g) else None)
        for g, e_g, e_x, p, dtype, d in zip(gs, e_gs, e_xs, ps, dtypes, dither, strict=True)
    ]
    updates, e_g, e_x = (
        jax.tree.unflatten(structure, [leaf[i] for leaf in leaves]) for i in range(3)
    )
    return updates, AdadeltaState(optax.safe_increment(state.count), e_g, e_x)
