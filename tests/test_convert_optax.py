"""States from and to optax.adadelta and optax.scale_by_adadelta."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from states import assert_agree, normal, same_bits, same_types, stepped, tree

from optax_adadelta import adadelta, convert, scale_by_adadelta
from optax_adadelta.diagnostics import averages


def theirs(state):
    return tuple(optax.tree_utils.tree_get(state, field) for field in ("e_g", "e_x"))


def schedule(count):
    return jnp.exp2(-jnp.asarray(count, jnp.float32))


CHAINS = {
    "schedule": (lambda: optax.adadelta(schedule), None),
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


@pytest.mark.usefixtures("x64")
def test_a_run_goes_on_here_and_again_there():
    given = dict(learning_rate=0.5, rho=0.95, eps=1e-5, weight_decay=0.01)
    params = jax.tree.map(lambda p: p.astype(jnp.float64), tree())
    old, new = optax.adadelta(**given), adadelta(**given)
    old_state = stepped(old, params, 5)
    state = convert.from_optax(old_state, count=5)
    same_types(state, new.init(params))
    for t in range(5):
        grads = jax.tree.map(lambda p, t=t: jnp.asarray(normal(p.shape, t), p.dtype), params)
        expected, old_state = old.update(grads, old_state, params)
        updates, state = new.update(grads, state, params)
        chex.assert_trees_all_close(updates, expected, rtol=1e-11)
    back = convert.to_optax(state, old.init(params))
    updates, state = new.update(params, state, params)
    expected, back = old.update(params, back, params)
    chex.assert_trees_all_close(updates, expected, rtol=1e-11)


def test_codes_are_read():
    params = tree()
    full = stepped(adadelta(), params)
    low = convert.with_state_bits(full, 8, eps=1e-6)
    found = convert.to_optax(low, optax.adadelta(1.0).init(params))
    assert_agree(theirs(found), (full.e_g, full.e_x), 8)
    same_bits(theirs(found), tuple(averages(low)))


def test_a_chain_keeps_its_other_states_and_gets_the_averages():
    old = stepped(optax.chain(optax.trace(0.9), optax.adadelta(1.0)), tree())
    new = optax.chain(optax.trace(0.9), scale_by_adadelta(0.9), optax.scale(-1.0))
    state = convert.carry_over(convert.from_optax(old, count=3), new.init(tree()))
    same_types(state, new.init(tree()))
    same_bits((state[1].e_g, state[1].e_x), theirs(old))


def test_averages_have_the_dtypes_of_each_library():
    params = {"w": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(2, jnp.float32)}
    optimizer = optax.adadelta(1.0)
    old = stepped(optimizer, params)
    state = convert.from_optax(old, count=3)
    same_types(state, adadelta().init(params))
    same_bits(convert.to_optax(state, optimizer.init(params)), old)


def test_fields_called_count_in_the_averages_are_no_counts():
    params = {"count": jnp.ones(()), "steps": jnp.ones(2)}
    optimizer = optax.adadelta(schedule)
    old = stepped(optimizer, params)
    assert convert.from_optax(old).count == 3
    same_bits(convert.to_optax(convert.from_optax(old), optimizer.init(params)), old)


def test_what_cannot_be_converted_is_refused():
    theirs = optax.adadelta(1.0)
    old = stepped(theirs, tree())
    ours, sgd = convert.from_optax(old, count=3), optax.sgd(1.0).init(tree())
    complex_state = theirs.init({"z": jnp.ones(3, jnp.complex64)})
    some = adadelta().init({"a": jnp.ones(3), "b": jnp.ones(2), "c": jnp.ones(4)})
    other = theirs.init({"a": jnp.ones(3), "b": jnp.ones((2, 1)), "d": jnp.ones(4)})
    for function, *given, message in (
        (convert.from_optax, old, "count="),
        (functools.partial(convert.from_optax, count=3), sgd, "There is none"),
        (
            functools.partial(convert.from_optax, count=3),
            (old, old),
            r"2, at state\[0\].*, state\[1\]",
        ),
        (functools.partial(convert.from_optax, count=0), complex_state, r"\['z'\] are complex"),
        (convert.to_optax, ours, sgd, "There is none"),
        (convert.to_optax, old, old, "There is no AdadeltaState"),
        (
            convert.to_optax,
            some,
            other,
            r"d: missing in state\n- c: only in state\n- b: .*\(2,\).*\(2, 1\)",
        ),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            function(*given)


def test_complex_averages_are_converted_as_those_of_two_real_parameters():
    z, pair = {"z": jnp.ones(3, jnp.complex64)}, optax.contrib.split_real_and_imaginary
    state = convert.from_optax(pair(optax.adadelta(1.0)).init(z), count=0)
    same_types(optax.contrib.SplitRealAndImaginaryState(state), pair(adadelta()).init(z))
