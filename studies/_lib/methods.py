"""The methods that `studies.compare` trains with, as one writes them.

A new method is an entry of UNTUNED or IDEAS. In its code, `rate` is the learning rate and `steps`
the length of the training; every name of Optax, `optax.contrib` and this file can be used.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_adadelta import adadelta, nadadelta  # noqa: F401
from studies._lib import nadadelta as forms  # noqa: F401

FACTORS = tuple(10 ** (half / 2) for half in range(-2, 5))  # Times the usual learning rate.


class Method(NamedTuple):
    """A method as one writes it, with its usual learning rate."""

    code: str
    rate: float = 1.0
    # What is evaluated after the training, of the state and the parameters.
    evaluated: Callable[[Any, Any], Any] = lambda state, params: params

    def make(self, rate: Any, steps: int) -> optax.GradientTransformation:
        """Returns the optimizer for a learning rate and the length of the training."""
        names = {**vars(optax.contrib), **vars(optax), **globals()}
        return eval(self.code, {**names, "rate": rate, "steps": steps})


cosine = optax.cosine_decay_schedule


def linear(rate, steps):
    """Returns the schedule that falls to zero over the whole training, in a line."""
    return optax.linear_schedule(rate, 0.0, steps)


def cosine_at_the_end(rate, steps):
    """Returns the schedule that falls to zero over the second half of the training."""
    half = steps // 2
    falling = optax.cosine_decay_schedule(rate, steps - half)
    return optax.join_schedules([optax.constant_schedule(rate), falling], [half])


def late_fall(rate, steps):
    """Returns the schedule that falls to zero in a line over the second half of the training."""
    return optax.linear_schedule(rate, 0.0, steps // 2, transition_begin=steps // 2)


def warm_up(rate, steps, then):
    """Returns the schedule that rises for a twentieth of the training, before another one."""
    rise = steps // 20
    rising = optax.linear_schedule(0.0, rate, rise)
    return optax.join_schedules([rising, then(rate, steps - rise)], [rise])


def warm_late_fall(rate, steps):
    """Returns `late_fall` with a rise over the first twentieth of the training."""
    half = steps // 2
    return warm_up(rate, steps, lambda r, left: optax.linear_schedule(r, 0.0, half, left - half))


def warm_start(optimizer, e_x: float = 1e-4):
    """Returns Adadelta that begins as if its last updates had had this mean square."""

    def init(params):
        state = optimizer.init(params)
        return state._replace(e_x=jax.tree.map(lambda e: jnp.full_like(e, e_x), state.e_x))

    return optax.GradientTransformation(init, optimizer.update)


def relative_eps(rate, share: float = 1e-3):
    """Returns Adadelta with eps as a share of the mean square of the first parameters."""
    optimizer = optax.inject_hyperparams(adadelta)(learning_rate=rate, eps=1e-6)

    def init(params):
        state = optimizer.init(params)
        squares = optax.tree_utils.tree_sum(jax.tree.map(jnp.square, params))
        state.hyperparams["eps"] = share * squares / sum(p.size for p in jax.tree.leaves(params))
        return state

    return optax.GradientTransformation(init, optimizer.update)


def falling_eps(rate, steps):
    """Returns Adadelta whose eps falls from 1e-4 to 1e-8."""
    return adadelta(rate, eps=optax.exponential_decay(1e-4, steps, 1e-4))


def averaged(optimizer, steps: int):
    """Returns the optimizer with an average of the parameters, over a tenth of the training."""
    return with_average(optimizer, lambda step: 10 / steps)


def growing_average(optimizer):
    """Returns the optimizer with an average over about a tenth of all steps so far."""
    return with_average(optimizer, lambda step: 10 / (step + 10))


def with_average(optimizer, share):
    """Returns the optimizer with an average to which each step adds this share of its result."""

    def init(params):
        return optimizer.init(params), params, jnp.zeros((), jnp.int32)

    def update(grads, state, params):
        state, average, step = state
        updates, state = optimizer.update(grads, state, params)
        new_params = optax.apply_updates(params, updates)
        average = optax.incremental_update(new_params, average, share(step))
        return updates, (state, average, step + 1)

    return optax.GradientTransformation(init, update)


def average_of(state, params):
    """Returns the average of `averaged` and `growing_average`."""
    return state[1]


without_schedule = optax.contrib.schedule_free_eval_params
UNTUNED = {
    "Adadelta": Method("adadelta(rate)"),
    "Adadelta, cosine": Method("adadelta(cosine(rate, steps))"),
    "Adadelta, eps 1e-4": Method("adadelta(rate, eps=1e-4)"),
    "Adam": Method("adam(rate)", 1e-3),
    "Adam, cosine": Method("adam(cosine(rate, steps))", 1e-3),
    "AdamW": Method("adamw(rate)", 1e-3),
    "RMSProp": Method("rmsprop(rate)", 1e-3),
    "Adagrad": Method("adagrad(rate)", 1e-2),
    "Prodigy": Method("prodigy(rate)"),
    "Prodigy, linear": Method("prodigy(linear(rate, steps))"),
    "D-Adaptation": Method("dadapt_adamw(rate)"),
    "DoG": Method("dog(rate)"),
    "DoWG": Method("dowg(rate)"),
    "Schedule-free AdamW": Method("schedule_free_adamw(rate)", 0.0025, without_schedule),
    "Schedule-free SGD": Method("schedule_free_sgd(rate)", 1.0, without_schedule),
    "Mechanic": Method("mechanize(adam(rate))"),
    "SGD, momentum": Method("sgd(late_fall(rate, steps), momentum=0.9)", 0.1),
    "SGD, momentum, clipped": Method(
        "chain(clip_by_global_norm(1.0), sgd(late_fall(rate, steps), momentum=0.9))", 0.1
    ),
    "NAdam": Method("nadam(late_fall(rate, steps))", 1e-3),
    "AdamW, warm-up, 1e-3": Method("adamw(warm_up(rate, steps, cosine))", 1e-3),
    "AdamW, warm-up, 3e-3": Method("adamw(warm_up(rate, steps, cosine))", 3e-3),
    "AdamW, warm-up, 1e-2": Method("adamw(warm_up(rate, steps, cosine))", 1e-2),
    "Prodigy, warm-up": Method("prodigy(warm_up(rate, steps, linear), safeguard_warmup=True)"),
}
# What could make the default better, without a setting that the user has to choose.
IDEAS = {
    "linear decay": Method("adadelta(linear(rate, steps))"),
    "cosine over the last half": Method("adadelta(cosine_at_the_end(rate, steps))"),
    "eps 1e-4, cosine": Method("adadelta(cosine(rate, steps), eps=1e-4)"),
    "warm start": Method("warm_start(adadelta(rate))"),
    "warm start, cosine": Method("warm_start(adadelta(cosine(rate, steps)))"),
    "eps 1e-4, cosine over the last half": Method(
        "adadelta(cosine_at_the_end(rate, steps), eps=1e-4)"
    ),
    "relative eps": Method("relative_eps(rate)"),
    "relative eps, cosine": Method("relative_eps(cosine(rate, steps))"),
    "falling eps": Method("falling_eps(rate, steps)"),
    "average of the last tenth": Method("averaged(adadelta(rate), steps)", 1.0, average_of),
}
# nadadelta for a known and an unknown number of steps, and the forms that came next to it.
NADADELTA = {
    "nadadelta": Method("nadadelta(late_fall(rate, steps))"),
    "nadadelta, averaged": Method("growing_average(nadadelta(rate))", 1.0, average_of),
    "nadadelta, twice the rate": Method("nadadelta(late_fall(rate, steps))", 2.0),
    "nadadelta, warm-up": Method("nadadelta(warm_late_fall(rate, steps))"),
    "nadadelta, warm-up, twice the rate": Method("nadadelta(warm_late_fall(rate, steps))", 2.0),
    "nadadelta, C": Method("forms.first_gradient(late_fall(rate, steps))"),
    "nadadelta, B": Method("forms.one_eps_per_array(late_fall(rate, steps), share=2e-5)"),
}
METHODS = {**UNTUNED, **IDEAS, **NADADELTA}
# What is trained on the tasks that nothing was chosen on.
VERIFIED = (
    *NADADELTA,
    *("Adadelta", "eps 1e-4, cosine over the last half", "Prodigy", "Prodigy, linear"),
    *("Prodigy, warm-up", "AdamW, warm-up, 1e-3", "AdamW, warm-up, 3e-3", "AdamW, warm-up, 1e-2"),
    *("SGD, momentum", "SGD, momentum, clipped", "NAdam", "Schedule-free AdamW"),
)
# Whose learning rate is chosen, too.
TUNED = ("Adadelta", "Adadelta, cosine", "Adam", "Adam, cosine", "AdamW", "RMSProp", "Adagrad")
