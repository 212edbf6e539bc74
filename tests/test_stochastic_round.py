"""Stochastic rounding: parameters of few bits follow the path of float32 parameters."""

import functools

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optax_adadelta import StochasticRoundState, adadelta, stochastic_round
from optax_adadelta._dither import dither_at, third

# Each with the smallest size whose last place is not subnormal in float32.
LEAST = {
    np.float16: 0.0,
    ml_dtypes.bfloat16: 2.0**-119,
    ml_dtypes.float8_e5m2: 0.0,
    ml_dtypes.float8_e4m3fn: 0.0,
}
# What follows the largest number.
END = dict.fromkeys(LEAST, np.inf) | {ml_dtypes.float8_e4m3fn: 448.0}
COUNTS = jnp.arange(4096, dtype=jnp.int32)


def added(p, u):
    """The new parameter. JAX promotes no 8-bit floats, so Optax cannot add them to float32."""
    if p.dtype.itemsize == 1:
        return (p.astype(jnp.float32) + u).astype(p.dtype)
    with jax.numpy_dtype_promotion("standard"):
        return optax.apply_updates(p, u)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", LEAST)
@pytest.mark.parametrize(
    "built",
    [
        lambda place: optax.sgd(place / 80),
        lambda place: adadelta(2 * place),
    ],
)
def test_steps_far_below_the_last_place_follow_the_float32_path(built, dtype):
    place = float(jnp.finfo(dtype).eps)
    start = np.linspace(1.1, 1.9, 2000).astype(dtype)
    gradient = np.where(np.arange(2000) % 3 == 0, -1, 1)

    def moved(optimizer, dtype):
        def step(carry, _):
            params, state = carry
            # An update in 8 bits would itself be lost.
            g = jnp.asarray(gradient, np.float32 if params.dtype.itemsize == 1 else dtype)
            updates, state = optimizer.update(g, state, params)
            return (added(params, updates), state), None

        params = jnp.asarray(start, dtype)
        with jax.numpy_dtype_promotion("standard"):
            carry = params, optimizer.init(params)
            (params, _), _ = jax.lax.scan(step, carry, length=200)
        return np.float64(params) - np.float64(start)

    assert (moved(built(place), dtype) == 0).all()
    got = moved(optax.chain(built(place), stochastic_round()), dtype)
    expected = moved(built(place), np.float32)
    assert (np.abs(expected) > 1.5 * place).all()
    # An octave of 8-bit floats has 4 or 8 places, so these steps lead through several.
    few = np.dtype(dtype).itemsize == 1
    means = (got * gradient).mean(), (expected * gradient).mean()
    np.testing.assert_allclose(*means, rtol=0.06 if few else 0.01)
    # With random choices, the worst is 4 to 7 places off.
    assert np.abs(got - expected).max() < (3 if few else 2.5) * place


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, None, 0))
def landed(p, u, count):
    updates, _ = stochastic_round().update(u, StochasticRoundState(count), p)
    return added(p, updates)


@given(st.sampled_from(list(LEAST)), st.integers(0, 2**32 - 1))
def test_a_parameter_lands_on_the_sum_or_else_on_a_neighbour(dtype, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**16, 200).astype(f"uint{8 * np.dtype(dtype).itemsize}")
    p = np.float32(codes.view(dtype))
    p = np.where(np.isfinite(p) & (np.abs(p) >= LEAST[dtype]), p, 0).astype(dtype)
    u = np.float64(p) * rng.standard_normal(200) * 2.0 ** rng.integers(-14, 15, 200)
    u[:100] = rng.permutation(p[:100])
    u = np.clip(u, -1e38, 1e38).astype(np.float32)
    with np.errstate(over="ignore"):
        goal = np.clip(np.float32(p) + u, -END[dtype], END[dtype])
        nearest = goal.astype(dtype)
        end = np.where(goal > np.float32(nearest), END[dtype], -END[dtype])
        other = np.nextafter(nearest, end.astype(dtype))
    got = np.asarray(landed(p, u, rng.integers(0, 2**31, 4).astype(np.int32)))
    unusual = (goal != 0) & (np.abs(goal) < LEAST[dtype])
    exact = goal == np.float32(nearest)
    assert ((got == nearest) | ((got == other) & ~exact) | unusual).all(), (p, u, got)


