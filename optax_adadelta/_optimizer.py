"""The public transformations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from optax_adadelta._dtypes import dtypes_of_updates
from optax_adadelta._hyperparameters import (
    at_step,
    checked_state_bits,
    described,
    known,
    number,
    number_or_schedule,
    operands,
    seed_scalar,
    warn_if_mixed_up,
)
from optax_adadelta._ranges import SCHEDULABLE
from optax_adadelta._sharding import has_manual_axes
from optax_adadelta._state import check_arguments, initial_state, varying_with_scalars
from optax_adadelta._storage import storage_with
from optax_adadelta._update import update_tree
from optax_adadelta._validation import check_structure, chosen_leaves, parameters_of


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

    Each gradient is multiplied by a ratio of two running averages: the root mean square of the past
    updates of its coordinate over the root mean square of its past gradients.

    .. math::
        \begin{aligned}
        g'_t &= g_t + \lambda \theta_{t-1} \\
        E[g^2]_t &= \rho E[g^2]_{t-1} + (1 - \rho) |g'_t|^2 \\
        \Delta x_t &= \frac{\sqrt{E[\Delta x^2]_{t-1} + \epsilon}}
                          {\sqrt{E[g^2]_t + \epsilon}} g'_t \\
        E[\Delta x^2]_t &= \rho E[\Delta x^2]_{t-1} + (1 - \rho) |\Delta x_t|^2 \\
        \theta_t &= \theta_{t-1} - \alpha \Delta x_t
        \end{aligned}

    where :math:`\theta` are the parameters, :math:`\alpha` is the learning rate,
    :math:`\lambda` is the weight decay, and both averages start at zero. The arithmetic and both
    averages are float64 for float64 and complex128 parameters, and float32 for all others. A
    gradient whose square would overflow is clamped to the largest value whose square is finite, so
    the averages stay finite. A NaN stays in its own coordinate.

    ``learning_rate``, ``rho``, ``eps`` and ``weight_decay`` are each a number, a scalar array, a
    traced scalar, or a schedule: a function of the number of updates made so far.

    Args:
      learning_rate: :math:`\alpha`, at least 0; None means 1.0, the paper's algorithm. It
        scales the updates and never enters the averages.
      rho: :math:`\rho`, the share of the averages that each step keeps, at least 0 and below 1.
      eps: :math:`\epsilon`, positive. Sets the size of the first steps (at most
        ``sqrt(eps / (1 - rho))``) and keeps both square roots away from zero.
      weight_decay: :math:`\lambda`, at least 0. It is L2 decay, which is added to the gradient.
      weight_decay_mask: which parameters decay: a tree of bools that is a prefix of the tree of
        parameters, or a function that takes the whole tree of parameters and returns one. None
        means all. Under :func:`optax.inject_hyperparams`, name a function in ``static_args``.
      state_bits: the bits of each average: None for full precision (8 bytes per parameter for
        both), 16 (4 bytes) or 8 (2 bytes). 16 and 8 require ``rho >= 0.5`` and ``eps >= 1e-12``.
        Plain numbers are checked; an ``eps`` from a schedule or traced is raised to 1e-12.
      seed: a plain integer, not a PRNG key, for the rounding with 16 or 8 bits. Any value works
        equally well.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs`. Its ``init(params)`` takes a tree of
      floating-point or complex arrays, or of :class:`jax.ShapeDtypeStruct`, and returns an
      :class:`AdadeltaState`. Its ``update(grads, state, params=None)`` returns the updates to
      add to the parameters, and the next state. With ``params``, each update has the wider dtype
      of the gradient and the parameter (the parameter's if they are equally wide), otherwise the
      gradient's. ``params`` are required only for weight decay. Where ``grads`` has None,
      ``params`` may have anything, so you can pass a whole model. With complex parameters, pass the
      conjugate of the gradients, as for any optimizer in JAX: ``jax.tree.map(jnp.conj, grads)``.

    Warns:
      UserWarning: ``rho`` and ``eps`` look swapped, or look like Adam's betas.

    Raises:
      TypeError: a hyperparameter is not a real number; a parameter or gradient is not an array of
        floating-point or complex numbers; the mask contains something else than bools; or the state
        is not of this optimizer, was cast to another dtype, or is an average of quantized states.
      ValueError: a hyperparameter is out of its range or not a scalar; trees or shapes do not
        match; or there is weight decay, but no ``params``. The range is not checked if a
        hyperparameter is traced, or an array that a schedule returns: no step waits for its value.
      NotImplementedError: a derivative is taken through averages in 16 or 8 bits.

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
        "adadelta", -1.0, learning_rate, rho, eps, weight_decay, weight_decay_mask, state_bits, seed
    )


def scale_by_adadelta(
    rho: optax.ScalarOrSchedule = 0.95,
    eps: optax.ScalarOrSchedule = 1e-6,
    *,
    state_bits: int | None = None,
    seed: int = 0,
) -> optax.GradientTransformation:
    r"""Rescales gradients by Adadelta's rule and keeps their sign, for use in a chain.

    .. math::
        \begin{aligned}
        E[g^2]_t &= \rho E[g^2]_{t-1} + (1 - \rho) |g_t|^2 \\
        \Delta x_t &= \frac{\sqrt{E[\Delta x^2]_{t-1} + \epsilon}}
                          {\sqrt{E[g^2]_t + \epsilon}} g_t \\
        E[\Delta x^2]_t &= \rho E[\Delta x^2]_{t-1} + (1 - \rho) |\Delta x_t|^2
        \end{aligned}

    To descend, put :func:`optax.scale_by_learning_rate` after it, which flips the sign, as with
    Optax's other ``scale_by`` transformations.

    Args:
      rho: :math:`\rho`, the share of the averages that each step keeps, at least 0 and below 1: a
        number, a scalar array, a traced scalar, or a schedule, as for :func:`adadelta`.
      eps: :math:`\epsilon`, positive: a number, a scalar array, a traced scalar, or a schedule.
      state_bits: as for :func:`adadelta`.
      seed: as for :func:`adadelta`.

    Returns:
      A :class:`optax.GradientTransformation` whose state is an :class:`AdadeltaState`. Its
      ``update`` returns :math:`\Delta x`, with shapes and dtypes as for :func:`adadelta`.

    Raises:
      TypeError: as for :func:`adadelta`.
      ValueError: as for :func:`adadelta`.
      NotImplementedError: as for :func:`adadelta`.

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
    return _transformation("scale_by_adadelta", 1.0, 1.0, rho, eps, 0.0, None, state_bits, seed)


