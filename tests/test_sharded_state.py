"""The state on eight devices: each stored average is where its parameter is, in every storage."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from states import (
    CODE,
    DTYPES,
    EPS,
    apart,
    assert_agree,
    like,
    normal,
    same_bits,
    same_types,
    stepped,
)

from optax_adadelta import AdadeltaState, adadelta, reduce_eps_on_plateau, stochastic_round
from optax_adadelta.diagnostics import averages, find_state

pytestmark = pytest.mark.devices
NONE_AND_8 = pytest.mark.parametrize("bits", [None, 8])

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))


def params():
    return {"w": normal((16, 24)), "b": normal((8,))}


@pytest.mark.parametrize(
    ("bits", "spec"), [(None, P(None, "x")), (16, P("x", None)), (8, P("x", None))], ids=str
)
def test_eight_devices_store_an_eighth_each_and_exchange_nothing(bits, spec, mesh):
    place = NamedSharding(mesh, spec)
    w = jax.device_put(jnp.ones((512, 768)), place)
    optimizer = adadelta(state_bits=bits)

    def check(state):
        stored = dict.fromkeys(jax.devices(), 0)
        for leaf in (state.e_g, state.e_x):
            assert leaf.sharding.is_equivalent_to(place, 2)
            for shard in leaf.addressable_shards:
                stored[shard.device] += shard.data.nbytes
        assert set(stored.values()) == {2 * jnp.dtype(DTYPES[bits]).itemsize * 512 * 768 // 8}

    state = optimizer.init(w)
    check(state)
    check(optimizer.init(jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=place)))

    def step(w, state, grads):
        updates, state = optimizer.update(grads, state, w)
        return optax.apply_updates(w, updates), state

    compiled = jax.jit(step).lower(w, state, w).compile()
    program = compiled.as_text()
    assert not [op for op in COLLECTIVES if op in program]
    # No device makes an array of the parameter's whole shape.
    assert "[512,768]" not in program
    after, state = compiled(w, state, w)
    check(state)
    assert after.sharding.is_equivalent_to(place, 2)


@NONE_AND_8
def test_shard_map_takes_and_returns_the_global_state(bits, mesh):
    specs = {"w": P(None, "x"), "b": P()}
    optimizer = adadelta(state_bits=bits)
    state = stepped(optimizer, params(), 2)
    state_specs = AdadeltaState(P(), specs, specs, P())
    grads = jax.tree.map(lambda p: 0.3 * p, params())

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(specs, state_specs), out_specs=(specs, state_specs)
    )
    def sharded(grads, state):
        assert grads["w"].shape == state.e_g["w"].shape == state.e_x["w"].shape == (16, 3)
        return optimizer.update(grads, state)

    updates, after = sharded(grads, state)
    expected, expected_state = optimizer.update(grads, state)
    same_types((updates, after), (expected, expected_state))
    assert int(after.count) == int(expected_state.count) == 3
    if bits:
        assert float(after.unit) == float(expected_state.unit)
    # Each piece has the bits that it has alone on one device.
    for dx, e_g, e_x in zip(
        *(x["w"].addressable_shards for x in (updates, after.e_g, after.e_x)), strict=True
    ):
        piece = state._replace(e_g=state.e_g["w"][dx.index], e_x=state.e_x["w"][dx.index])
        alone_dx, alone = optimizer.update(grads["w"][dx.index], piece)
        same_bits((dx.data, e_g.data, e_x.data), (alone_dx, alone.e_g, alone.e_x))
    # A shard's dither depends on its own indices, so a value may round to the neighbouring code.
    chex.assert_trees_all_close(updates, expected, rtol=1e-5 + CODE[bits])
    assert_agree(averages(after), averages(expected_state), bits)


@pytest.mark.parametrize(
    ("bits", "kind", "spec", "columns", "ulps"),
    [
        (None, AxisType.Auto, P("a", None), 128, 0),
        (None, AxisType.Explicit, P(None, ("a", "b")), 128, 0),
        (16, AxisType.Auto, P("b", "a"), 128, 0),
        (8, AxisType.Explicit, P("b", "a"), 128, 0),
        # A piece of fewer than 9 columns may get other bits than the leaf (see test_numerics). Its
        # codes are the same nevertheless.
        (None, AxisType.Auto, P(None, ("a", "b")), 24, 5),
        (8, AxisType.Auto, P(None, ("a", "b")), 24, 5),
    ],
    ids=str,
)
def test_eight_devices_step_as_one_does_bit_for_bit(bits, kind, spec, columns, ulps, compiled):
    optimizer = adadelta(state_bits=bits)
    update, w = jax.jit(optimizer.update), normal((16, columns))
    expected, programs = optimizer.init(w), set()
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind,) * 2)
    with jax.set_mesh(mesh):
        w = jax.device_put(w, NamedSharding(mesh, spec))
        state = optimizer.init(w)
    for t in range(3):
        expected_dx, expected = update(normal(w.shape, t), expected)
        with jax.set_mesh(mesh):
            dx, state = update(like(w, t), state)
        programs.add(compiled())
        assert state.e_g.sharding.is_equivalent_to(w.sharding, 2)
        assert dx.sharding.is_equivalent_to(w.sharding, 2)
        found = jax.device_get((dx, state))
        if bits:
            same_bits(found[1], jax.device_get(expected))
        for leaf, one in zip(
            jax.tree.leaves(found), jax.tree.leaves((expected_dx, expected)), strict=True
        ):
            np.testing.assert_array_max_ulp(leaf, np.asarray(one), ulps)
    assert len(programs) == 1


@pytest.mark.parametrize(
    ("kind", "of"),
    [
        ("reduced", "array"),
        ("unreduced", "tracer"),
        ("reduced", "abstract"),
        ("unreduced", "array"),
    ],
)
def test_a_parameter_whose_sum_over_an_axis_is_pending_gets_an_ordinary_state(kind, of):
    if jax.__version_info__ < (0, 10) and of != "abstract":
        pytest.skip("before 0.10 JAX itself aborts when it makes such an array")
    spec = P("a", **{kind: {"b"}})
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    optimizer = adadelta(state_bits=8)
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, spec)
        if of == "abstract":
            state = optimizer.init(jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=place))
            host = place.with_memory_kind("pinned_host")
            assert in_host(optimizer.init(jax.ShapeDtypeStruct((8,), jnp.float32, sharding=host)))
        else:
            p = jax.jit(lambda x: jax.sharding.reshard(x, place))(jnp.ones((8, 4)))
            state = (jax.jit(optimizer.init) if of == "tracer" else optimizer.init)(p)
        ordinary = NamedSharding(mesh, P("a"))
        assert state.e_g.sharding.is_equivalent_to(ordinary, 2)
        _, after = jax.jit(optimizer.update)(jax.device_put(jnp.ones((8, 4)), ordinary), state)
    same_types(after, state)


EPSILONS = jnp.geomspace(1e-8, 1e-5, 8)


def with_schedules(eps, bits):
    values = 1e5 * eps, 0.9 + 1e3 * eps, eps, 1e2 * eps
    return adadelta(*(lambda count, v=v: v + 0 * count for v in values), state_bits=bits)


def injected(eps, bits):
    return optax.inject_hyperparams(adadelta, "state_bits")(eps=eps, state_bits=bits)


def scanned(optimizer, params):
    def step(state, g):
        grads = jax.tree.map(lambda p: g * p, params)
        return optimizer.update(grads, state, params)[1], None

    return jax.lax.scan(step, optimizer.init(params), jnp.arange(1.0, 4.0))[0]


@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize(
    ("make", "bits", "params_vary", "eps_varies"),
    [
        (with_schedules, None, True, False),
        (with_schedules, 8, False, True),
        (injected, 8, True, False),
        (injected, None, False, True),
    ],
)
def test_devices_scan_in_shard_map_as_each_does_alone(make, bits, params_vary, eps_varies, mesh):
    def train(epsilons, params):
        eps = epsilons[0] if eps_varies else jnp.float32(EPS)
        if params_vary:
            params = jax.lax.pcast(params, "x", to="varying")
        return jax.tree.map(lambda leaf: leaf[None], scanned(make(eps, bits), params))

    states = jax.jit(jax.shard_map(train, mesh=mesh, in_specs=(P("x"), P()), out_specs=P("x")))(
        EPSILONS, params()
    )
    for i in (0, 7):
        eps = EPSILONS[i] if eps_varies else EPS
        found = find_state(jax.tree.map(lambda leaf, i=i: leaf[i], states))
        expected = find_state(scanned(make(eps, bits), params()))
        same_types(found, expected)
        assert int(found.count) == 3
        assert apart(averages(found), averages(expected), eps) < 1e-5 + 2 * CODE[bits]


def test_scalars_of_sharded_parameters_are_the_same_everywhere(mesh):
    """So a state that shard_map returns can have P() for them."""
    specs = {"w": P(None, "x"), "b": P("x")}
    init = jax.shard_map(
        adadelta(state_bits=8).init,
        mesh=mesh,
        in_specs=(specs,),
        out_specs=AdadeltaState(P(), specs, specs, P()),
    )
    same_bits(jax.jit(init)(params()), adadelta(state_bits=8).init(params()))


def in_host(tree):
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree)} == {"pinned_host"}


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("of", ["array", "tracer", "abstract"])
def test_a_state_in_host_memory_is_there_as_a_whole(devices, of, mesh):
    if jax.__version_info__ < (0, 10):
        pytest.skip("before 0.10 a program on a CPU cannot move arrays between memories")
    place = NamedSharding(mesh, P("x"), memory_kind="pinned_host")
    if devices == 1:
        place = SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host")
    optimizer, grads = optax.chain(adadelta(state_bits=8), stochastic_round()), params()
    given = jax.device_put(grads, place)
    init = jax.jit(optimizer.init) if of == "tracer" else optimizer.init
    if of == "abstract":
        given = jax.tree.map(lambda p: p.update(sharding=place), jax.eval_shape(params))
    state = init(given)
    assert in_host((state, init(given["w"])))
    same_types(state, optimizer.init(grads))
    same_bits(jax.device_get(state), jax.device_get(optimizer.init(grads)))


def test_scalars_are_on_the_device_unless_all_arrays_are_in_host_memory(mesh):
    host = NamedSharding(mesh, P(), memory_kind="pinned_host")
    given = {"w": jax.device_put(jnp.ones(8), host), "b": jnp.ones(8)}
    state = adadelta(state_bits=8).init(given)
    assert in_host((state.e_g["w"], state.e_x["w"]))
    assert not in_host((state.count, state.unit))
    injected_state = injected(EPS, 8).init(given)
    assert not in_host(reduce_eps_on_plateau().init(injected_state))
    assert in_host(reduce_eps_on_plateau().init(jax.device_put(injected_state, host)))