@pytest.mark.parametrize("dtype", LEAST)
def test_over_the_steps_the_mean_is_the_sum(dtype):
    rng, kind = np.random.default_rng(0), jnp.finfo(dtype)
    eps, most, least = (float(x) for x in (kind.eps, kind.max, kind.smallest_normal))
    p = np.float32([1, -1.5, 320, 0, 0, -2, most, -most, 16 * least, -16 * least]).repeat(20)
    # Towards zero, so that nothing overflows, and past a power of two.
    u = -p * np.minimum(1, eps * rng.random(200) * 2.0 ** rng.integers(-4, 5, 200))
    u = np.where(p == 0, 1e-3 * rng.standard_normal(200), u).astype(np.float32)
    # Float32's subnormal numbers are zero to the CPU backend.
    u[np.minimum(np.abs(u), np.abs(p + u)) < np.finfo(np.float32).tiny] = 0
    mean = np.float64(landed(p.astype(dtype), u, COUNTS)).mean(axis=0)
    place = np.maximum(np.abs(p + u), max(least, LEAST[dtype])) * eps
    # At random it would be up to 100 / 4096 of the place.
    assert (np.abs(mean - (p + u)) < 4 / 4096 * place).all()


@pytest.mark.parametrize("dtype", LEAST)
def test_what_is_not_finite_is_as_in_a_plain_sum_and_with_no_update_nothing_moves(dtype):
    most = float(jnp.finfo(dtype).max)
    p = np.float32([np.inf, -np.inf, np.inf, np.nan, 1, 1, -1, 0, -0.0, most, -most, 1])
    u = np.float32([1, 1, -np.inf, 1, np.inf, -np.inf, np.nan, 0, -0.0, 0, 0, 0])
    start = jnp.asarray(p).astype(dtype).astype(jnp.float32)
    expected = np.tile((start + u).astype(dtype), (4097, 1))
    # At the last of these counts the number of the last element is the smallest.
    bits = int(third(dither_at(np.uint32(0), 0).bits(p.shape))[-1]) - 2**31
    counts = np.append(np.uint32(COUNTS), np.uint32(-bits * pow(0x9E3779B9, -1, 2**32) % 2**32))
    np.testing.assert_array_equal(
        np.float32(landed(p.astype(dtype), u, counts)), np.float32(expected)
    )
    beyond = landed(p[9:11].astype(dtype), p[9:11] / 2**12, COUNTS)
    assert set(np.abs(np.float32(beyond)).ravel()) == {most, END[dtype]}
    far = landed(p[9:11].astype(dtype), p[9:11], COUNTS)
    np.testing.assert_array_equal(np.float32(far[0]), [END[dtype], -END[dtype]])


P = jnp.linspace(-2, 2, 128, dtype=jnp.bfloat16).reshape(8, 16)


@pytest.mark.usefixtures("x64")
def test_other_leaves_pass_as_they_are():
    others = [jnp.ones(3, dtype) for dtype in ("float32", "float64", "complex64", "int32")]
    params = {"others": others, "none": None, "masked": optax.MaskedNode(), "p": jnp.bfloat16(1)}
    masked = optax.masked(stochastic_round(), {**params, "others": True, "p": False})
    for optimizer, p in ((stochastic_round(), jnp.float32(1)), (masked, jnp.bfloat16(1))):
        given_updates = {**params, "others": [jnp.full_like(x, 1e-20) for x in others]}
        updates, _ = optimizer.update(given_updates, optimizer.init(params), params)
        chex.assert_trees_all_equal(updates, {**given_updates, "p": p}, strict=True)
    assert stochastic_round().update({}, stochastic_round().init({}), {}) == ({}, (1,))


