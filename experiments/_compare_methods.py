"""The methods that `compare.py` compares, with and without tuning."""

import jax
import jax.numpy as jnp
import optax

from experiments._compare_nadadelta import BASELINES, BASELINES_TUNED, CANDIDATES, Method
from optax_adadelta import adadelta

FACTORS = tuple(10 ** (half / 2) for half in range(-2, 5))  # Times the usual learning rate.


def cosine(rate, steps):
    """Returns the schedule that falls to zero over the whole training."""
    return optax.cosine_decay_schedule(rate, steps)


def cosine_at_the_end(rate, steps):
    """Returns the schedule that falls to zero over the second half of the training."""
    half = steps // 2
    falling = optax.cosine_decay_schedule(rate, steps - half)
    return optax.join_schedules([optax.constant_schedule(rate), falling], [half])


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


def averaged(optimizer, steps: int):
    """Returns the optimizer with an average of the parameters, over a tenth of the training."""

    def init(params):
        return optimizer.init(params), params

    def update(grads, state, params):
        state, average = state
        updates, state = optimizer.update(grads, state, params)
        new_params = optax.apply_updates(params, updates)
        average = optax.incremental_update(new_params, average, step_size=10 / steps)
        return updates, (state, average)

    return optax.GradientTransformation(init, update)


def falling_eps(rate, steps):
    """Returns Adadelta whose eps falls from 1e-4 to 1e-8."""
    return adadelta(rate, eps=optax.exponential_decay(1e-4, steps, 1e-4))


ADADELTA = Method("adadelta()", lambda rate, steps: adadelta(rate), 1.0)
ADADELTA_COSINE = Method(
    "adadelta(cosine_decay_schedule(1.0, steps))",
    lambda rate, steps: adadelta(cosine(rate, steps)),
    1.0,
)
ADAM = Method("adam(1e-3)", lambda rate, steps: optax.adam(rate), 1e-3)
ADAM_COSINE = Method(
    "adam(cosine_decay_schedule(1e-3, steps))",
    lambda rate, steps: optax.adam(cosine(rate, steps)),
    1e-3,
)
ADAMW = Method("adamw(1e-3)", lambda rate, steps: optax.adamw(rate), 1e-3)
RMSPROP = Method("rmsprop(1e-3)", lambda rate, steps: optax.rmsprop(rate), 1e-3)
ADAGRAD = Method("adagrad(1e-2)", lambda rate, steps: optax.adagrad(rate), 1e-2)

UNTUNED = {
    "Adadelta": ADADELTA,
    "Adadelta, cosine": ADADELTA_COSINE,
    "Adadelta, eps 1e-4": Method(
        "adadelta(eps=1e-4)", lambda rate, steps: adadelta(rate, eps=1e-4), 1.0
    ),
    "Adam": ADAM,
    "Adam, cosine": ADAM_COSINE,
    "AdamW": ADAMW,
    "RMSProp": RMSPROP,
    "Adagrad": ADAGRAD,
    "Prodigy": Method("prodigy()", lambda rate, steps: optax.contrib.prodigy(rate), 1.0),
    "Prodigy, linear": Method(
        "prodigy(linear_schedule(1.0, 0.0, steps))",
        lambda rate, steps: optax.contrib.prodigy(optax.linear_schedule(rate, 0.0, steps)),
        1.0,
    ),
    "D-Adaptation": Method(
        "dadapt_adamw()", lambda rate, steps: optax.contrib.dadapt_adamw(rate), 1.0
    ),
    "DoG": Method("dog()", lambda rate, steps: optax.contrib.dog(rate), 1.0),
    "DoWG": Method("dowg()", lambda rate, steps: optax.contrib.dowg(rate), 1.0),
    "Schedule-free AdamW": Method(
        "schedule_free_adamw()",
        lambda rate, steps: optax.contrib.schedule_free_adamw(rate),
        0.0025,
        optax.contrib.schedule_free_eval_params,
    ),
    "Schedule-free SGD": Method(
        "schedule_free_sgd()",
        lambda rate, steps: optax.contrib.schedule_free_sgd(rate),
        1.0,
        optax.contrib.schedule_free_eval_params,
    ),
    "Mechanic": Method(
        "mechanize(adam(1.0))",
        lambda rate, steps: optax.contrib.mechanize(optax.adam(rate)),
        1.0,
    ),
    **BASELINES,
}

# What could make the default better, without a setting that the user has to choose.
IDEAS = {
    "linear decay": Method(
        "adadelta(linear_schedule(1.0, 0.0, steps))",
        lambda rate, steps: adadelta(optax.linear_schedule(rate, 0.0, steps)),
        1.0,
    ),
    "cosine over the last half": Method(
        "adadelta(cosine_at_the_end(1.0, steps))",
        lambda rate, steps: adadelta(cosine_at_the_end(rate, steps)),
        1.0,
    ),
    "eps 1e-4, cosine": Method(
        "adadelta(cosine_decay_schedule(1.0, steps), eps=1e-4)",
        lambda rate, steps: adadelta(cosine(rate, steps), eps=1e-4),
        1.0,
    ),
    "warm start": Method(
        "warm_start(adadelta())", lambda rate, steps: warm_start(adadelta(rate)), 1.0
    ),
    "warm start, cosine": Method(
        "warm_start(adadelta(cosine_decay_schedule(1.0, steps)))",
        lambda rate, steps: warm_start(adadelta(cosine(rate, steps))),
        1.0,
    ),
    "eps 1e-4, cosine over the last half": Method(
        "adadelta(cosine_at_the_end(1.0, steps), eps=1e-4)",
        lambda rate, steps: adadelta(cosine_at_the_end(rate, steps), eps=1e-4),
        1.0,
    ),
    "relative eps": Method("relative_eps(1.0)", lambda rate, steps: relative_eps(rate), 1.0),
    "relative eps, cosine": Method(
        "relative_eps(cosine_decay_schedule(1.0, steps))",
        lambda rate, steps: relative_eps(cosine(rate, steps)),
        1.0,
    ),
    "falling eps": Method(
        "falling_eps(1.0, steps)", lambda rate, steps: falling_eps(rate, steps), 1.0
    ),
    "average of the last tenth": Method(
        "averaged(adadelta(), steps)",
        lambda rate, steps: averaged(adadelta(rate), steps),
        1.0,
        lambda state, params: state[1],
    ),
}

TUNED = {
    "Adadelta": ADADELTA,
    "Adadelta, cosine": ADADELTA_COSINE,
    "Adam": ADAM,
    "Adam, cosine": ADAM_COSINE,
    "AdamW": ADAMW,
    "RMSProp": RMSPROP,
    "Adagrad": ADAGRAD,
    **BASELINES_TUNED,
}
METHODS = {**UNTUNED, **IDEAS, **CANDIDATES}
# What is trained for longer on some of the tasks.
LONGER = (
    "Adadelta",
    "Adadelta, cosine",
    "Adadelta, eps 1e-4",
    "eps 1e-4, cosine",
    "eps 1e-4, cosine over the last half",
    "falling eps",
    "average of the last tenth",
    "Adam",
    "Adam, cosine",
    "Prodigy, linear",
)
