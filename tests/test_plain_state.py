"""The state is a tree of plain arrays in every storage, and JAX and Optax treat it as one."""

import collections
import copy
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import algorithm_1
from states import (
    BITS,
    CODE,
    DTYPES,
    EPS,
    assert_agree,
    normal,
    same_bits,
    same_types,
    trained,
    tree,
)

from optax_adadelta import (
    AdadeltaState,
    adadelta,
    nadadelta,
    scale_by_adadelta,
    stochastic_round,
)
from optax_adadelta._serialization import exportable
from optax_adadelta.diagnostics import averages


@BITS
def test_leaves_of_every_kind_have_averages_of_their_shape_and_take_steps(bits):
    params = {
        "w": jnp.ones((5, 3)),
        "half": jnp.ones((5, 3), jnp.bfloat16),
        "z": jnp.ones((5, 3), jnp.complex64),
        "scalar": jnp.float32(1.0),
        "nothing": jnp.ones((0, 3)),
        "none": None,
        "masked": optax.MaskedNode(),
        "deep": [(jnp.ones((5, 3)),), {}],
    }
    optimizer = scale_by_adadelta(state_bits=bits)
    state = optimizer.init(params)
    assert state._fields == ("count", "e_g", "e_x", "unit", "trace", "scale")
    assert state.trace is state.scale is None
    assert (state.count.shape, state.count.dtype, int(state.count)) == ((), jnp.int32, 0)
    for part in (state.e_g, state.e_x):
        assert jax.tree.structure(part) == jax.tree.structure(params)
        for leaf, p in zip(jax.tree.leaves(part), jax.tree.leaves(params), strict=True):
            assert isinstance(leaf, jax.Array)
            assert (leaf.shape, leaf.dtype) == (p.shape, DTYPES[bits])
            assert not leaf.any()
    if bits is None:
        assert state.unit is None
    else:
        assert (state.unit.shape, state.unit.dtype, float(state.unit)) == ((), jnp.float32, 0.0)
    compiled = jax.jit(optimizer.init)(params)
    same_types(compiled, state)
    same_bits(compiled, state)
    grads = jax.tree.map(lambda p: p * (0.1 + 0.2j if jnp.iscomplexobj(p) else 0.1), params)
    step = jax.jit(optimizer.update)
    for _ in range(3):
        updates, after = step(grads, state, params)
        same_types(updates, grads)
        same_types(after, state)
        state = after
    assert int(state.count) == 3
    found = averages(state)
    for i, g in enumerate(jax.tree.leaves(grads)):
        *_, last = algorithm_1(np.stack([np.asarray(g).astype(np.complex128)] * 3))
        for part, expected in zip(found, (last.e_g, last.e_x), strict=True):
            leaf = jax.tree.leaves(part)[i]
            assert (leaf.shape, leaf.dtype) == (g.shape, jnp.float32)
            # Each of the three steps rounded both averages.
            rtol = 1e-5 if bits is None else 4 * CODE[bits]
            np.testing.assert_allclose(leaf + EPS, expected + EPS, rtol=rtol)


@pytest.mark.parametrize(("rule", "bits"), [*((adadelta, bits) for bits in DTYPES), (nadadelta, 8)])
def test_a_batched_scan_ends_in_the_state_of_single_steps(rule, bits):
    optimizer = rule(state_bits=bits)
    gradients = jnp.stack([normal((5, 12), t) for t in range(4)])

    @jax.jit
    def step(state, g):
        updates, state = optimizer.update(g, state)
        return state, updates

    def scanned(gradients):
        return jax.lax.scan(step, optimizer.init(gradients[0]), gradients)

    expected = optimizer.init(gradients[0])
    for g in gradients:
        expected, last = step(expected, g)
    batch = jnp.stack([gradients, gradients[::-1]])
    states, updates = jax.jit(jax.vmap(scanned))(batch)
    same_types(states, jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), expected))
    state = jax.tree.map(lambda leaf: leaf[0], states)
    np.testing.assert_allclose(updates[0, -1], last, rtol=1e-5)
    assert int(state.count) == 4
    if bits:
        same_bits(state, expected)
    else:
        chex.assert_trees_all_close(state, expected, rtol=1e-6)
    assert not np.array_equal(states.e_g[0], states.e_g[1])


def stepper():
    optimizer = adadelta(state_bits=8)

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda p: 2 * p - 1, params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def test_an_exported_step_has_symbolic_shapes():
    a, b = jax.export.symbolic_shape("a, b")
    shapes = {
        "w": jax.ShapeDtypeStruct((a, b), jnp.float32),
        "v": jax.ShapeDtypeStruct((3, b), jnp.float32),
    }
    optimizer, step = adadelta(state_bits=8), stepper()
    exported = jax.export.export(step)(shapes, jax.eval_shape(optimizer.init, shapes))
    data = exported.serialize()
    assert b"optax_adadelta._" not in data
    loaded = jax.export.deserialize(data)
    params = {"w": normal((2, 130)), "v": normal((3, 130))}
    found = expected = params, optimizer.init(params)
    for _ in range(3):
        found, expected = loaded.call(*found), step(*expected)
        assert isinstance(found[1], AdadeltaState)
        same_types(found, expected)
        chex.assert_trees_all_close(found[0], expected[0], rtol=1e-5, atol=1e-7)
        assert_agree(averages(found[1]), averages(expected[1]), 8)


def test_states_are_pickled_and_copied():
    state = trained(8)
    data = pickle.dumps(state)
    assert b"optax_adadelta._" not in data
    for again in (pickle.loads(data), copy.deepcopy(state), copy.copy(state)):
        assert type(again) is AdadeltaState
        same_types(again, state)
        same_bits(again, state)
    same_bits(stepper()(tree(), pickle.loads(data)), stepper()(tree(), state))


def test_a_class_of_states_is_registered_once_and_used_again():
    state = AdadeltaState
    same, other = (
        collections.namedtuple("AdadeltaState", fields)
        for fields in (state._fields, state._fields[:3])
    )
    register = exportable("optax_adadelta.AdadeltaState")
    assert register(same) is state
    # Another version of the package has other fields.
    assert register(other) is other
    assert register(same) is state


def test_what_others_return_can_be_exported():
    g = jnp.ones(3, jnp.bfloat16)
    for function, *given in (
        (averages, trained(8)),
        (stochastic_round(3).update, g.astype(jnp.float32), stochastic_round(3).init(g), g),
    ):
        expected = function(*given)
        data = jax.export.export(jax.jit(function))(*given).serialize()
        assert b"optax_adadelta._" not in data
        found = jax.export.deserialize(data).call(*given)
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        chex.assert_trees_all_close(found, expected, rtol=1e-6)


@BITS
def test_the_averages_in_a_state_are_mapped_beside_another_tree_and_the_rest_apart(bits):
    optimizer = optax.chain(optax.scale(2.0), adadelta(state_bits=bits))
    state = optimizer.init(tree())
    names = {"w": "W", "b": ["B"]}
    rest = []
    mapped = optax.tree_map_params(
        optimizer, lambda _, name: name, state, names, transform_non_params=rest.append
    )
    assert mapped[1] == AdadeltaState(None, names, names, None)
    assert [x.dtype for x in rest] == [jnp.int32] + ([] if bits is None else [jnp.float32])
