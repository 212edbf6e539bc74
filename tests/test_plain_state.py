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
    assert_owns_its_arrays,
    normal,
    same_bits,
    same_types,
    trained,
    tree,
)

from optax_adadelta import AdadeltaState, adadelta, convert, nadadelta, scale_by_adadelta
from optax_adadelta._serialization import exportable
from optax_adadelta.diagnostics import averages


def leaves_of_every_kind():
    return {
        "w": jnp.ones((5, 3)),
        "half": jnp.ones((5, 3), jnp.bfloat16),
        "z": jnp.ones((5, 3), jnp.complex64),
        "scalar": jnp.float32(1.0),
        "nothing": jnp.ones((0, 3)),
        "none": None,
        "masked": optax.MaskedNode(),
        "deep": [(jnp.ones((5, 3)),), {}],
    }


@BITS
def test_each_leaf_is_an_array_of_its_parameters_shape(bits):
    params = leaves_of_every_kind()
    init = adadelta(state_bits=bits).init
    state = init(params)
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
    compiled = jax.jit(init)(params)
    same_types(compiled, state)
    same_bits(compiled, state)
    zeros = jax.tree.map(lambda p: np.zeros(p.shape, np.float32), params)
    for part in averages(state):
        same_types(part, zeros)
        same_bits(part, zeros)


@BITS
def test_leaves_of_every_kind_take_steps(bits):
    optimizer = scale_by_adadelta(state_bits=bits)
    params = leaves_of_every_kind()
    grads = jax.tree.map(lambda p: p * (0.1 + 0.2j if jnp.iscomplexobj(p) else 0.1), params)
    state = optimizer.init(params)
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


@pytest.mark.parametrize("params", [{}, None, (), {"a": None, "b": optax.MaskedNode()}], ids=str)
def test_trees_without_leaves_pass(params):
    optimizer = adadelta(state_bits=8)
    state = optimizer.init(params)
    updates, after = optimizer.update(params, state, params)
    assert updates == params
    same_types(after, state)
    assert int(after.count) == 1
    assert averages(after) == (params, params)
    same_types(convert.with_state_bits(after, None), adadelta().init(params))


@BITS
def test_a_batched_scan_ends_in_the_state_of_single_steps(bits):
    optimizer = scale_by_adadelta(state_bits=bits)
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


@pytest.mark.parametrize(
    ("rule", "way"), [(nadadelta, "eager"), (nadadelta, "jit"), (adadelta, "without jit")]
)
def test_a_state_shares_no_memory_with_an_eps_that_is_an_array(rule, way):
    eps = jnp.float32(EPS)
    optimizer = rule(eps=eps, state_bits=8)
    grads = {"w": normal((64, 32))}
    with jax.disable_jit(way == "without jit"):
        init, update = (
            jax.jit(f) if way == "jit" else f for f in (optimizer.init, optimizer.update)
        )
        first = init(grads)
        updates, second = update(grads, first, grads)
    assert_owns_its_arrays(first, eps, grads)
    assert_owns_its_arrays(second, first, eps, grads, updates)
    jax.jit(lambda state: optimizer.update(grads, state)[1], donate_argnums=0)(second)
    assert float(eps) == pytest.approx(EPS)


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


def test_what_diagnostics_return_can_be_exported():
    assert type(averages(trained(8))).__module__ == "optax_adadelta.diagnostics"
    exported = jax.export.export(jax.jit(averages))(trained(8))
    found = jax.export.deserialize(exported.serialize()).call(trained(8))
    chex.assert_trees_all_close(found, averages(trained(8)), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.complex64])
def test_both_branches_of_a_condition_have_the_types_of_the_state(dtype):
    g = jnp.asarray([1.0, -2.0], dtype)
    optimizer = adadelta(0.5, weight_decay=0.1, state_bits=8)
    state = optimizer.init(g)

    @jax.jit
    def step(flag, state):
        return jax.lax.cond(flag, lambda: optimizer.update(g, state, g), lambda: (g, state))

    assert step(True, state)[1].count == 1
    same_bits(step(False, state), (g, state))


def test_weakly_typed_parameters_leave_a_state_that_needs_no_second_compilation(compiled):
    params = {"array": jnp.asarray(2.0), "number": 3.0}
    assert params["array"].weak_type
    optimizer = adadelta(state_bits=8)
    state = optimizer.init(params)
    types = jax.tree.map(jax.typeof, state)
    assert jax.tree.map(jax.typeof, jax.jit(optimizer.init)(params)) == types
    same_types(jax.eval_shape(optimizer.init, params), state)
    update = jax.jit(optimizer.update)
    _, state = update(params, state, params)
    assert jax.tree.map(jax.typeof, state) == types
    before = compiled()
    update(params, state, params)
    assert compiled() == before


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


def test_a_state_is_found_among_others_by_its_class_and_set_as_a_whole():
    optimizer = optax.chain(optax.scale_by_schedule(lambda count: 1.0), adadelta(state_bits=8))
    state = optimizer.init(tree())
    with pytest.raises(KeyError, match="count"):
        optax.tree.get(state, "count")
    replaced = optax.tree.set(state, AdadeltaState=trained(8))
    same_bits(optax.tree.get(replaced, "AdadeltaState"), trained(8))
    both = {"e_g": trained(8).e_x, "e_x": trained(8).e_g}
    same_bits({name: optax.tree.get(optax.tree.set(state, **both), name) for name in both}, both)
    assert replaced[0].count == 0
    assert replaced[1].count == 3