@pytest.mark.parametrize(
    ("updates", "params", "words"),
    [
        ({"f": 1.0}, {"f": jax.nn.relu}, r"^params\['f'\] is .*custom_jvp"),
        ({"f": jax.nn.relu}, {"f": jax.nn.relu}, r"^updates\['f'\] is .*custom_jvp"),
        ({"n": 1.0}, {"n": jnp.arange(1)}, r"^params\['n'\] has dtype int32"),
        ({"z": jnp.complex64(1)}, {"z": jnp.bfloat16(1)}, r"^updates\['z'\] is complex64"),
    ],
)
def test_what_is_no_number_is_refused_by_path(updates, params, words):
    with pytest.raises(TypeError, match=words) as caught:
        stochastic_round().update(updates, StochasticRoundState(0), params)
    assert "Adadelta" not in str(caught.value)


def end(optimizer, around=lambda step: step):
    """Three steps on float32 updates, because XLA may compute narrower ones in a wider dtype."""

    def step(carry):
        params, state = carry
        updates, state = optimizer.update(params.astype(jnp.float32) / 2**10, state, params)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):
        carry, step = (P, optimizer.init(P)), around(step)
        for _ in range(3):
            carry = step(carry)
    return carry


@pytest.mark.parametrize(
    "around",
    [
        lambda step: lambda carry: jax.lax.scan(lambda c, _: (step(c), 0), carry, length=1)[0],
        jax.disable_jit(),
    ],
)
def test_a_step_has_the_same_bits_however_it_is_run(around):
    expected = end(stochastic_round(3))
    chex.assert_trees_all_equal(end(stochastic_round(3), around), expected)


def test_an_exported_step_is_serialized_and_called():
    optimizer = stochastic_round(3)
    u, state = jnp.full(P.shape, 1e-3), optimizer.init(P)
    data = jax.export.export(jax.jit(optimizer.update))(u, state, P).serialize()
    assert b"optax_adadelta._" not in data
    found = jax.export.deserialize(data).call(u, state, P)
    assert isinstance(found[1], StochasticRoundState)
    chex.assert_trees_all_equal(found, optimizer.update(u, state, P))


def test_a_seed_may_be_an_array_or_injected_or_scheduled_and_a_new_one_compiles_nothing(compiled):
    same, zero = (end(optimizer)[0] for optimizer in (stochastic_round(), stochastic_round(0)))
    np.testing.assert_array_equal(same, zero)
    expected, _ = end(stochastic_round(jnp.int32(-3)))
    before = compiled()
    np.testing.assert_array_equal(end(stochastic_round(np.int64(2**32 - 3)))[0], expected)
    assert np.any(np.asarray(end(stochastic_round(987654321))[0]) != np.asarray(expected))
    assert compiled() == before
    injected = optax.inject_hyperparams(stochastic_round)
    for seed in (-3, lambda count: 0 * count - 3):
        np.testing.assert_array_equal(end(injected(seed))[0], expected)


@pytest.mark.devices
@pytest.mark.parametrize(
    ("types", "spec"), [(AxisType.Auto, (None, "b")), (AxisType.Explicit, (("a", "b"),))]
)
def test_eight_devices_have_the_bits_of_one(types, spec, compiled):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(types,) * 2)
    put = functools.partial(jax.device_put, device=NamedSharding(mesh, PartitionSpec(*spec)))
    optimizer, u = stochastic_round(3), jnp.full((8, 16), 1e-3)
    state = optimizer.init(put(P))
    for step in range(3):
        before = compiled()
        got, state = optimizer.update(put(u), state, put(P))
        assert step == 0 or compiled() == before
        expected, _ = optimizer.update(u, StochasticRoundState(jnp.int32(step)), P)
        assert got.sharding.is_equivalent_to(put(P).sharding, 2)
        np.testing.assert_array_equal(got, expected)


def test_other_seeds_and_params_are_refused():
    for seed in (1.0, True, None, np.True_, jnp.float32(1), jnp.arange(2)):
        with pytest.raises(TypeError, match="seed must be an integer; got"):
            stochastic_round(seed)
    updates = [jnp.ones(2), None]
    for params, message in (
        (None, r"params is None, .* update\(updates, state, params\)"),
        ([jnp.ones(3), None], r"^updates\[0\] has shape \(2,\), but params\[0\] has shape \(3,\)"),
        ([jnp.ones(2)], "^updates and params must have the same structure"),
        ([None, None], "^updates and params must have the same structure"),
    ):
        with pytest.raises(ValueError, match=message):
            stochastic_round().update(updates, StochasticRoundState(0), params)
