"""States that go on with another eps or in another storage, and states that cannot go on."""

import functools
import re

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
    apart,
    assert_agree,
    normal,
    same_bits,
    same_types,
    stepped,
    trained,
    tree,
)

from optax_adadelta import AdadeltaState, adadelta, convert, diagnostics, scale_by_adadelta
from optax_adadelta.diagnostics import averages, effective_learning_rate, find_state


def gaps(bits, eps):
    """For each field, the distance from the codes around an average to the next, as a function."""
    codes = jnp.arange(2**bits).astype(DTYPES[bits])
    first = jnp.zeros_like(codes)
    eps = jnp.float32(eps)
    tables = (
        averages(AdadeltaState(jnp.int32(1), codes, first, eps)).e_g,
        averages(AdadeltaState(jnp.int32(1), first, codes, eps)).e_x,
    )

    def gap(table, average):
        table = np.unique(np.float64(table))
        above = np.clip(np.searchsorted(table, average, "right"), 1, len(table) - 2)
        return np.maximum(table[above] - table[above - 1], table[above + 1] - table[above])

    return [functools.partial(gap, table) for table in tables]


@QUANTIZED
@pytest.mark.parametrize("factor", [1e-4, 1e-2, 1.0, 1e2, 1e4])
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
    assert apart(new.e_g[common], e_g[common], max(before, after)) <= 1.01 * CODE[bits]
    # The codes at the ends of the range are further apart.
    (old_g, old_x), (new_g, new_x) = gaps(bits, before), gaps(bits, after)
    assert np.all(np.abs(new.e_g - e_g) <= 1.01 * np.maximum(old_g(e_g), new_g(e_g)))
    if bits == 16:
        most = np.maximum(old_x(e_x), new_x(e_x))
    else:
        # A ratio is stored. Its octave may be the next, and the error of E[g^2] adds to its own.
        most = 2 * np.maximum(old_x(2 * e_x), new_x(2 * e_x))
        most += (e_x + max(before, after)) * CODE[8]
    assert np.all(np.abs(new.e_x - e_x) <= 1.01 * most)


@QUANTIZED
def test_an_eps_schedule_is_followed_as_in_full_precision(bits):
    def eps(count):
        return 1e-4 * 0.9 ** jnp.float32(count)

    found, expected = (scale_by_adadelta(0.9, eps, state_bits=b) for b in (bits, None))
    scales = np.broadcast_to(np.float32(10.0) ** np.linspace(-3, 1, 16), (8, 16))
    g = normal((8, 16)) * np.float32(scales)
    low, full = found.init(g), expected.init(g)
    for _ in range(10):
        u, low = found.update(g, low)
        v, full = expected.update(g, full)
        np.testing.assert_allclose(u, v, rtol={16: 8e-3, 8: 0.4}[bits])
    # A schedule is evaluated at the state's count.
    for state in (low, full):
        rate = effective_learning_rate(state, eps)
        np.testing.assert_allclose(rate, effective_learning_rate(state, 1e-4 * 0.9**10), rtol=1e-5)
        assert not np.allclose(rate, effective_learning_rate(state, 1e-4), rtol=0.02)


@BITS
def test_eps_must_be_given_to_read_learning_rates(bits):
    with pytest.raises(TypeError, match="eps"):
        effective_learning_rate(trained(bits))


@QUANTIZED
def test_a_full_state_is_quantized_and_read_back(bits):
    full = trained(None)
    low = convert.with_state_bits(full, bits, eps=EPS)
    same_types(low, adadelta(state_bits=bits).init(tree()))
    assert float(low.unit) == pytest.approx(EPS)
    assert int(low.count) == 3
    assert_agree(averages(low), (full.e_g, full.e_x), bits)
    back = convert.with_state_bits(low, None)
    same_types(back, full)
    assert back.unit is None
    assert int(back.count) == 3
    chex.assert_trees_all_close((back.e_g, back.e_x), tuple(averages(low)), rtol=1e-6)
    # Averages that codes stand for stay as they are.
    same_bits(convert.with_state_bits(low, bits), low)


@pytest.mark.parametrize(("before", "after"), [(16, 8), (8, 16)])
def test_a_quantized_state_is_quantized_otherwise(before, after):
    state = trained(before)
    other = convert.with_state_bits(state, after)
    same_types(other, adadelta(state_bits=after).init(tree()))
    assert float(other.unit) == float(state.unit)
    assert int(other.count) == 3
    assert_agree(averages(other), averages(state), after)


