"""States that go on with another eps or in another storage, and states that cannot go on."""

import dataclasses
import re
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from states import (
    BITS,
    CODE,
    DTYPES,
    EPS,
    QUANTIZED,
    RULE,
    TRACE,
    apart,
    assert_agree,
    normal,
    same_bits,
    same_types,
    stepped,
    trained,
    tree,
)

from optax_adadelta import (
    AdadeltaState,
    adadelta,
    convert,
    nadadelta,
    scale_by_adadelta,
)
from optax_adadelta.diagnostics import averages, find_state


@QUANTIZED
@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_another_eps_changes_no_average_by_more_than_one_code(bits, factor):
    before, after = (1e-4, 1e-4 * factor) if factor <= 1 else (1e-8, 1e-8 * factor)
    rng = np.random.default_rng(0)
    e_g = np.float32(10.0 ** rng.uniform(-9, 4, (64, 64)))
    e_x = np.float32(10.0 ** rng.uniform(-9, 1, (64, 64)))
    e_g[0], e_x[1] = 0, 0
    full = AdadeltaState(jnp.int32(5), jnp.asarray(e_g), jnp.asarray(e_x))
    state = convert.with_state_bits(full, bits, eps=before)
    old = averages(state)
    # With rho this close to 1 and no gradient, the averages stay as they are.
    optimizer = scale_by_adadelta(rho=1 - 1e-9, eps=after, state_bits=bits)
    updates, state = jax.jit(optimizer.update)(jnp.zeros((64, 64)), state)
    assert not np.any(updates)
    assert float(state.unit) == pytest.approx(after)
    new = averages(state)
    e_g, e_x = np.float64(old.e_g), np.float64(old.e_x)
    common = e_g < 2.0**29 * min(before, after)
    assert np.sum(common) > 1000
    largest = max(before, after)
    assert apart(new.e_g[common], e_g[common], largest) <= 1.01 * CODE[bits]
    # With 8 bits a ratio is stored. Its octave may be the next, and the error of E[g^2] adds to it.
    codes = {16: 1.01, 8: 3.01}[bits]
    assert apart(new.e_x[common], e_x[common], largest) <= codes * CODE[bits]


@pytest.mark.parametrize(("start", "bits"), [(None, 16), (None, 8), (8, None), (16, 8), (8, 16)])
def test_training_goes_on_in_another_storage(start, bits):
    given, optimizer = trained(start), adadelta(state_bits=bits)
    state = convert.with_state_bits(given, bits, eps=None if start else EPS)
    same_types(state, optimizer.init(tree()))
    assert state.count == 3
    if bits:
        assert float(state.unit) == pytest.approx(EPS)
    assert_agree(averages(state), averages(given), bits)
    # Averages that codes stand for stay as they are.
    same_bits(convert.with_state_bits(state, bits), state)
    exact, update = trained(None), jax.jit(optimizer.update)
    # A ratio of roots is off by half as much as its averages. Each step rounds them once.
    rtol = {16: 4 * CODE[16], 8: 1.5 * CODE[8]}[min(start or 32, bits or 32)]
    for t in range(10, 13):
        updates, state = update(tree(t), state)
        expected, exact = adadelta().update(tree(t), exact)
        chex.assert_trees_all_close(updates, expected, rtol=rtol)
    same_types(state, optimizer.init(tree()))


@pytest.mark.usefixtures("x64")
def test_float64_averages_come_back_as_float64():
    g = jnp.asarray(normal((3, 4)), jnp.float64)
    full = stepped(adadelta(), g)
    low = convert.with_state_bits(full, 8, eps=EPS)
    back = convert.with_state_bits(low, None, dtype=jnp.float64)
    same_types(back, full)
    assert_agree((back.e_g, back.e_x), (full.e_g, full.e_x), 8)
    # A state that is in full precision already keeps its dtype.
    same_bits(convert.with_state_bits(full, None), full)


