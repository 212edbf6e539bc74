"""Adadelta with momentum and with an eps in the units of each array."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

from optax_adadelta._transformation import transformation


def nadadelta(
    learning_rate: optax.ScalarOrSchedule | None = 1.0,
    rho: optax.ScalarOrSchedule = 0.95,
    eps: optax.ScalarOrSchedule = 1e-5,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any | Callable[[optax.Params], Any] | None = None,
    *,
    momentum: optax.ScalarOrSchedule = 0.9,
    nesterov: bool = True,
    state_bits: int | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Adadelta with Nesterov momentum and an eps relative to each array: nothing to tune.

    ``eps`` is a share here, not the paper's absolute number: it is multiplied by the mean square of
    each array at ``init``. So a network with weights of 0.02 gets smaller first steps than one with
    weights of 0.2, and the steps of an array depend neither on its units nor on those of the loss.

    .. math::
        \begin{aligned}
        g'_t &= g_t + \lambda \theta_{t-1} \\
        E[g^2]_t &= \rho E[g^2]_{t-1} + (1 - \rho) |g'_t|^2 \\
        \Delta x_t &= \frac{\sqrt{E[\Delta x^2]_{t-1} + \epsilon r^2}}
                          {\sqrt{E[g^2]_t + k / r^2}} g'_t \\
        E[\Delta x^2]_t &= \rho E[\Delta x^2]_{t-1} + (1 - \rho) |\Delta x_t|^2 \\
        v_t &= \mu v_{t-1} + \Delta x_t \\
        \theta_t &= \theta_{t-1} - \alpha (\Delta x_t + \mu v_t)
        \end{aligned}

    where :math:`r` is the root mean square of the array at ``init``, or the geometric mean of the
    other arrays' :math:`r` if the array starts at zero, or 0.3 if everything starts at zero;
    :math:`k` is 1e-16, the square of Adam's eps; and :math:`\mu` is the momentum. This is
    :func:`adadelta` on :math:`\theta / r`, which has no unit. Everything else is as for
    :func:`adadelta`.

    Number of steps known: let the learning rate fall to zero over the last half.

    .. code-block:: python

        half = steps // 2
        optimizer = nadadelta(optax.linear_schedule(1.0, 0.0, half, transition_begin=half))

    Number of steps unknown: keep the learning rate, and evaluate an average of the parameters.

    .. code-block:: python

        optimizer = nadadelta()
        ...
        average = optax.incremental_update(params, average, 10 / (step + 10))  # after each update

    The page "Choosing settings" of the documentation says more.

    Args:
      learning_rate: :math:`\alpha`, at least 0; None means 1.0. It scales the updates and never
        enters the averages.
      rho: :math:`\rho`, the share of the averages that each step keeps, at least 0 and below 1.
      eps: :math:`\epsilon`, positive: a share of the mean square of each array.
      weight_decay: as for :func:`adadelta`.
      weight_decay_mask: as for :func:`adadelta`.
      momentum: :math:`\mu`, at least 0 and below 1. With a plain 0, no trace is kept.
      nesterov: whether the update is :math:`\Delta x_t + \mu v_t`. If False, it is :math:`v_t`.
      state_bits: the bits of each number in the state: None for full precision (12 bytes per
        parameter), 16 (6 bytes) or 8 (3 bytes). The momentum of complex parameters is always in
        full precision.
      seed: as for :func:`adadelta`.

    Returns:
      As for :func:`adadelta`. The state also has ``trace``, which is :math:`v`, and ``scale``, a
      float32 vector with the :math:`r` of each array.

    Warns:
      UserWarning: ``eps`` is 1e-2 or more; or as for :func:`adadelta`.

    Raises:
      TypeError: as for :func:`adadelta`.
      ValueError: as for :func:`adadelta`; or the state was made by :func:`adadelta`, or has a scale
        that is not positive and finite, such as that of an ``init`` from shapes.
      NotImplementedError: as for :func:`adadelta`.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optax_adadelta import nadadelta
      >>> steps = 200
      >>> optimizer = nadadelta(optax.linear_schedule(1.0, 0.0, steps // 2, steps // 2))
      >>> params = jnp.array([3.0, -2.0])
      >>> state = optimizer.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...     loss, grads = jax.value_and_grad(lambda x: jnp.sum(x**2))(params)
      ...     updates, state = optimizer.update(grads, state, params)
      ...     return optax.apply_updates(params, updates), state, loss
      >>> for _ in range(steps):
      ...     params, state, loss = step(params, state)
      >>> print(f"{loss:.3f} after {state.count} steps")
      0.000 after 200 steps

    References:
      Zeiler, `ADADELTA: An Adaptive Learning Rate Method
      <https://arxiv.org/abs/1212.5701>`_, 2012; Sutskever et al., `On the importance of
      initialization and momentum in deep learning
      <https://proceedings.mlr.press/v28/sutskever13.html>`_, 2013.
    """
    return transformation(
        "nadadelta",
        sign=-1.0,
        learning_rate=1.0 if learning_rate is None else learning_rate,
        rho=rho,
        eps=eps,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        momentum=momentum,
        nesterov=nesterov,
        relative=True,
        state_bits=state_bits,
        seed=seed,
    )