@pytest.mark.usefixtures("x64")
@QUANTIZED
def test_float64_averages_come_back_as_float64(bits):
    g = jnp.asarray(normal((3, 4)), jnp.float64)
    full = stepped(adadelta(), g)
    low = convert.with_state_bits(full, bits, eps=EPS)
    back = convert.with_state_bits(low, None, dtype=jnp.float64)
    same_types(back, full)
    assert_agree((back.e_g, back.e_x), (full.e_g, full.e_x), bits)
    # A state that is in full precision already keeps its dtype.
    same_bits(convert.with_state_bits(full, None), full)


@BITS
@pytest.mark.parametrize("start", [None, 16, 8])
def test_training_goes_on_in_another_storage(bits, start):
    update, full_update = (jax.jit(adadelta(state_bits=b).update) for b in (bits, None))
    state = convert.with_state_bits(trained(start), bits, eps=EPS)
    exact = trained(None)
    # A ratio of roots is off by half as much as its averages. Each step rounds them once.
    rtol = {None: 1e-5, 16: 4 * CODE[16], 8: 1.5 * CODE[8]}[min((start, bits), key=precision)]
    for t in range(10, 13):
        grads = tree(t)
        updates, state = update(grads, state)
        expected, exact = full_update(grads, exact)
        chex.assert_trees_all_close(updates, expected, rtol=rtol)
    assert int(state.count) == 6
    same_types(state, adadelta(state_bits=bits).init(tree()))


def precision(bits):
    return bits or 32


@QUANTIZED
def test_a_state_is_converted_wherever_it_is(bits):
    def make(bits):
        return optax.chain(optax.trace(0.9), optax.masked(adadelta(state_bits=bits), True))

    params = {"w": normal((4, 8)), "none": None}
    full = stepped(make(None), params, 2)
    low = convert.with_state_bits(full, bits, eps=EPS)
    same_types(low, make(bits).init(params))
    same_bits(low[0], full[0])
    assert_agree(averages(low), averages(full), bits)
    same_bits(jax.jit(lambda state: convert.with_state_bits(state, bits, eps=EPS))(full), low)

    # A schedule is evaluated at the state's count, which is 2.
    def eps(count):
        return jnp.where(count == 2, EPS, 1.0)

    same_bits(convert.with_state_bits(full, bits, eps=eps), low)


@QUANTIZED
def test_two_states_are_both_converted(bits):
    labels = {"w": "fast", "b": ["slow"]}
    pair = optax.multi_transform({"fast": adadelta(2.0), "slow": adadelta(0.5)}, labels)
    state = convert.with_state_bits(stepped(pair, tree(), 1), bits, eps=EPS)
    parts = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, AdadeltaState))
    assert len(parts) == 2
    for leaf in jax.tree.leaves([(part.e_g, part.e_x) for part in parts]):
        assert leaf.dtype == DTYPES[bits]


@BITS
@pytest.mark.parametrize("start", [None, 16, 8])
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


@QUANTIZED
def test_conversions_that_cannot_be_made_are_refused(bits):
    with pytest.raises(ValueError, match="eps"):
        convert.with_state_bits(trained(None), bits)
    with pytest.raises(ValueError, match="eps"):
        convert.with_state_bits(trained(None), bits, eps=-1.0)
    with pytest.raises(ValueError, match="state_bits"):
        convert.with_state_bits(trained(bits), 4)
    with pytest.raises(ValueError, match="AdadeltaState"):
        convert.with_state_bits(optax.sgd(0.1).init(tree()), bits, eps=EPS)


def cast(state, dtype):
    e_g, e_x = jax.tree.map(lambda leaf: leaf.astype(dtype), (state.e_g, state.e_x))
    return state._replace(e_g=e_g, e_x=e_x)


def pmean(*states):
    """The mean of the states, as each of several devices gets it."""
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    mean = jax.vmap(lambda state: jax.lax.pmean(state, "d"), axis_name="d", out_axes=None)
    return mean(stacked)


def half_way(one, other):
    with jax.numpy_dtype_promotion("standard"):
        return optax.incremental_update(one, other, 0.5)


MEANS = {
    "tree map": lambda *states: jax.tree.map(lambda *x: sum(x) / len(x), *states),
    "pmean": pmean,
    "incremental_update": half_way,
}


def with_unit(low, dtype):
    return low._replace(unit=low.unit.astype(dtype))