def test_every_state_is_converted_wherever_it_is():
    def make(bits):
        pair = {"fast": adadelta(2.0, state_bits=bits), "slow": adadelta(0.5, state_bits=bits)}
        labels = {"w": "fast", "none": None, "b": "slow"}
        return optax.chain(optax.trace(0.9), optax.multi_transform(pair, labels))

    params = {"w": normal((4, 8)), "none": None, "b": normal(3)}
    full = stepped(make(None), params, 2)
    low = convert.with_state_bits(full, 8, eps=EPS)
    same_types(low, make(8).init(params))
    same_bits(low[0], full[0])
    for one, other in zip(low[1].inner_states.values(), full[1].inner_states.values(), strict=True):
        assert_agree(averages(one), averages(other), 8)
    same_bits(jax.jit(lambda state: convert.with_state_bits(state, 8, eps=EPS))(full), low)

    # A schedule is evaluated at the state's count, which is 2.
    def eps(count):
        return jnp.where(count == 2, EPS, 1.0)

    same_bits(convert.with_state_bits(full, np.int64(8), eps=eps), low)


@pytest.mark.devices
@pytest.mark.parametrize(("start", "bits"), [(None, 8), (8, None), (16, 8)])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_a_converted_state_is_placed_as_init_places_it(bits, start, kind):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    place = NamedSharding(mesh, PartitionSpec("y", "x"))
    params = jax.device_put(normal((4, 16)), place)

    def convert_state(state):
        return convert.with_state_bits(state, bits, eps=EPS)

    state, expected = (adadelta(state_bits=b).init(params) for b in (start, bits))
    with jax.set_mesh(mesh):
        program = jax.jit(convert_state).lower(state).compile()
    # No device sends anything, or makes an array of the whole shape.
    assert not re.search(r"all-|collective|reduce-scatter|\[4,16\]", program.as_text())
    for found in (convert_state(state), program(state)):
        same_types(found, expected)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert one.sharding.is_equivalent_to(other.sharding, one.ndim)


def test_conversions_that_cannot_be_made_are_refused():
    for state, given, word in (
        (trained(None), {"bits": 8}, "eps"),
        (trained(None), {"bits": 8, "eps": -1.0}, "eps"),
        (trained(16), {"bits": 4}, "state_bits"),
        (optax.sgd(0.1).init(tree()), {"bits": 8, "eps": EPS}, "AdadeltaState"),
    ):
        with pytest.raises(ValueError, match=word):
            convert.with_state_bits(state, given.pop("bits"), **given)
    for dtype in (int, jnp.bfloat16, jnp.complex64):
        with pytest.raises(TypeError, match="dtype must be"):
            convert.with_state_bits(trained(8), None, dtype=dtype)


def test_the_mean_of_states_is_taken_in_full_precision():
    """The codes are read first, and written again afterwards."""
    states = trained(8), trained(8, 4)
    full = [convert.with_state_bits(state, None) for state in states]
    mean = jax.tree.map(lambda *x: sum(x) / len(x), *full)
    expected = jax.tree.map(lambda *x: (x[0] + x[1]) / 2, *map(averages, states))
    assert_agree(averages(mean), expected, None)

    counts = []
    optimizer = adadelta(lambda count: counts.append(count) or jnp.float32(1))
    updates, after = optimizer.update(tree(), mean)
    # The step goes on from the mean, and no type changes.
    fresh = AdadeltaState(jnp.int32(4), *expected)
    chex.assert_trees_all_close(updates, adadelta().update(tree(), fresh)[0], rtol=1e-6)
    same_types(after, mean)
    assert float(after.count) == 4.5
    # A schedule gets an integer, so it can look a value up in a table.
    assert [(count.dtype, int(count)) for count in counts] == [(jnp.int32, 4)]

    back = convert.with_state_bits(mean, 8, eps=EPS)
    same_types(back, trained(8))
    assert_agree(averages(back), expected, 8)
    _, after = adadelta(state_bits=8).update(tree(), back)
    assert int(after.count) == 5


@BITS
def test_a_state_keeps_its_storage_whichever_optimizer_goes_on(bits):
    state = trained(bits)
    _, expected = adadelta(state_bits=bits).update(tree(), state)
    for other in DTYPES:
        _, after = adadelta(state_bits=other).update(tree(), state)
        same_bits(after, expected)
        same_types(after, state)