def _transformation(
    name, sign, learning_rate, rho, eps, weight_decay, weight_decay_mask, state_bits, seed
):
    learning_rate = number_or_schedule("learning_rate", learning_rate)
    rho = number_or_schedule("rho", rho)
    eps = number_or_schedule("eps", eps)
    weight_decay = number_or_schedule("weight_decay", weight_decay)
    warn_if_mixed_up(learning_rate, rho, eps)
    decays = known(weight_decay) != 0.0
    storage = storage_with(checked_state_bits(state_bits, rho, eps))
    seed = seed_scalar(seed)

    def init(params: optax.Params) -> Any:
        # An array may not have been computed yet when the optimizer was built.
        given = (learning_rate, rho, eps, weight_decay)
        for key, value in zip(SCHEDULABLE, given, strict=True):
            if isinstance(value, jax.Array):
                number(key, value, wait=True)
        checked_state_bits(state_bits, rho, eps, wait=True)
        state = initial_state(storage, params)
        if not has_manual_axes():
            return state
        return varying_with_scalars(
            state,
            at_step("rho", rho, state.count),
            at_step("eps", eps, state.count),
            at_step("weight_decay", weight_decay, state.count),
        )

    def update(updates, state, params=None, **extra_args):
        del extra_args
        check_arguments(updates, state)
        check_structure(updates, state.e_g, "state.e_g")
        check_structure(updates, state.e_x, "state.e_x")
        count = state.count
        hyper = operands(
            sign,
            at_step("learning_rate", learning_rate, count),
            at_step("rho", rho, count),
            at_step("eps", eps, count),
            at_step("weight_decay", weight_decay, count),
        )
        decayed = dtypes = None
        if params is not None:
            ps = parameters_of(updates, params)
            dtypes = dtypes_of_updates(updates, ps)
            if decays:
                decayed = ps
                if weight_decay_mask is not None:
                    chosen = chosen_leaves(updates, params, weight_decay_mask)
                    decayed = [p if c else None for p, c in zip(ps, chosen, strict=True)]
        elif known(weight_decay, wait=True) != 0.0:
            raise ValueError(
                "params is None, but weight decay needs the parameters: call update(grads, state,"
                " params). A weight_decay from a schedule or traced needs them even if it is zero."
            )
        return update_tree(updates, state, decayed, dtypes, hyper, seed)

    # The repr of a transformation shows nothing but these names.
    call = described(
        name,
        learning_rate=learning_rate,
        rho=rho,
        eps=eps,
        weight_decay=weight_decay,
        state_bits=state_bits,
    )
    init.__qualname__, update.__qualname__ = f"{call}.init", f"{call}.update"
    return optax.GradientTransformationExtraArgs(init, update)
