"""Functions that return or read a state, with arguments: a new one joins with one line."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from states import EPS

from optax_adadelta import (
    AdadeltaState,
    adadelta,
    convert,
    nadadelta,
    reduce_eps_on_plateau,
    stochastic_round,
)
from optax_adadelta.diagnostics import (
    averages,
    choose_coordinates,
    effective_learning_rate,
    sample,
    summaries,
)


def groups(rule):
    return lambda **given: optax.multi_transform(
        {False: rule(**given), True: rule(0.5, **given)},
        lambda params: jax.tree.map(lambda p: p.ndim == 2, params),
    )


def injected(rule):
    return optax.inject_hyperparams(rule, "state_bits", jnp.float32)


RULES = {"adadelta": adadelta, "nadadelta": nadadelta}

# What may be around the optimizer.
WRAPPED = {
    **RULES,
    "chain": lambda **given: optax.chain(optax.trace(0.9), nadadelta(**given)),
    "groups": groups(nadadelta),
    "injected": injected(nadadelta),
}


class Run(NamedTuple):
    """A run: its parameters, what is around its optimizer, and the storage of its state."""

    params: Any
    wrap: Callable = adadelta
    bits: int | None = None
    eps: Any = EPS

    def optimizer(self, wrap=None):
        return (wrap or self.wrap)(eps=self.eps, state_bits=self.bits)

    def state(self, wrap=None):
        return begun(self.optimizer(wrap), self.params)


def gradients(params, t=0):
    return jax.tree.map(lambda p: (0.3 + t) * p, params)


def begun(optimizer, params):
    """The state after two steps, where `init` puts it."""
    state = optimizer.init(params)
    if is_in_host_memory(params):
        # Steps are made in device memory.
        started = jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device), params)
        return jax.device_put(begun(optimizer, started), jax.tree.map(lambda x: x.sharding, state))
    for t in range(2):
        _, state = optimizer.update(gradients(params, t), state, params)
    return state


def is_in_host_memory(params):
    leaf = jax.tree.leaves(params)[0]
    return not isinstance(leaf, jax.core.Tracer) and leaf.sharding.memory_kind == "pinned_host"


def adadelta_states(tree):
    def ours(part):
        return isinstance(part, AdadeltaState)

    return [part for part in jax.tree.leaves(tree, is_leaf=ours) if ours(part)]


# For each function: what takes a run and returns the function and its arguments. These work on the
# state of any optimizer. Of what Optax makes around it, only what is ours counts.
OF_ANY_OPTIMIZER = {
    "init": lambda run: (lambda p: adadelta_states(run.optimizer().init(p)), run.params),
    "update": lambda run: (
        lambda g, s, p: adadelta_states(run.optimizer().update(g, s, p)[1]),
        gradients(run.params),
        run.state(),
        run.params,
    ),
    "carry_over": lambda run: (convert.carry_over, run.state(), run.optimizer().init(run.params)),
    **{
        f"with_state_bits {bits}": lambda run, bits=bits: (
            lambda s: convert.with_state_bits(s, bits, eps=run.eps),
            run.state(),
        )
        for bits in (None, 8)
    },
}


def plateau_init(run, **given):
    return reduce_eps_on_plateau(**given).init, (run.params, run.state(injected(run.wrap)))


def plateau_update(run, value, **given):
    """Without `restore_best`, the rest of the tree is passed on."""
    init, tree = plateau_init(run, **given)
    plateau = reduce_eps_on_plateau(**given)
    _, watch = plateau.update(tree, init(tree), value=1.0)

    def update(tree, watch):
        tree, watch = plateau.update(tree, watch, value=value)
        return tree if given else tree[1].hyperparams["eps"], watch

    return update, tree, watch


def two_counts():
    return optax.chain(optax.adadelta(lambda t: 0.5), optax.scale_by_schedule(lambda t: 2.0))


# These take the state of an Adadelta alone, or of one in a certain wrapper.
OF_ADADELTA = {
    "carry_over to groups": lambda run: (
        convert.carry_over,
        run.state(),
        run.optimizer(groups(run.wrap)).init(run.params),
    ),
    "carry_over from groups": lambda run: (
        convert.carry_over,
        run.state(groups(run.wrap)),
        run.optimizer().init(run.params),
    ),
    "to_optax": lambda run: (convert.to_optax, run.state(), two_counts().init(run.params)),
    "to_torch": lambda run: (
        lambda s: convert.to_torch(s, flat, names=list(flat(run.params))),
        run.state(),
    ),
    "plateau.init": plateau_init,
    "plateau.init of a copy": lambda run: plateau_init(run, restore_best=True),
    "plateau.update": lambda run: plateau_update(run, 2.0),
    "plateau.update to the best": lambda run: plateau_update(run, 2.0, restore_best=True),
    "plateau.update of the best": lambda run: plateau_update(run, 0.5, restore_best=True),
}


def flat(params):
    """The leaves by name, as in the state dict of a model."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.leaves_with_path(params)
    }