@QUANTIZED
def test_averages_that_are_not_finite_become_those_of_a_coordinate_that_stands_still(bits):
    state = adadelta().init(jnp.ones(3))
    e_g, e_x = jnp.array([np.nan, np.inf, 1.0]), jnp.array([np.nan, np.nan, 1e-3])
    low = convert.with_state_bits(state._replace(e_g=e_g, e_x=e_x), bits, eps=EPS)
    found = averages(low)
    assert (found.e_g[:2] > 1e12).all()
    assert (found.e_x[:2] < 1e-6 * EPS).all()
    updates, _ = adadelta(state_bits=bits).update(jnp.ones(3), low)
    assert (np.abs(updates[:2]) < 1e-8).all()


GROUPS = {"fast": "w", "slow": "b"}


def grouped(eps, bits=None, rule=adadelta):
    """A group for each of two parameters; `eps` names them and has that of each group."""
    rules = {group: rule(eps=eps[name], state_bits=bits) for group, name in GROUPS.items()}
    return optax.multi_transform(rules, {name: group for group, name in GROUPS.items()})


@pytest.mark.parametrize(("rule", "bits"), [(adadelta, None), (nadadelta, 8)])
def test_averages_go_from_one_state_to_groups_and_back(rule, bits):
    params = {"w": normal((3, 4)), "b": normal(4), "new": normal(5)}
    old = {"w": params["w"], "b": params["b"]}
    one, groups = rule(eps=EPS, state_bits=bits), grouped({"w": EPS, "b": EPS}, bits, rule)
    state = stepped(one, old)
    carried = convert.carry_over(state, groups.init(old))
    same_types(carried, stepped(groups, old))
    for group, name in GROUPS.items():
        inner = find_state(carried.inner_states[group])
        assert inner.count == 3
        for field in ("e_g", "e_x"):
            same_bits(getattr(inner, field)[name], getattr(state, field)[name])
    # The next updates are what they would have been.
    found, expected = (r.update(old, s, old)[0] for r, s in ((groups, carried), (one, state)))
    chex.assert_trees_all_close(found, expected, rtol=0.2 if bits else 1e-6)
    # And back, beside a parameter that is new.
    fresh = one.init(params)
    back = jax.jit(convert.carry_over)(carried, fresh)
    same_types(back, fresh)
    assert back.count == 3
    for field in ("e_g", "e_x"):
        new = {"new": getattr(fresh, field)["new"]}
        same_bits(getattr(back, field), getattr(state, field) | new)
    same_bits(convert.carry_over(back, groups.init(old)), carried)
    # Other groups of the same parameters.
    others = optax.multi_transform({"all": one, "none": one}, {"w": "all", "b": "all"})
    moved = convert.carry_over(carried, others.init(old))
    same_bits(find_state(moved.inner_states["all"]).e_g, state.e_g)


def test_each_group_gets_the_largest_count_of_its_parameters():
    params = {"w": normal((3, 4)), "b": normal(4)}
    old = grouped({"w": EPS, "b": EPS})
    state = stepped(old, params)
    for group, count in (("fast", 7), ("slow", 4)):
        part = state.inner_states[group]
        part = part._replace(inner_state=part.inner_state._replace(count=jnp.int32(count)))
        state = state._replace(inner_states={**state.inner_states, group: part})
    assert convert.carry_over(state, adadelta().init(params)).count == 7
    assert convert.carry_over(state, adadelta().init({"b": params["b"]})).count == 4
    swapped = optax.multi_transform(
        {"one": adadelta(), "two": adadelta(), "three": adadelta()},
        {"w": "two", "b": "one", "new": "three"},
    )
    found = convert.carry_over(state, swapped.init({**params, "new": normal(2)}))
    counts = {name: find_state(part).count for name, part in found.inner_states.items()}
    assert counts == {"one": 4, "two": 7, "three": 7}


