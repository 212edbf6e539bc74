"""Averages in 16 and 8 bits: how exact they are, and that every way to run a step keeps them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import algorithm_1
from states import QUANTIZED

from optax_adadelta import adadelta, diagnostics, scale_by_adadelta
from optax_adadelta._equation import Epsilons
from optax_adadelta._storage import storage_with
from optax_adadelta._storage._eight import _Z_GRID, S_GRID
from optax_adadelta.diagnostics import effective_learning_rate

SHAPE = (64, 128)


def normal(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def made(shape, steps, decades=(-8, 2), seed=0):
    """Gradients of many scales: a quarter is sparse, and all fall to a tenth half way."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(*decades, shape)
    rare = rng.random(shape) < 0.25
    mean = 0.3 * rng.standard_normal(shape)
    for t in range(steps):
        g = scale * (mean + rng.standard_normal(shape)) * (1.0 if t < steps // 2 else 0.1)
        yield np.float32(np.where(rare & (rng.random(shape) > 0.05), 0, g))


def run(optimizer, gradients, state=None):
    """Returns the sum of all updates, and the last state."""
    gradients = jnp.asarray(np.stack(list(gradients)))

    def step(carry, g):
        total, state = carry
        updates, state = optimizer.update(g, state)
        return (total + updates, state), None

    start = jnp.zeros_like(gradients[0]), state or optimizer.init(gradients[0])
    return jax.jit(lambda start, gradients: jax.lax.scan(step, start, gradients)[0])(
        start, gradients
    )


def averages(state):
    return [np.float64(x) for x in diagnostics.averages(state)]


def nmse(found, expected):
    return np.sum((found - expected) ** 2) / np.sum(expected**2)


@pytest.mark.slow
@pytest.mark.parametrize("decades", [(-8, 2), (-3, -1)], ids=["mixed", "alike"])
@pytest.mark.parametrize(
    ("rho", "bounds"), [(0.9, (1e-7, 6e-4)), (0.95, (6e-7, 2e-3)), (0.99, (1e-5, 6e-3))]
)
def test_two_thousand_steps_end_where_those_of_full_precision_do(rho, bounds, decades):
    gradients = list(made((32, 128), 2000, decades))
    expected, _ = run(scale_by_adadelta(rho), gradients)
    for bits, bound in zip((16, 8), bounds, strict=True):
        found, _ = run(scale_by_adadelta(rho, state_bits=bits), gradients)
        assert nmse(found, expected) < bound


@pytest.mark.parametrize("grid", [S_GRID, _Z_GRID], ids=["s", "z"])
def test_a_grid_has_its_codes_in_order_and_evenly_spaced_within_each_octave(grid):
    codes = jnp.arange(255, dtype=jnp.uint8)
    values = np.float64(jax.jit(grid.decode)(codes))
    np.testing.assert_array_equal(jax.jit(grid.encode)(jnp.float32(values), np.float32(0)), codes)
    octave = np.floor(np.log2(values))
    within = np.diff(octave) == 0
    steps = (np.diff(values) / 2.0 ** octave[:-1])[within]
    # One step for each segment, none finer than the one before it.
    segments = np.unique(np.round(1 / steps))
    np.testing.assert_allclose(1 / steps, np.round(1 / steps), rtol=1e-3)
    assert len(segments) <= 2
    assert (np.diff(steps) >= -1e-5).all()
    powers = values[1:][~within]
    np.testing.assert_allclose(powers, 2.0 ** np.round(np.log2(powers)), rtol=1e-4)
    assert (powers >= 2.0 ** np.round(np.log2(powers))).all()


@pytest.mark.parametrize("dither", [-0.5, 0.0, 0.499999])
@pytest.mark.parametrize("grid", [S_GRID, _Z_GRID], ids=["s", "z"])
def test_values_outside_a_grid_are_put_on_its_ends_whatever_the_dither(grid, dither):
    outside = jnp.array([0.0, 1e-30, 1e30, jnp.inf])
    values = np.asarray(grid.decode(grid.encode(outside, np.float32(dither))))
    first = float(grid.decode(jnp.uint8(0)))
    assert (values[:2] == first).all()
    # Up to the end of the last octave, and at least from the middle of that octave on.
    end = first * 2.0**grid.octaves
    assert (values[2:] <= end).all()
    assert (values[2:] >= 0.75 * end).all()


@QUANTIZED
def test_what_is_read_is_written_as_the_same_codes(bits):
    _, state = run(adadelta(state_bits=bits), made(SHAPE, 50))
    unit = Epsilons(state.unit, state.unit)
    back = storage_with(bits).write(diagnostics.averages(state), unit)
    # What rounding put below zero is read as zero.
    positive = np.asarray(diagnostics.averages(state).e_x) > 0
    np.testing.assert_array_equal(back.e_g, state.e_g)
    np.testing.assert_array_equal(back.e_x[positive], state.e_x[positive])
    assert positive.mean() > 0.5


@pytest.mark.slow
@QUANTIZED
@pytest.mark.parametrize(("size", "eps"), [(1e-6, 1e-6), (1e-6, 1e-12), (1, 1e-6), (1e4, 1e-2)])
def test_parameters_of_any_size_are_fitted_as_in_full_precision(bits, size, eps):
    target = size * normal((16, 128))
    curvature = 10.0 ** np.linspace(-2, 0, 16, dtype=np.float32)[:, None]
    noise = 0.1 * size * curvature

    def distances(bits):
        optimizer = adadelta(eps=eps, state_bits=bits)

        def step(carry, key):
            params, state = carry
            g = curvature * (params - target) + noise * jax.random.normal(key, params.shape)
            updates, state = optimizer.update(g, state)
            return (params + updates, state), None

        params = jnp.zeros(target.shape)
        keys = jax.random.split(jax.random.key(0), 3000)
        with jax.numpy_rank_promotion("allow"):
            (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        return np.sqrt(np.mean(np.square((params - target) / size), axis=1))

    np.testing.assert_allclose(distances(bits), distances(None), rtol=0.1)


@pytest.mark.parametrize(("bits", "rtol"), [(16, 1e-3), (8, 0.17)])
def test_one_step_is_that_of_algorithm_1_within_one_code(bits, rtol):
    g = normal() * np.float32(10.0) ** np.linspace(-2, 2, SHAPE[0], dtype=np.float32)[:, None]
    updates, state = run(scale_by_adadelta(state_bits=bits), [g])
    (expected,) = algorithm_1(g[None])
    e_g, e_x = averages(state)
    np.testing.assert_allclose(updates, -expected.dx, rtol=rtol)
    np.testing.assert_allclose(e_g + 1e-6, expected.e_g + 1e-6, rtol=rtol)
    np.testing.assert_allclose(e_x + 1e-6, expected.e_x + 1e-6, rtol=2 * rtol)


@QUANTIZED
def test_stored_averages_are_right_in_the_mean_over_seeds_and_steps(bits):
    g = jnp.asarray(normal((32, 128)))
    (expected,) = algorithm_1(np.float64(g)[None])

    def sums(seed):
        optimizer = scale_by_adadelta(state_bits=bits, seed=seed)
        # At the same count the dithers of the two averages would differ by the same everywhere.
        start = optimizer.init(g)._replace(count=7919 * seed)
        _, state = optimizer.update(g, start)
        return [1e-6 * (x + 1) for x in in_units_of_eps(state, bits)]

    kept = np.float64(jax.jit(jax.vmap(sums))(jnp.arange(400, dtype=jnp.int32)))
    exact = np.array([expected.e_g, expected.e_x]) + 1e-6
    # The standard deviation of a mean of 400 is at most half a step over 20.
    step = {16: 2.0**-10, 8: 1 / 8}[bits]
    off = (kept.mean(axis=1) - exact) / (step * exact / 40)
    assert np.abs(off).max() < 6
    assert np.abs(off.mean(axis=(1, 2))).max() < 0.1


def in_units_of_eps(state, bits):
    return storage_with(bits).decode(diagnostics.Averages(state.e_g, state.e_x), np.float32)


def test_sixteen_bits_are_codes_of_equal_steps_within_each_octave():
    rng = np.random.default_rng(0)
    g = np.float32(10.0 ** rng.uniform(-7, 6, SHAPE))
    _, state = run(scale_by_adadelta(0.5, state_bits=16), [g])
    exact = 0.5 * np.float64(g) ** 2 / 1e-6 + 1
    place = 2.0 ** (np.floor(np.log2(exact)) - 10)
    found = averages(state)[0] / 1e-6 + 1
    assert np.all(np.abs(found - exact) <= place * (1 + 1e-3))
    np.testing.assert_allclose(found / place, np.round(found / place), rtol=2e-7)
    assert np.mean((found > exact)[exact > 2]) == pytest.approx(0.5, abs=0.05)


@QUANTIZED
def test_without_gradients_the_averages_stay_at_zero(bits):
    optimizer = scale_by_adadelta(state_bits=bits)
    assert not np.any(averages(optimizer.init(jnp.zeros(SHAPE))))
    _, state = run(optimizer, [np.zeros(SHAPE, np.float32)] * 200)
    e_g, e_x = averages(state)
    assert not e_g.any()
    # With 8 bits, the code of the ratio 1 is not exactly 1: once in many steps it is left by one.
    assert e_x.mean() <= (0 if bits == 16 else 1e-5 * 1e-6)
    assert e_x.max() <= (0 if bits == 16 else 0.06 * 1e-6)


@pytest.mark.slow
@QUANTIZED
@pytest.mark.parametrize("rho", [0.99, 0.999])
def test_averages_decay_to_eps_without_gradients(bits, rho):
    optimizer = scale_by_adadelta(rho, state_bits=bits)
    g = normal()
    _, state = run(optimizer, [g] * 20)
    update = jax.jit(
        lambda state: jax.lax.fori_loop(
            0, round(30 / (1 - rho)), lambda _, s: optimizer.update(jnp.zeros(SHAPE), s)[1], state
        )
    )
    state = update(state)
    assert np.max(averages(state)) < (3e-8 if bits == 16 else 6e-8)
    np.testing.assert_allclose(effective_learning_rate(state, 1e-6), 1.0, rtol=0.05)


@QUANTIZED
def test_averages_decay_as_fast_as_they_should(bits):
    rho, steps = 0.99, 300
    optimizer = scale_by_adadelta(rho, state_bits=bits)
    _, state = run(optimizer, [100 * normal()] * 20)
    before = averages(state)[0]
    _, state = run(optimizer, [np.zeros(SHAPE, np.float32)] * steps, state)
    ratio = averages(state)[0] / (before * rho**steps)
    # A bias of 1e-4 in each step's rounding would be 3 % here. Six codes per octave are so coarse
    # that a decay which is right on average is 5 % faster in the logarithm.
    times = 1 + np.log(ratio) / (steps * np.log(rho))
    assert times.mean() == pytest.approx(1, abs=0.01 if bits == 16 else 0.07)
    assert np.median(times) == pytest.approx(1, abs=0.01 if bits == 16 else 0.07)


# The root of the largest E[g^2], for eps = 1e-6.
LARGEST = {16: 1e-3 * 2.0**32, 8: 1e-3 * 2.0**30.5}


@QUANTIZED
def test_a_huge_gradient_fills_the_average_and_is_forgotten(bits):
    optimizer = scale_by_adadelta(0.5, state_bits=bits)
    g = np.where(np.arange(128) == 5, np.float32(np.inf), normal())
    updates, state = run(optimizer, [g])
    assert np.isfinite(updates).all()
    # sqrt(eps / (1 - rho)), as for every first gradient that is much larger than sqrt(eps).
    np.testing.assert_allclose(updates[:, 5], np.sqrt(2e-6), rtol=1e-3 if bits == 16 else 0.2)
    e_g, _ = averages(state)
    np.testing.assert_allclose(e_g[:, 5], 0.5 * LARGEST[bits] ** 2, rtol=1e-2 if bits == 16 else 1)
    assert np.all(np.delete(e_g, 5, axis=1) < 10)
    later = [normal(seed=t) for t in range(200)]
    updates, state = run(optimizer, later, state)
    exact, _ = run(scale_by_adadelta(0.5), later)
    assert np.abs(updates[:, 5]).mean() > 0.3 * np.abs(exact[:, 5]).mean()


@QUANTIZED
def test_a_huge_gradient_at_every_step_does_not_wrap(bits):
    optimizer = scale_by_adadelta(state_bits=bits)
    moved, state = run(optimizer, [np.full(SHAPE, 1e30, np.float32)] * 400)
    moved = np.asarray(moved)
    e_g, _ = averages(state)
    assert (e_g > 0.4 * LARGEST[bits] ** 2).all()
    exact, _ = run(scale_by_adadelta(), [np.full(SHAPE, 1e4, np.float32)] * 400)
    np.testing.assert_allclose(moved, exact, rtol=0.01 if bits == 16 else 0.4)
    assert moved.mean() == pytest.approx(float(exact.mean()), rel=0.15)


@QUANTIZED
def test_nan_stays_in_its_own_coordinate(bits):
    optimizer = scale_by_adadelta(state_bits=bits)
    g = normal()
    g[3, 7] = np.nan
    updates, state = run(optimizer, [g])
    assert np.isnan(updates).sum() == 1
    assert np.isnan(updates[3, 7])
    assert [average[3, 7] for average in averages(state)] == [0, 0]
    later = [normal(seed=t) for t in range(1, 300)]
    updates, _ = run(optimizer, later, state)
    assert np.isfinite(updates).all()
    _, exact = run(scale_by_adadelta(), [normal()])
    exact, _ = run(scale_by_adadelta(), later, exact)
    others = np.arange(SHAPE[0]) != 3
    assert nmse(updates[others], exact[others]) < 6e-3
    assert nmse(updates[3], exact[3]) < 0.05


@QUANTIZED
def test_seeds_have_rounding_of_their_own_and_leaves_do_not_depend_on_one_another(bits):
    g = {"a": normal(), "b": normal(seed=1)}
    alone = {"b": g["b"]}

    def codes(seed, g):
        optimizer = scale_by_adadelta(state_bits=bits, seed=seed)
        _, state = optimizer.update(g, optimizer.init(g))
        return np.asarray(state.e_g["b"])

    np.testing.assert_array_equal(codes(0, g), codes(0, alone))
    for seed, other in ((0, 1), (1, 2), (0, 2**31)):
        assert np.mean(codes(seed, g) != codes(other, g)) > 0.2


def test_another_seed_needs_no_second_compilation(compiled):
    g = jnp.asarray(normal((91, 77)))
    _, state = adadelta(state_bits=8).update(g, adadelta(state_bits=8).init(g))
    before = compiled()
    for seed in range(3):
        _, state = adadelta(0.5, 0.9, state_bits=8, seed=seed).update(g, state)
    assert compiled() == before


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"state_bits": 4}, ValueError, "state_bits must be 16, 8, or None"),
        ({"state_bits": True}, ValueError, "state_bits must be"),
        ({"state_bits": "8"}, ValueError, "state_bits must be"),
        ({"state_bits": jnp.int32(8)}, TypeError, "static_args"),
        ({"state_bits": 16, "eps": 1e-13}, ValueError, "eps must be at least 1e-12"),
        ({"state_bits": 8, "eps": jnp.float32(0.99e-12)}, ValueError, "eps must be at least"),
        ({"state_bits": 8, "rho": 0.1}, ValueError, "rho must be at least 0.5"),
        ({"seed": 1.5}, TypeError, "seed must be an integer"),
        ({"seed": True}, TypeError, "seed must be an integer"),
        ({"seed": jnp.ones(2, jnp.int32)}, TypeError, "seed must be an integer"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options, error, words):
    for make in (adadelta, scale_by_adadelta):
        with pytest.raises(error, match=words):
            make(**options)
        make(state_bits=8, eps=jnp.float32(1e-12), rho=0.5)


@QUANTIZED
def test_a_rho_that_starts_below_one_half_gives_no_nan(bits):
    rng = np.random.default_rng(0)
    optimizer = adadelta(
        state_bits=bits, rho=lambda count: 0.095 * jnp.minimum(count.astype(jnp.float32), 10.0)
    )
    params = jnp.logspace(-6, 3, 1001)
    state = optimizer.init(params)
    for _ in range(15):
        g = params * rng.standard_normal(1001).astype(np.float32)
        updates, state = optimizer.update(g, state)
        assert np.isfinite(updates).all()


@QUANTIZED
def test_an_eps_that_falls_to_zero_stops_nothing(bits):
    eps = lambda count: jnp.float32(1e-6) * jnp.float32(0.5) ** count.astype(jnp.float32)  # noqa: E731

    def trained(bits):
        optimizer = adadelta(eps=eps, state_bits=bits)

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(2 * params, state)
            return (params + updates, state), None

        params = jnp.linspace(1, 3, 128)
        return jax.lax.scan(step, (params, optimizer.init(params)), length=500)[0][0]

    # In full precision the eps keeps falling below 1e-12.
    np.testing.assert_allclose(trained(bits).mean(), trained(None).mean(), rtol=0.1)