def from_flat(params):
    """Returns a function from leaves by name to the tree, each placed like its parameter."""

    def unflatten(leaves):
        placed = [jax.device_put(leaves[name], p.sharding) for name, p in flat(params).items()]
        return jax.tree.unflatten(jax.tree.structure(params), placed)

    return unflatten


def torch_state(params, tensor=np.array):
    averages = [{"square_avg": p**2, "acc_delta": p**2 / 10} for p in map(tensor, params.values())]
    group = {"lr": 1.0, "rho": 0.9, "eps": EPS, "weight_decay": 0.0, "maximize": False}
    return {
        "state": {i: {"step": 7.0, **pair} for i, pair in enumerate(averages)},
        "param_groups": [{**group, "params": list(range(len(params)))}],
    }


def low(run):
    """The parameters of a run, some of them in bfloat16."""

    def rounded(p):
        return jax.device_put(p.astype(jnp.bfloat16), p.sharding) if p.ndim == 2 else p

    return jax.tree.map(rounded, run.params)


# To these the storage makes no difference.
OF_NO_STORAGE = {
    "from_optax": lambda run: (
        lambda s: convert.from_optax(s, count=2),
        begun(optax.adadelta(1.0), run.params),
    ),
    "from_torch": lambda run: (
        lambda s: convert.from_torch(s, from_flat(run.params), names=list(flat(run.params))),
        torch_state(flat(run.params)),
    ),
    "stochastic_round.init": lambda run: (stochastic_round().init, low(run)),
    "stochastic_round.update": lambda run: (
        lambda u, s, p: stochastic_round().update(u, s, p)[1],
        run.params,
        stochastic_round().init(low(run)),
        low(run),
    ),
}


def tensors(run):
    torch = pytest.importorskip("torch")
    return lambda x: torch.tensor(np.array(x))


def keras_optimizer(run):
    keras = pytest.importorskip("keras")
    variables = [keras.Variable(p, name=name) for name, p in flat(run.params).items()]
    optimizer = keras.optimizers.Adadelta()
    optimizer.build(variables)
    return optimizer, variables


def from_keras(run):
    optimizer, variables = keras_optimizer(run)

    def function(values):
        del values
        return convert.from_keras(optimizer, from_flat(run.params), variables=variables)

    return function, [variable.value for variable in optimizer.variables]


def to_keras(run):
    optimizer, variables = keras_optimizer(run)

    def function(state):
        convert.to_keras(state, flat, optimizer, variables=variables)
        return [jnp.asarray(variable.value) for variable in optimizer.variables[2:]]

    return function, run.state()


# These need a library that the tests of peers have.
OF_LIBRARIES = {
    "from_torch of tensors": lambda run: (
        lambda s: convert.from_torch(s, from_flat(run.params), names=list(flat(run.params))),
        torch_state(flat(run.params), tensors(run)),
    ),
    "to_torch of tensors": lambda run: (
        lambda s: convert.to_torch(
            s,
            lambda p: {name: tensors(run)(x) for name, x in flat(p).items()},
            names=list(flat(run.params)),
        ),
        run.state(),
    ),
    "from_keras": from_keras,
    "to_keras": to_keras,
}


def coordinates(run):
    return choose_coordinates(run.optimizer().init(run.params))


# Each takes a run, and a state in place of its own, and reads that state.
READERS = {
    "update": lambda run, s: run.optimizer().update(gradients(run.params), s, run.params),
    "jitted update": lambda run, s: jax.jit(run.optimizer().update)(gradients(run.params), s),
    "update of another storage": lambda run, s: run.wrap().update(gradients(run.params), s),
    "averages": lambda run, s: averages(s),
    "effective_learning_rate": lambda run, s: effective_learning_rate(s, EPS),
    "summaries": lambda run, s: summaries(s, EPS),
    "sample": lambda run, s: sample(s, run.params, coordinates(run), EPS),
    "carry_over": lambda run, s: convert.carry_over(s, run.optimizer().init(run.params)),
    "with_state_bits": lambda run, s: convert.with_state_bits(s, run.bits, eps=EPS),
    "with_state_bits None": lambda run, s: convert.with_state_bits(s, None),
    "to_optax": lambda run, s: convert.to_optax(s, optax.adadelta(1.0).init(run.params)),
    "to_torch": lambda run, s: convert.to_torch(s, flat, names=list(flat(run.params))),
}