@pytest.mark.parametrize(
    ("rule", "bits", "jit"), [(adadelta, 16, lambda f: f), (nadadelta, 8, jax.jit)]
)
def test_groups_with_different_units_keep_their_averages(rule, bits, jit):
    params = {"w": normal((8, 16)), "b": normal((8, 16), 1)}
    eps = {"w": 1e-4, "b": 1e-7}
    state = stepped(grouped(eps, bits, rule), params)
    carry_over = jit(convert.carry_over)
    found = carry_over(state, rule(state_bits=bits).init(params))
    assert float(found.unit) == pytest.approx(1e-7)
    for group, name in GROUPS.items():
        before, after = averages(state.inner_states[group]), averages(found)
        pair = tuple(tree[name] for tree in after)
        assert_agree(pair, tuple(tree[name] for tree in before), bits, eps[name])
        if rule is nadadelta:
            inner = find_state(state.inner_states[group])
            i = list(found.trace).index(name)
            same_bits(found.scale[i], inner.scale[0])
            before, after = traces(inner), traces(found)
            assert_near(after[name], before[name], bits, np.sqrt(eps[name]) * inner.scale[0])
    # A group that was never stepped has a unit of zero, which says nothing.
    begun = state._replace(
        inner_states={
            **state.inner_states,
            "slow": grouped(eps, bits, rule).init(params).inner_states["slow"],
        }
    )
    found = carry_over(begun, rule(state_bits=bits).init(params))
    assert float(found.unit) == pytest.approx(1e-4)
    same_bits(found.e_g["w"], find_state(state.inner_states["fast"]).e_g["w"])
    assert not averages(found).e_g["b"].any()
    found = carry_over(grouped(eps, bits, rule).init(params), rule(state_bits=bits).init(params))
    assert all((leaf < 1e-6 * EPS).all() for leaf in jax.tree.leaves(tuple(averages(found))))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Variable:
    """What Flax wraps arrays in."""

    value: Any


def in_variables(state):
    return jax.tree.map(Variable, state)


def test_arrays_may_be_in_variables():
    state, fresh = trained(8, rule=nadadelta), nadadelta(state_bits=8).init(tree())
    expected = convert.carry_over(state, fresh)
    same_bits(convert.carry_over(state, in_variables(fresh)), in_variables(expected))
    same_bits(convert.carry_over(in_variables(state), fresh), expected)
    for eps in (EPS, lambda t: jnp.where(t == 3, EPS, 1.0)):
        found = convert.with_state_bits(in_variables(trained(None)), 8, eps=eps)
        same_bits(found, in_variables(convert.with_state_bits(trained(None), 8, eps=eps)))
    # An optimizer of Optax that counts the steps twice.
    counting = optax.chain(
        optax.adadelta(lambda count: 1.0), optax.scale_by_schedule(lambda count: 1.0)
    )
    theirs, new = stepped(counting, tree()), counting.init(tree())
    back = convert.to_optax(in_variables(state), in_variables(new))
    same_bits(back, in_variables(convert.to_optax(state, new)))
    found = convert.from_optax(in_variables(theirs))
    same_bits(convert.carry_over(found, adadelta().init(tree())), convert.from_optax(theirs))


@pytest.mark.devices
@pytest.mark.parametrize(("start", "bits"), [(None, 8), (16, None)])
def test_an_offloaded_state_stays_where_it_is(start, bits):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    host = NamedSharding(mesh, PartitionSpec(), memory_kind="pinned_host")
    state = jax.device_put(trained(start), host)
    found = convert.with_state_bits(state, bits, eps=lambda t: jnp.where(t == 3, EPS, 1.0))
    assert {leaf.sharding for leaf in jax.tree.leaves(found)} == {host}
    same_bits(found, convert.with_state_bits(trained(start), bits, eps=EPS))


@pytest.mark.devices
def test_carried_averages_are_placed_like_the_new_parameters():
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    places = [NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("y", "x"), ("x", None))]
    before, after = (adadelta().init(jax.device_put(normal((4, 8)), place)) for place in places)
    stepped_before = adadelta().update(normal((4, 8)), before)[1]
    found = convert.carry_over(stepped_before, after)
    assert found.e_g.sharding == found.e_x.sharding == places[1]
    assert found.count.sharding == after.count.sharding
    same_bits(found, stepped_before)
    # Those of parameters that JAX may place anywhere stay where they are.
    found = convert.carry_over(stepped_before, adadelta().init(np.ones((4, 8), np.float32)))
    assert found.e_g.sharding == stepped_before.e_g.sharding