# Each makes a state of a quantized one, one of the other quantized storage and a full one.
SPOILT = {
    **{
        f"codes averaged by {name}": (
            lambda low, other, full, mean=mean: mean(low, low._replace(count=low.count + 2)),
            r"were codes .*with_state_bits\(state, None\)",
        )
        for name, mean in MEANS.items()
    },
    "codes cast to float32": (lambda low, other, full: cast(low, jnp.float32), "were codes"),
    "codes cast to bfloat16": (lambda low, other, full: cast(low, jnp.bfloat16), "were codes"),
    "averages of a full state": (
        lambda low, other, full: low._replace(e_g=full.e_g, e_x=full.e_x),
        "same state",
    ),
    "a unit of float16": (
        lambda low, other, full: with_unit(low, jnp.float16),
        r"state.unit is float16, .* state._replace\(unit=",
    ),
    "a unit of bfloat16": (lambda low, other, full: with_unit(low, jnp.bfloat16), "bfloat16"),
    "a unit of int32": (lambda low, other, full: with_unit(low, jnp.int32), "state.unit is int32"),
    "a count of float32": (
        lambda low, other, full: low._replace(count=low.count.astype(jnp.float32)),
        "state.count is float32",
    ),
    "a count of bfloat16 in full precision": (
        lambda low, other, full: full._replace(count=full.count.astype(jnp.bfloat16)),
        "state.count is bfloat16",
    ),
    "E[dx^2] in full precision": (lambda low, other, full: low._replace(e_x=full.e_x), "e_x"),
    "E[g^2] in full precision": (lambda low, other, full: low._replace(e_g=full.e_g), "e_g"),
    "codes of 16 and 8 bits": (lambda low, other, full: low._replace(e_x=other.e_x), "uint"),
    "codes without a unit": (lambda low, other, full: low._replace(unit=None), "unit"),
    "a unit of two elements": (lambda low, other, full: low._replace(unit=jnp.ones(2)), "unit"),
    "codes of int32": (lambda low, other, full: cast(low, jnp.int32), "int32"),
    "bfloat16": (lambda low, other, full: cast(full, jnp.bfloat16), "bfloat16"),
}