def scale_by_nadadelta(
    rho: optax.ScalarOrSchedule = 0.95,
    eps: optax.ScalarOrSchedule = 1e-5,
    *,
    momentum: optax.ScalarOrSchedule = 0.9,
    nesterov: bool = True,
    state_bits: int | None = None,
    seed: int = 0,
) -> optax.GradientTransformation:
    r"""Rescales gradients by the rule of :func:`nadadelta`, with momentum, and keeps their sign.

    .. math::
        \begin{aligned}
        E[g^2]_t &= \rho E[g^2]_{t-1} + (1 - \rho) |g_t|^2 \\
        \Delta x_t &= \frac{\sqrt{E[\Delta x^2]_{t-1} + \epsilon r^2}}
                          {\sqrt{E[g^2]_t + k / r^2}} g_t \\
        E[\Delta x^2]_t &= \rho E[\Delta x^2]_{t-1} + (1 - \rho) |\Delta x_t|^2 \\
        v_t &= \mu v_{t-1} + \Delta x_t
        \end{aligned}

    To descend, put :func:`optax.scale_by_learning_rate` after it, which flips the sign.

    Args:
      rho: as for :func:`nadadelta`.
      eps: as for :func:`nadadelta`: a share of the mean square of each array.
      momentum: as for :func:`nadadelta`.
      nesterov: as for :func:`nadadelta`.
      state_bits: as for :func:`nadadelta`.
      seed: as for :func:`nadadelta`.

    Returns:
      A :class:`optax.GradientTransformation` whose state is an :class:`AdadeltaState`. Its
      ``update`` returns :math:`\Delta x_t + \mu v_t`, or :math:`v_t` without ``nesterov``.

    Raises:
      TypeError: as for :func:`nadadelta`.
      ValueError: as for :func:`nadadelta`.
      NotImplementedError: as for :func:`nadadelta`.

    Example:
      With decoupled weight decay.

      >>> import jax.numpy as jnp, optax
      >>> from optax_adadelta import scale_by_nadadelta
      >>> optimizer = optax.chain(
      ...     scale_by_nadadelta(),
      ...     optax.add_decayed_weights(1e-4),
      ...     optax.scale_by_learning_rate(1.0),
      ... )
      >>> params = jnp.array([3.0, -2.0])
      >>> updates, state = optimizer.update(2 * params, optimizer.init(params), params)
      >>> print(f"{updates[0]:.3f} {updates[1]:.3f}")
      -0.069 0.069

    References:
      As for :func:`nadadelta`.
    """
    return transformation(
        "scale_by_nadadelta",
        sign=1.0,
        rho=rho,
        eps=eps,
        momentum=momentum,
        nesterov=nesterov,
        relative=True,
        state_bits=state_bits,
        seed=seed,
    )