@RULE
def test_only_dtypes_and_shapes_of_the_new_state_are_needed(rule):
    state = stepped(rule(), {"w": normal(3), "b": normal(2)})
    target = jax.eval_shape(rule().init, {"w": normal(3)})
    found = convert.carry_over(state, target)
    same_bits(found, convert.carry_over(state, rule().init({"w": normal(3)})))
    same_bits((found.e_g["w"], found.e_x["w"]), (state.e_g["w"], state.e_x["w"]))
    # Shapes have no scale.
    other = convert.carry_over(stepped(adadelta(), {"w": normal(3)}), target)
    assert rule is adadelta or np.isnan(other.scale).all()


def traces(state):
    return convert.with_state_bits(state, None).trace


def assert_near(found, trace, bits, unit, most=1.0):
    """Traces agree within `most` times half a code; `unit` is the root of what stands above."""
    share, least = TRACE[bits]
    np.testing.assert_array_less(
        np.abs(found - trace), 1.01 * most * share * (np.abs(trace) + least * unit) + 1e-30
    )


@pytest.mark.parametrize(("start", "bits"), [(None, 16), (None, 8), (8, None), (16, 8)])
def test_a_state_of_nadadelta_is_stored_otherwise(start, bits):
    state = trained(start, rule=nadadelta)
    found = convert.with_state_bits(state, bits, eps=1e-5)
    same_types(found, nadadelta(state_bits=bits).init(tree()))
    same_bits(found.scale, state.scale)
    before, after = averages(state), averages(found)
    leaves = zip(
        *map(jax.tree.leaves, (before.e_g, after.e_g, before.e_x, after.e_x)),
        *map(jax.tree.leaves, (traces(state), traces(found))),
        np.float64(state.scale),
        strict=True,
    )
    for old_g, new_g, old_x, new_x, trace, new_trace, r in leaves:
        assert apart(new_g, old_g, 1e-16 / r**2) <= 2.01 * CODE[bits] / 2
        assert apart(new_x, old_x, 1e-5 * r**2) <= 2.01 * CODE[bits]
        assert_near(np.asarray(new_trace), np.asarray(trace), bits, np.sqrt(1e-5) * r)
    same_bits(convert.with_state_bits(found, bits), found)
    nadadelta(state_bits=bits).update(tree(), found)


@QUANTIZED
def test_what_is_not_finite_in_a_trace_has_a_code(bits):
    full = nadadelta().init(jnp.ones(3))
    full = full._replace(trace=jnp.array([np.nan, np.inf, -np.inf]))
    found = traces(convert.with_state_bits(full, bits, eps=1e-5))
    assert found[0] == 0
    assert 1 < found[1] == -found[2]
    assert np.isfinite(found).all()


RULES = pytest.mark.parametrize(
    ("old", "new"), [(adadelta, nadadelta), (nadadelta, adadelta)], ids=["to", "back"]
)


@RULES
def test_a_run_goes_on_with_the_other_rule(old, new):
    state, fresh = trained(None, rule=old), new().init(tree())
    found = convert.carry_over(state, fresh)
    same_types(found, fresh)
    same_bits(found, fresh._replace(count=state.count, e_g=state.e_g, e_x=state.e_x))
    # E[g^2] has no part in it of which rule it is, so it goes on as if nothing had changed.
    for t in range(3, 6):
        _, found = new().update(tree(t), found)
        _, state = old().update(tree(t), state)
    chex.assert_trees_all_close(found.e_g, state.e_g, rtol=1e-6)


@RULES
def test_quantized_averages_go_to_the_other_rule_by_way_of_full_precision(old, new):
    state, optimizer = trained(8, rule=old), new(state_bits=8)
    with pytest.raises(ValueError, match=r"with_state_bits\(state, None\)"):
        convert.carry_over(state, optimizer.init(tree()))
    # As the error says.
    full = convert.carry_over(convert.with_state_bits(state, None), new().init(tree()))
    found = convert.with_state_bits(full, 8, eps=1e-5)
    same_types(found, optimizer.init(tree()))
    assert_agree(averages(found), averages(state), 8, 1e-4)
    assert optimizer.update(tree(), found)[1].count == 4


def test_a_trace_of_real_numbers_is_not_carried_to_complex_parameters():
    state = stepped(nadadelta(), {"w": normal(3)})
    with pytest.raises(TypeError, match=r"\['w'\].*float32.*complex64"):
        convert.carry_over(state, nadadelta().init({"w": normal(3).astype(jnp.complex64)}))


