"""States from and to optax.adadelta and optax.scale_by_adadelta."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from states import same_bits, same_types, stepped, tree

from optax_adadelta import adadelta, convert
from optax_adadelta.diagnostics import averages


def theirs(state):
    return tuple(optax.tree_utils.tree_get(state, field) for field in ("e_g", "e_x"))


CHAINS = {
    "schedule": (lambda: optax.adadelta(optax.exponential_decay(1.0, 1, 0.5)), None),
    "decay": (lambda: optax.adadelta(1.0, 0.9, 1e-6, 0.1, {"w": True, "b": False}), 3),
    "scale_by": (optax.scale_by_adadelta, np.int32(3)),
    "chain": (lambda: optax.chain(optax.clip(1.0), optax.adadelta(1.0), optax.trace(0.9)), 3),
    "injected": (lambda: optax.inject_hyperparams(optax.adadelta)(learning_rate=1.0), None),
    "masked": (lambda: optax.masked(optax.adadelta(1.0), True), 3),
}


@pytest.mark.parametrize("name", CHAINS)
def test_averages_are_found_wherever_they_are_and_put_back(name):
    make, count = CHAINS[name]
    old = stepped(make(), tree())
    state = convert.from_optax(old, count=count)
    same_types(state, adadelta().init(tree()))
    same_bits((state.e_g, state.e_x), theirs(old))
    assert state.count == 3
    back = convert.to_optax((optax.EmptyState(), state), make().init(tree()))
    if name == "chain":
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(back[2]))
        back = (*back[:2], old[2])
    same_types(back, old)
    same_bits(back, old)
    low = convert.with_state_bits(state, 8, eps=1e-6)
    same_bits(theirs(convert.to_optax(low, make().init(tree()))), tuple(averages(low)))


@pytest.mark.usefixtures("x64")
def test_averages_have_the_dtypes_of_each_library():
    dtypes = {"w": jnp.bfloat16, "b": jnp.float32, "wide": jnp.float64}
    params = {name: jnp.ones(3, dtype) for name, dtype in dtypes.items()}
    optimizer = optax.adadelta(1.0)
    old = stepped(optimizer, params)
    state = convert.from_optax(old, count=3)
    same_types(state, adadelta().init(params))
    same_bits(convert.to_optax(state, optimizer.init(params)), old)


def test_what_cannot_be_converted_is_refused():
    theirs = optax.adadelta(1.0)
    old = stepped(theirs, tree())
    ours, sgd = convert.from_optax(old, count=3), optax.sgd(1.0).init(tree())
    complex_state = theirs.init({"z": jnp.ones(3, jnp.complex64)})
    some = adadelta().init({"a": jnp.ones(3), "b": jnp.ones(2), "c": jnp.ones(4)})
    other = theirs.init({"a": jnp.ones(3), "b": jnp.ones((2, 1)), "d": jnp.ones(4)})
    mismatch = r"d: missing in state\n- c: only in state\n- b: .*\(2,\).*\(2, 1\)"
    of_three_steps = functools.partial(convert.from_optax, count=3)
    for function, *given, message in (
        (convert.from_optax, old, "count="),
        (of_three_steps, sgd, "There is none"),
        (of_three_steps, (old, old), r"2, at state\[0\].*, state\[1\]"),
        (of_three_steps, complex_state, r"\['z'\] are complex"),
        (convert.to_optax, ours, sgd, "There is none"),
        (convert.to_optax, old, old, "There is no AdadeltaState"),
        (convert.to_optax, some, other, mismatch),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            function(*given)


def test_complex_averages_are_converted_as_those_of_two_real_parameters():
    z, pair = {"z": jnp.ones(3, jnp.complex64)}, optax.contrib.split_real_and_imaginary
    state = convert.from_optax(pair(optax.adadelta(1.0)).init(z), count=0)
    same_types(optax.contrib.SplitRealAndImaginaryState(state), pair(adadelta()).init(z))