@QUANTIZED
@pytest.mark.parametrize("name", SPOILT)
def test_states_of_mixed_storages_are_refused(bits, name):
    """A wrong target, a cast, or parts of two checkpoints make such states."""
    spoil, words = SPOILT[name]
    state = spoil(trained(bits), trained(24 - bits), trained(None))
    for goes_on in (bits, None):
        with pytest.raises((TypeError, ValueError), match=words):
            adadelta(state_bits=goes_on).update(tree(), state)
    coordinates = diagnostics.choose_coordinates(trained(None), 2)
    for read in (
        averages,
        lambda state: diagnostics.effective_learning_rate(state, EPS),
        lambda state: diagnostics.sample(state, tree(), coordinates, EPS),
        lambda state: diagnostics.summaries(state, EPS),
        lambda state: convert.with_state_bits(state, bits, eps=EPS),
        lambda state: convert.with_state_bits(state, None),
        lambda state: convert.to_optax(state, optax.adadelta(1.0).init(tree())),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            read(state)


@BITS
@pytest.mark.parametrize("name", MEANS)
def test_the_mean_of_states_is_taken_in_full_precision(bits, name):
    """The codes are read first, and written again afterwards."""
    states = trained(bits), trained(bits, 4)
    full = [convert.with_state_bits(state, None) for state in states]
    mean = MEANS[name](*full)
    expected = jax.tree.map(lambda *x: (x[0] + x[1]) / 2, *map(averages, states))
    assert_agree(averages(mean), expected, None)

    counts = []
    rate = optax.constant_schedule(1.0)
    optimizer = adadelta(lambda count: counts.append(count) or rate(count))
    updates, after = optimizer.update(tree(), mean)
    # The step goes on from the mean, and no type changes.
    fresh = AdadeltaState(jnp.int32(4), *expected)
    chex.assert_trees_all_close(updates, adadelta().update(tree(), fresh)[0], rtol=1e-6)
    same_types(after, mean)
    assert float(after.count) == 4.5
    # A schedule gets an integer, so it can look a value up in a table.
    assert [(count.dtype, int(count)) for count in counts] == [(jnp.int32, 4)]

    back = convert.with_state_bits(mean, bits, eps=EPS)
    same_types(back, trained(bits))
    assert_agree(averages(back), expected, bits)
    _, after = adadelta(state_bits=bits).update(tree(), back)
    assert int(after.count) == 5


@BITS
def test_a_state_keeps_its_storage_whichever_optimizer_goes_on(bits):
    state = trained(bits)
    _, expected = adadelta(state_bits=bits).update(tree(), state)
    for other in (None, 16, 8):
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


@pytest.mark.parametrize("dtype", [int, jnp.bfloat16, jnp.complex64])
def test_another_dtype_than_that_of_averages_is_refused(dtype):
    with pytest.raises(TypeError, match="dtype must be"):
        convert.with_state_bits(trained(8), None, dtype=dtype)


def wrapped(trained, bits=None, wrap=lambda rule: rule):
    labels = {name: "train" if name in trained else "freeze" for name in ("w", "b", "new")}
    rules = {"train": wrap(adadelta(state_bits=bits)), "freeze": optax.set_to_zero()}
    return optax.multi_transform(rules, labels)


@BITS
@pytest.mark.parametrize("chained", [False, True])
def test_unfrozen_parameters_start_fresh_and_others_go_on(bits, chained):
    def wrap(rule):
        return optax.chain(optax.trace(0.9), rule, optax.scale(1.0)) if chained else rule

    params = {"w": normal((3, 4)), "b": normal(4), "new": normal(5)}
    some, every = (wrapped(trained, bits, wrap) for trained in ("w", ("w", "b", "new")))
    state = stepped(some, params)
    fresh = every.init(params)
    before, begun = find_state(state), find_state(fresh)
    carried = convert.carry_over(state, fresh)
    same_types(carried, fresh)
    found = find_state(carried)
    assert found.count == before.count == 3
    same_bits(averages(found).e_g["w"], averages(before).e_g["w"])
    same_bits(averages(found).e_x["w"], averages(before).e_x["w"])
    for name in ("b", "new"):
        same_bits(found.e_g[name], begun.e_g[name])
        same_bits(found.e_x[name], begun.e_x[name])
    # The next update of an old parameter is what it would have been.
    grads = jax.tree.map(jnp.ones_like, params)
    if not chained:
        expected, _ = some.update(grads, state, params)
        updates, _ = every.update(grads, carried, params)
        same_bits(updates["w"], expected["w"])
        alone, _ = adadelta().update(grads["b"], adadelta().init(params["b"]))
        np.testing.assert_allclose(updates["b"], alone, rtol=0.1 if bits else 1e-6)


@BITS
def test_averages_are_distributed_to_groups(bits):
    params = {"w": normal((3, 4)), "b": normal(4)}
    rule = adadelta(state_bits=bits)
    state = stepped(rule, params)
    groups = optax.multi_transform({"one": rule, "two": rule}, {"w": "one", "b": "two"})
    carried = convert.carry_over(state, groups.init(params))
    same_types(carried, stepped(groups, params))
    expected, state = rule.update(params, state)
    updates, carried = groups.update(params, carried)
    if bits is None:
        same_bits(updates, expected)
    for name, group in (("w", "one"), ("b", "two")):
        inner = find_state(carried.inner_states[group])
        assert inner.count == 4
        kept = convert.carry_over(carried.inner_states[group], rule.init({name: params[name]}))
        if bits is None:
            same_bits((kept.e_g[name], kept.e_x[name]), (state.e_g[name], state.e_x[name]))


@BITS
def test_frozen_parameters_leave_and_a_state_of_nothing_becomes_one(bits):
    params = {"w": normal((3, 4)), "b": normal(4)}
    optimizer = adadelta(state_bits=bits)
    state = stepped(optimizer, params)
    less = convert.carry_over(state, optimizer.init({"w": params["w"], "b": None}))
    assert less.e_g["b"] is None
    same_bits((less.e_g["w"], less.e_x["w"]), (state.e_g["w"], state.e_x["w"]))
    empty = convert.carry_over(
        optimizer.init({})._replace(count=jnp.int32(7)), optimizer.init(params)
    )
    same_types(empty, state)
    assert empty.count == 7


def test_what_does_not_fit_is_not_carried_over():
    params = {"w": normal((3, 4))}
    state = stepped(adadelta(), params)
    with pytest.raises(ValueError, match=r"\['w'\].*\(3, 4\).*\(3, 5\)"):
        convert.carry_over(state, adadelta().init({"w": normal((3, 5))}))
    with pytest.raises(TypeError, match=r"\['w'\].*float32.*uint8.*with_state_bits"):
        convert.carry_over(state, adadelta(state_bits=8).init(params))
    with pytest.raises(ValueError, match="no AdadeltaState"):
        convert.carry_over(optax.sgd(0.1).init(params), adadelta().init(params))
    with pytest.raises(ValueError, match="no AdadeltaState"):
        convert.carry_over(state, optax.sgd(0.1).init(params))
