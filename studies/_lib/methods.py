"""The methods that `studies.compare` trains with, as one writes them.

A new method is an entry of UNTUNED or IDEAS. In its code, `rate` is the learning rate and `steps`
the length of the training; every name of Optax, `optax.contrib` and this file can be used.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from optax_adadelta import adadelta, nadadelta  # noqa: F401

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


def growing_average(optimizer):
    """Returns the optimizer with an average over about a tenth of all steps so far."""

    def init(params):
        return optimizer.init(params), params, jnp.zeros((), jnp.int32)

    def update(grads, state, params):
        state, average, step = state
        updates, state = optimizer.update(grads, state, params)
        new_params = optax.apply_updates(params, updates)
        average = optax.incremental_update(new_params, average, 10 / (step + 10))
        return updates, (state, average, step + 1)

    return optax.GradientTransformation(init, update)


def average_of(state, params):
    """Returns the average of `growing_average`."""
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
    "eps 1e-4, cosine over the last half": Method(
        "adadelta(cosine_at_the_end(rate, steps), eps=1e-4)"
    ),
}
# nadadelta for a known and an unknown number of steps, and what came next to it.
NADADELTA = {
    "nadadelta": Method("nadadelta(late_fall(rate, steps))"),
    "nadadelta, averaged": Method("growing_average(nadadelta(rate))", 1.0, average_of),
    "nadadelta, twice the rate": Method("nadadelta(late_fall(rate, steps))", 2.0),
    "nadadelta, 16 bits": Method("nadadelta(late_fall(rate, steps), state_bits=16)"),
    "nadadelta, 8 bits": Method("nadadelta(late_fall(rate, steps), state_bits=8)"),
}
METHODS = {**UNTUNED, **IDEAS, **NADADELTA}
# What is trained no more. The results stay.
FORMER_IDEAS = ("warm start", "warm start, cosine", "relative eps", "relative eps, cosine")
FORMER_IDEAS += ("falling eps", "average of the last tenth")
FORMER_NADADELTA = ("nadadelta, C", "nadadelta, warm-up", "nadadelta, warm-up, twice the rate")
# What is trained on the tasks that nothing was chosen on.
VERIFIED = (
    *NADADELTA,
    *("Adadelta", "eps 1e-4, cosine over the last half", "Prodigy", "Prodigy, linear"),
    *("Prodigy, warm-up", "AdamW, warm-up, 1e-3", "AdamW, warm-up, 3e-3", "AdamW, warm-up, 1e-2"),
    *("SGD, momentum", "SGD, momentum, clipped", "NAdam", "Schedule-free AdamW"),
)
# Whose learning rate is chosen, too.
TUNED = ("Adadelta", "Adadelta, cosine", "Adam", "Adam, cosine", "AdamW", "RMSProp", "Adagrad")
