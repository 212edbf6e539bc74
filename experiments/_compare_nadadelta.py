"""nadadelta as a prototype, what it could have been, and the methods that it is compared with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

SHARE, K, RHO, MOMENTUM = 5e-6, 1e-16, 0.95, 0.9


class Method(NamedTuple):
    """A method, with its usual learning rate, and with what the user writes to have it."""

    code: str
    make: Callable[..., optax.GradientTransformation]  # Of the learning rate and the steps.
    rate: float
    # What is evaluated after the training, of the state and the parameters.
    evaluated: Callable[[Any, Any], Any] = lambda state, params: params


def root_mean_squares(params):
    """Returns r of each array: its own at init, or that of the whole tree if it starts at zero."""
    leaves = jax.tree.leaves(params)
    whole = sum(jnp.sum(p**2) for p in leaves) / sum(p.size for p in leaves)
    return jax.tree.map(
        lambda p: jnp.sqrt(jnp.where(jnp.any(p != 0), jnp.mean(p**2), whole)), params
    )


def scale_by_two_eps(eps_of: Callable[[jax.Array], tuple[jax.Array, jax.Array]], rho: float):
    """Returns Adadelta with one eps beside E[dx^2] and one beside E[g^2], from each array's r."""

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return root_mean_squares(params), zeros, zeros

    def step(g, r, e_g, e_x):
        eps_x, eps_g = eps_of(r)
        e_g = rho * e_g + (1 - rho) * g**2
        ratio = (e_x + eps_x) / (e_g + eps_g)
        return jnp.sqrt(ratio) * g, e_g, rho * e_x + (1 - rho) * ratio * g**2

    def update(grads, state, params=None):
        r, e_g, e_x = state
        updates, e_g, e_x = jax.tree.transpose(
            jax.tree.structure(grads),
            jax.tree.structure((0, 0, 0)),
            jax.tree.map(step, grads, r, e_g, e_x),
        )
        return updates, (r, e_g, e_x)

    return optax.GradientTransformation(init, update)


def nadadelta(rate, share=SHARE, k=K, rho=RHO, momentum=MOMENTUM, nesterov=True):
    """Returns form A, in which every array is measured in its own r."""
    return optax.chain(
        scale_by_two_eps(lambda r: (share * r**2, k / r**2), rho),
        optax.trace(momentum, nesterov=nesterov),
        optax.scale_by_learning_rate(rate),
    )


def one_eps_per_array(rate, share=2e-5):
    """Returns form B, with one eps per array."""
    return optax.chain(
        scale_by_two_eps(lambda r: (share * r**2, share * r**2), RHO),
        optax.trace(MOMENTUM, nesterov=True),
        optax.scale_by_learning_rate(rate),
    )


def late_fall(rate, steps):
    """Returns the schedule that falls to zero, evenly, over the second half of the training."""
    return optax.linear_schedule(rate, 0.0, steps // 2, transition_begin=steps // 2)


def warm_up(rate, steps):
    """Returns the schedule that rises for a twentieth of the training and then falls evenly."""
    rise = steps // 20
    rising = optax.linear_schedule(0.0, rate, rise)
    falling = optax.linear_schedule(rate, 0.0, steps - rise)
    return optax.join_schedules([rising, falling], [rise])


def warm_up_cosine(rate, steps):
    """Returns the schedule that rises for a twentieth of the training and then falls as a cosine."""
    rise = steps // 20
    rising = optax.linear_schedule(0.0, rate, rise)
    falling = optax.cosine_decay_schedule(rate, steps - rise)
    return optax.join_schedules([rising, falling], [rise])


def growing_average(optimizer):
    """Returns the optimizer with an average of about the last tenth of all steps so far."""

    def init(params):
        return optimizer.init(params), params, jnp.zeros((), jnp.int32)

    def update(grads, state, params):
        state, average, step = state
        updates, state = optimizer.update(grads, state, params)
        new_params = optax.apply_updates(params, updates)
        average = optax.incremental_update(new_params, average, 10 / (step + 10))
        return updates, (state, average, step + 1)

    return optax.GradientTransformation(init, update)


def momentum_sgd(rate, steps):
    """Returns gradient descent with momentum and the late fall."""
    return optax.sgd(late_fall(rate, steps), momentum=0.9)


SGD = Method("sgd(late_fall(0.1, steps), momentum=0.9)", momentum_sgd, 0.1)
SGD_CLIPPED = Method(
    "chain(clip_by_global_norm(1.0), sgd(late_fall(0.1, steps), momentum=0.9))",
    lambda rate, steps: optax.chain(optax.clip_by_global_norm(1.0), momentum_sgd(rate, steps)),
    0.1,
)
NADAM = Method(
    "nadam(late_fall(1e-3, steps))",
    lambda rate, steps: optax.nadam(late_fall(rate, steps)),
    1e-3,
)


def _adamw(rate: float) -> Method:
    return Method(
        f"adamw(warm_up_cosine({rate:g}, steps))",
        lambda rate, steps: optax.adamw(warm_up_cosine(rate, steps)),
        rate,
    )


BASELINES = {
    "SGD, momentum": SGD,
    "SGD, momentum, clipped": SGD_CLIPPED,
    "NAdam": NADAM,
    "AdamW, warm-up, 1e-3": _adamw(1e-3),
    "AdamW, warm-up, 3e-3": _adamw(3e-3),
    "AdamW, warm-up, 1e-2": _adamw(1e-2),
    "Prodigy, warm-up": Method(
        "prodigy(warm_up(1.0, steps), safeguard_warmup=True)",
        lambda rate, steps: optax.contrib.prodigy(warm_up(rate, steps), safeguard_warmup=True),
        1.0,
    ),
}
BASELINES_TUNED = {
    "SGD, momentum": SGD,
    "SGD, momentum, clipped": SGD_CLIPPED,
    "NAdam": NADAM,
}


def known(rate=1.0, form=nadadelta, **settings) -> Method:
    """Returns the recipe for a known number of steps."""
    given = "".join(f", {name}={value!r}" for name, value in settings.items())
    return Method(
        f"{form.__name__}(late_fall({rate:g}, steps){given})",
        lambda rate, steps: form(late_fall(rate, steps), **settings),
        rate,
    )


def unknown(rate=1.0, form=nadadelta, **settings) -> Method:
    """Returns the recipe for an unknown number of steps."""
    given = "".join(f", {name}={value!r}" for name, value in settings.items())
    return Method(
        f"growing_average({form.__name__}({rate:g}{given}))",
        lambda rate, steps: growing_average(form(rate, **settings)),
        rate,
        lambda state, params: state[1],
    )


# With A, a rate times s is the same as a share times s^2, so these are also shares of 5e-6 s^2.
CANDIDATES = {
    **{f"A, rate {rate:g}": known(rate) for rate in (0.5, 1, 1.414, 2, 2.828, 4)},
    **{
        f"A, k {k:g}, rate {rate:g}": known(rate, k=k)
        for k in (1e-12, 1e-9, 1e-8, 1e-7)
        for rate in (1, 1.414, 2, 2.828, 4)
    },
    **{
        f"B, share {share:g}, rate {rate:g}": known(rate, one_eps_per_array, share=share)
        for share in (5e-6, 2e-5)
        for rate in (1, 2)
    },
    **{f"A, averaged, rate {rate:g}": unknown(rate) for rate in (0.5, 1, 2)},
}