class Layer(NamedTuple):
    w: Any
    value: Any


A, B, C = normal((3, 4)), normal(4), normal(5)
# For each: old parameters, new ones, and which of the new ones are old.
SAME_NAMES = {
    "attributes": (
        {"a": {"w": A, "value": B}},
        {"a": Layer(A, B), "c": C},
        {"a": Layer(1, 1), "c": 0},
    ),
    "indices": ({"a": {"0": A, "1": B}}, {"a": [A, B]}, {"a": [1, 1]}),
    "a flat dict": ({"a/w": A, "b": B}, {"a": {"w": A}, "b": B}, {"a": {"w": 1}, "b": 1}),
    "a variable": ({"w": A}, {"w": {"value": A}}, {"w": {"value": 1}}),
    "a container in the old one": (
        {"params": {"a": A, "b": B}},
        {"a": A, "b": B},
        {"a": 1, "b": 1},
    ),
    "containers in the new one": (
        {"a": A},
        {"net": ({"a": A, "b": B},)},
        {"net": ({"a": 1, "b": 0},)},
    ),
    "no container of one": ({"a": {"w": A}}, {"a": {"w": A}, "w": A}, {"a": {"w": 1}, "w": 0}),
    "a container of that name": ({"a": {"a": {"w": A}}}, {"a": {"w": A}}, {"a": {"w": 1}}),
    "frozen and in a container": (
        {"params": {"a": A, "b": None, "c": C}},
        {"a": None, "b": B, "c": C},
        {"a": None, "b": 0, "c": 1},
    ),
    "one array": (A, {"params": A}, {"params": 1}),
    "nothing": ({}, {"a": A}, {"a": 0}),
}


@pytest.mark.parametrize("name", SAME_NAMES)
def test_parameters_are_matched_by_name(name):
    old, new, same = SAME_NAMES[name]
    state = stepped(adadelta(), old)
    found = convert.carry_over(state, adadelta().init(new))
    assert found.count == 3
    same_types(found, adadelta().init(new))
    # The old averages are not zero, and those of another parameter would have another shape.
    assert jax.tree.map(lambda leaf: int(leaf.any()), found.e_g) == same


# Both sides have parameters, and none of them is the same.
NO_SAME_NAMES = {
    "other names": ({"a": A}, {"b": A}),
    "another branch": ({"a": A, "b": None}, {"a": None, "b": {"a": A}}),
    "another layer": ({"one": {"w": A, "b": B}}, {"two": {"w": A, "b": B}}),
    "a part of a container": ({"net": {"w": A, "b": B}}, {"w": A, "c": C}),
    "no common container": ({"one": {"w": A}, "two": {"w": A}}, {"w": A}),
}


@pytest.mark.parametrize("name", NO_SAME_NAMES)
def test_parameters_with_other_names_are_refused(name):
    old, new = (adadelta().init(params) for params in NO_SAME_NAMES[name])
    with pytest.raises(ValueError, match="No trained parameter has the same name"):
        convert.carry_over(old, new)


def test_the_names_of_both_sides_are_listed():
    old = adadelta().init({"layers": [{"weight": A}], "scale": B})
    new = adadelta().init({f"w{i}": A for i in range(9)})
    with pytest.raises(ValueError, match=r"layers/0/weight, scale.*w0, w1, .* and 4 more"):
        convert.carry_over(old, new)


def test_what_does_not_fit_is_not_carried_over():
    params, sgd = {"w": normal((3, 4))}, optax.sgd(0.1)
    state = stepped(adadelta(), params)
    fresh, other = adadelta().init(params), adadelta().init({"w": normal((3, 5))})
    twice = adadelta().init({"a/b": normal(2), "a": {"b": normal(2)}})
    for old, new, message in (
        (state, other, r"\['w'\].*\(3, 4\).*\(3, 5\)"),
        (state, adadelta(state_bits=8).init(params), r"\['w'\].*float32.*uint8.*with_state_bits"),
        (sgd.init(params), fresh, "no AdadeltaState"),
        (state, sgd.init(params), "no AdadeltaState"),
        ((state, state), fresh, r"Two AdadeltaStates.* of w"),
        (twice, twice, "same name, a/b"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            convert.carry_over(old, new)
