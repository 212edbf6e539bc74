"""The guarantees of docs/numerics.md, against Algorithm 1 in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from reference import KINDS, algorithm_1, gradients, one_step

from optax_adadelta import AdadeltaState, adadelta, scale_by_adadelta

SIZE = 256


def ulps(got, expected):
    """The distance in units in the last place of float32; what float32 cannot hold must be 0."""
    got, magnitude = np.asarray(got, np.float64), np.abs(expected)
    assert (got[expected == 0] == 0).all()
    held = magnitude > 1e-30
    error = np.abs(got - expected)[held]
    return (error / np.spacing(magnitude[held].astype(np.float32))).max(initial=0.0)


def run(optimizer, given_gradients, dtype):
    """Yields the update and the state after each gradient."""
    state = optimizer.init(jnp.zeros(given_gradients.shape[1:], dtype))
    for g in given_gradients:
        dx, state = optimizer.update(jnp.asarray(g, dtype), state)
        yield dx, state


def updates_and_references(g, rho, eps, dtype=jnp.float32):
    """Yields our update, E[g^2] and E[dx^2] and those of Algorithm 1 on the same gradients."""
    g = np.asarray(jnp.asarray(g, dtype), np.float64)
    ours = run(adadelta(rho=rho, eps=eps), g, dtype)
    for (dx, state), expected in zip(ours, algorithm_1(g, rho, eps), strict=True):
        yield (dx, state.e_g, state.e_x), expected


@pytest.mark.parametrize("rho", [0.9, 0.9999])
@pytest.mark.parametrize("kind", KINDS)
def test_200_steps_in_float32_stay_within_rounding_of_algorithm_1(kind, rho):
    g = gradients(kind, 200, SIZE)
    for (dx, e_g, e_x), expected in updates_and_references(g, rho, 1e-6):
        # E[dx^2] depends on itself, so errors that are the same at every step add up.
        same_each_step = kind in ("constant", "alternating")
        assert ulps(dx, expected.dx) <= (36 if same_each_step else 16)
        assert ulps(e_g, expected.e_g) <= 20
        assert ulps(e_x, expected.e_x) <= (88 if same_each_step else 28)


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_in_float32_is_within_a_few_units_in_the_last_place(kind):
    rho, eps = 0.95, 1e-6
    optimizer = adadelta(rho=rho, eps=eps)
    rng = np.random.default_rng(1)
    for g in gradients(kind, 20, SIZE):
        e_g, e_x = (10.0 ** rng.uniform(-12, 12, (2, SIZE))).astype(np.float32)
        state = AdadeltaState(jnp.int32(0), jnp.asarray(e_g), jnp.asarray(e_x))
        dx, state = optimizer.update(jnp.asarray(g, jnp.float32), state)
        e_g = rho * e_g.astype(np.float64) + (1 - rho) * g**2
        exact = -np.sqrt(e_x.astype(np.float64) + eps) / np.sqrt(e_g + eps) * g
        assert ulps(state.e_g, e_g) <= 3
        assert ulps(dx, exact) <= 5
        assert ulps(state.e_x, rho * e_x.astype(np.float64) + (1 - rho) * exact**2) <= 5


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rho", [0.95, 0.9999])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, jnp.float64) for kind in ("scales", "alternating", "bursts", "dying")),
        ("normal", jnp.complex128),
    ],
)
def test_200_steps_in_64_bits_equal_algorithm_1(kind, dtype, rho):
    g = gradients(kind, 200, SIZE).astype(dtype)
    if dtype == jnp.complex128:
        g *= np.exp(1j * gradients(kind, 200, SIZE, seed=1))
    for (dx, state), expected in zip(
        run(scale_by_adadelta(rho), g, dtype), algorithm_1(g, rho), strict=True
    ):
        assert dx.dtype == dtype
        assert state.e_g.dtype == state.e_x.dtype == jnp.float64
        for got, want in zip((-dx, state.e_g, state.e_x), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=0)


@pytest.mark.usefixtures("x64")
def test_a_float32_leaf_under_x64_is_stepped_as_it_is_without():
    g = gradients("normal", 50, SIZE)
    *_, (_, with_x64) = run(adadelta(rho=0.9999), g, jnp.float32)
    jax.config.update("jax_enable_x64", False)
    *_, (_, without) = run(adadelta(rho=0.9999), g, jnp.float32)
    np.testing.assert_array_equal(with_x64.e_g, without.e_g)
    np.testing.assert_array_equal(with_x64.e_x, without.e_x)


@pytest.mark.parametrize("rho", [0.0, 1e-38, 1e-8, 1e-3])
def test_averages_with_a_tiny_rho_are_those_of_algorithm_1(rho):
    g = gradients("scales", 60, SIZE)
    g[::3] *= 1e-6
    for (dx, _, _), expected in updates_and_references(g, rho, 1e-6):
        np.testing.assert_allclose(dx, expected.dx, rtol=1e-6, atol=1e-30)


def test_an_infinite_gradient_is_taken_as_the_largest_finite_one():
    g = gradients("normal", 30, 4)
    g[10] = [np.inf, -np.inf, 1.0, 0.0]
    largest = float(jnp.finfo(jnp.float32).max)
    for (dx, state), (same_dx, same) in zip(
        run(adadelta(), g, jnp.float32),
        run(adadelta(), np.clip(g, -largest, largest), jnp.float32),
        strict=True,
    ):
        assert jnp.isfinite(dx).all()
        np.testing.assert_array_equal(dx, same_dx)
        np.testing.assert_array_equal(state.e_g, same.e_g)
        np.testing.assert_array_equal(state.e_x, same.e_x)


def test_a_huge_complex_gradient_keeps_its_direction():
    g = np.array([[3e30 + 4e30j, 1e30 + 1e20j, -2e38 - 2e38j, 0.3 + 0.4j]])
    ((dx, state),) = run(adadelta(), g, jnp.complex64)
    (expected,) = algorithm_1(g)
    np.testing.assert_allclose(dx, expected.dx, rtol=1e-5)
    assert jnp.isfinite(state.e_g).all()
    ((dx, state),) = run(adadelta(), np.array([[complex(np.inf, 1.0)]]), jnp.complex64)
    np.testing.assert_allclose(dx, [-np.sqrt(1e-6 / 0.05)], rtol=1e-5)
    assert jnp.isfinite(state.e_g).all()


@pytest.mark.usefixtures("x64")
def test_a_float64_gradient_too_large_to_square():
    ((dx, state),) = run(adadelta(), np.array([[1e200, -1.7e308]]), jnp.float64)
    np.testing.assert_allclose(dx, [-np.sqrt(1e-6 / 0.05), np.sqrt(1e-6 / 0.05)], rtol=1e-12)
    assert jnp.isfinite(state.e_g).all()


def test_nan_stays_in_its_coordinate():
    g = np.array([[1.0, np.nan, 2.0], [1.0, 1.0, 2.0]])
    clean = np.where(np.isnan(g), 0.0, g)
    for (dx, state), (expected_dx, expected) in zip(
        run(adadelta(), g, jnp.float32), run(adadelta(), clean, jnp.float32), strict=True
    ):
        for got, want in ((dx, expected_dx), (state.e_g, expected.e_g), (state.e_x, expected.e_x)):
            assert jnp.isnan(got[1])
            np.testing.assert_array_equal(got[jnp.array([0, 2])], want[jnp.array([0, 2])])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16, jnp.complex64])
@pytest.mark.parametrize("eps", [1e-30, 1e-300, lambda count: jnp.float32(0)])
def test_an_eps_too_small_for_the_dtype_gives_no_nan(dtype, eps):
    g = np.zeros((30, 4))
    g[5:, 1:] = [1e-30, 1.0, 1e4]
    for dx, state in run(adadelta(eps=eps), g, dtype):
        assert jnp.isfinite(dx).all()
        assert jnp.isfinite(state.e_g).all()
        assert jnp.isfinite(state.e_x).all()
        assert dx[0] == 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
def test_derivatives_by_huge_gradients_are_zero_and_not_nan(dtype):
    g = jnp.asarray([3e38, -2e38, 1e20, jnp.inf, 0.5], dtype)

    def total(g):
        dx, state = scale_by_adadelta().update(g, scale_by_adadelta().init(g))
        return jnp.sum(dx.real) + jnp.sum(state.e_x)

    derivative = jax.grad(total)(g)
    np.testing.assert_allclose(derivative[:3], 0, atol=1e-20)
    assert jnp.isfinite(derivative[4])
    assert derivative[4] != 0
    if dtype == jnp.float32:
        assert derivative[3] == 0


def test_the_derivative_by_rho_at_zero_is_that_of_the_plain_step():
    g, e_g, e_x, eps = 0.3, 0.2, 0.1, 1e-6

    def ours(rho):
        optimizer = scale_by_adadelta(rho=rho, eps=eps)
        averages = jnp.asarray([e_g]), jnp.asarray([e_x])
        dx, _ = optimizer.update(jnp.asarray([g]), AdadeltaState(jnp.int32(0), *averages))
        return dx[0]

    h = 1e-6
    plain = [-one_step(g, e_g, e_x, rho, eps).dx for rho in (0.0, h)]
    np.testing.assert_allclose(jax.grad(ours)(0.0), (plain[1] - plain[0]) / h, rtol=1e-4)


@pytest.mark.parametrize(("rho", "eps"), [(0.5, 1e-32), (0.95, 1e-8), (0.9999, 1e-32)])
def test_gradients_down_to_subnormals_give_the_update_within_1e_5(rho, eps):
    scales = 10.0 ** np.arange(-44, 6)
    g = gradients("normal", 100, 50) * scales
    for (dx, _, _), expected in updates_and_references(g, rho, eps):
        seen = np.abs(expected.dx) > 1e-30
        np.testing.assert_allclose(np.asarray(dx)[seen], expected.dx[seen], rtol=1e-5)


@pytest.mark.parametrize("rho", [0.5, 0.9999])
@pytest.mark.parametrize("eps", [1e-36, 1.1754944e-38, 1e-300])
def test_an_eps_near_the_smallest_float_still_moves_and_stays_bounded(rho, eps):
    floor = max(eps, 64 * float(np.finfo(np.float32).tiny))
    e_x = np.zeros(50)
    g = (gradients("normal", 300, 50) * 10.0 ** np.linspace(-20, 10, 50)).astype(np.float32)
    for leaf, ((dx, _, after), expected) in zip(
        np.abs(np.float64(g)), updates_and_references(g, rho, eps), strict=True
    ):
        size = np.abs(np.float64(dx))
        assert np.isfinite(size).all()
        assert (size <= np.sqrt((e_x + floor) / (1 - rho)) * (1 + 1e-5)).all()
        e_x = np.float64(after)
        # Algorithm 1 moves at least this far, because E[dx^2] is not negative.
        ordinary = expected.e_g > 1e3 * floor
        least = np.sqrt(floor) * leaf / np.sqrt(expected.e_g + floor)
        assert (size >= least * (1 - 1e-5))[ordinary].all()


def test_after_a_huge_gradient_a_coordinate_recovers_no_later_than_in_float64():
    huge = [1.8e19, 1e20, -1e30, float(jnp.finfo(jnp.float32).max)]
    g = np.concatenate([np.full((50, 4), 0.1), [huge], np.full((600, 4), 0.1)])
    ours, exact = [], []
    for (dx, e_g, e_x), expected in updates_and_references(g, 0.5, 1e-6):
        assert np.isfinite([dx, e_g, e_x]).all()
        ours.append(np.abs(dx))
        exact.append(np.abs(expected.dx))
    ours, exact = np.array(ours), np.array(exact)
    # The same gradient is rounded in the same way at every step, by about 1e-8 per step.
    assert (ours >= exact * (1 - 1e-4)).all()
    np.testing.assert_allclose(ours[50], exact[50], rtol=1e-5)
    back, expected = ((path[51:] > 0.5 * exact[49]).argmax(axis=0) for path in (ours, exact))
    assert (0 < back).all()
    assert (back <= expected).all()
    np.testing.assert_allclose(ours[:, 0], exact[:, 0], rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("rho", [0.99, pytest.param(0.999, marks=pytest.mark.slow)])
def test_averages_of_a_low_precision_model_follow_gradients_that_drop(dtype, rho):
    """Those of Optax, in the dtype of the model, do not."""
    counts = 5, *[round(3 / (1 - rho))] * 2
    drop = np.repeat([0.0, 1.0, 0.1], counts)[:, None] * [1.0, 0.03]
    optimizer = optax.adadelta(1.0, rho)
    state, update = optimizer.init(jnp.zeros(2, dtype)), jax.jit(optimizer.update)
    steps = updates_and_references(drop, rho, 1e-8, dtype)
    for g, ((dx, e_g, _), expected) in zip(drop, steps, strict=True):
        # The update is the exact one, rounded once.
        limits = jnp.finfo(dtype)
        rounding, least = 0.51 * float(limits.eps), float(limits.smallest_subnormal)
        np.testing.assert_allclose(np.float64(dx), expected.dx, rounding, least)
        np.testing.assert_allclose(e_g, expected.e_g, rtol=1e-4)
        _, state = update(jnp.asarray(g, dtype), state, jnp.zeros(2, dtype))
    theirs = np.float64(optax.tree_utils.tree_get(state, "e_g"))
    assert (np.abs(theirs / expected.e_g - 1) > 0.01).any()


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("varies", "rho", "bound_e_g", "bound_e_x", "bound_path"),
    [
        (True, 0.95, 1e-6, 1e-5, 1e-6),
        (True, 0.9999, 2e-5, 1e-3, 1e-4),
        # The same gradient is rounded in the same way at every step, which adds up in E[dx^2].
        (False, 0.95, 1e-5, 5e-2, 2e-2),
    ],
)
def test_a_million_steps_drift_little_from_float64(varies, rho, bound_e_g, bound_e_x, bound_path):
    """Both run on the same float32 gradients; the path is the float64 sum of the updates."""
    size, steps, eps = 32, 1_000_000, 1e-6
    scale = jnp.asarray(10.0 ** np.linspace(-4, 3, size), jnp.float32)
    lanes = jnp.arange(size, dtype=jnp.uint32) * jnp.uint32(40503)
    optimizer = scale_by_adadelta(rho, eps)

    def gradient(t):
        t = t if varies else 0 * t
        bits = (t.astype(jnp.uint32) * jnp.uint32(2654435761) + lanes * lanes) >> 8
        return (bits.astype(jnp.float32) * jnp.float32(2.0**-24) - jnp.float32(0.4)) * scale

    def step(carry, t):
        state, path, e_g, e_x, exact_path, length = carry
        g = gradient(t)
        dx, state = optimizer.update(g, state)
        wide = g.astype(jnp.float64)
        e_g = rho * e_g + (1 - rho) * wide**2
        exact = jnp.sqrt(e_x + eps) / jnp.sqrt(e_g + eps) * wide
        e_x = rho * e_x + (1 - rho) * exact**2
        path += dx.astype(jnp.float64)
        return (state, path, e_g, e_x, exact_path + exact, length + jnp.abs(exact)), None

    zeros = jnp.zeros(size, jnp.float64)
    start = (optimizer.init(jnp.zeros(size, jnp.float32)), *[zeros] * 5)
    carry, _ = jax.jit(lambda: jax.lax.scan(step, start, jnp.arange(steps)))()
    state, path, e_g, e_x, exact_path, length = jax.device_get(carry)
    drift = {
        "E[g^2]": (np.max(np.abs(state.e_g / e_g - 1)), bound_e_g),
        "E[dx^2]": (np.max(np.abs(state.e_x / e_x - 1)), bound_e_x),
        "path": (np.max(np.abs(path - exact_path) / length), bound_path),
    }
    assert state.count == steps
    assert all(measured < bound for measured, bound in drift.values()), drift


@pytest.mark.devices
@pytest.mark.parametrize("spec", [("a",), ("a", "b"), (None, "b")], ids=str)
def test_a_piece_on_one_of_eight_devices_has_the_bits_of_that_piece_alone(spec):
    """The whole leaf, which is compared in test_sharded_state, may differ in the last places.

    If the last axis has 3 to 8 elements and the others 8 or more, jax 0.8 and 0.12 compile without
    fused multiply-adds. That may be so for a piece and not for the leaf.
    """
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    place = NamedSharding(mesh, PartitionSpec(*spec))
    update = jax.jit(adadelta().update)
    whole = adadelta().init(jax.device_put(jnp.zeros((64, 16)), place))
    alone = None
    for leaf in gradients("normal", 20, 64 * 16).reshape(20, 64, 16).astype(np.float32):
        dx, whole = update(jax.device_put(leaf, place), whole)
        index = dx.addressable_shards[-1].index
        alone = alone or adadelta().init(jnp.asarray(leaf[index]))
        alone_dx, alone = update(jnp.asarray(leaf[index]), alone)
        for got, expected in ((dx, alone_dx), (whole.e_g, alone.e_g), (whole.e_x, alone.e_x)):
            np.testing.assert_array_equal(got.addressable_shards[-1].data, expected)
