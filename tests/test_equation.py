"""The numbers: against Algorithm 1 in float64, at any magnitude, in any dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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


@pytest.mark.parametrize("rho", [0.9, 0.9999])
@pytest.mark.parametrize("kind", KINDS)
def test_200_steps_in_float32_stay_within_rounding_of_algorithm_1(kind, rho):
    g = gradients(kind, 200, SIZE)
    for (dx, state), expected in zip(
        run(adadelta(rho=rho), g, jnp.float32), algorithm_1(g, rho), strict=True
    ):
        # E[dx^2] depends on itself, so errors that are the same at every step add up.
        same_each_step = kind in ("constant", "alternating")
        assert ulps(dx, expected.dx) <= (36 if same_each_step else 16)
        assert ulps(state.e_g, expected.e_g) <= 20
        assert ulps(state.e_x, expected.e_x) <= (88 if same_each_step else 28)


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
    for (dx, _), expected in zip(
        run(adadelta(rho=rho), g, jnp.float32), algorithm_1(g, rho), strict=True
    ):
        np.testing.assert_allclose(dx, expected.dx, rtol=1e-6, atol=1e-30)


def test_complex_parameters_step_along_the_gradient_by_its_modulus():
    g = gradients("normal", 200, 2 * SIZE).reshape(200, SIZE, 2) @ [1, 1j]
    for (dx, state), expected in zip(
        run(adadelta(), g, jnp.complex64), algorithm_1(g), strict=True
    ):
        assert dx.dtype == jnp.complex64
        assert state.e_g.dtype == state.e_x.dtype == jnp.float32
        np.testing.assert_allclose(dx, expected.dx, rtol=4e-6)
        np.testing.assert_allclose(state.e_g, expected.e_g, rtol=4e-6)
        np.testing.assert_allclose(state.e_x, expected.e_x, rtol=4e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_low_precision_gradients_are_averaged_in_float32(dtype):
    g = np.asarray(jnp.asarray(gradients("normal", 200, SIZE), dtype), np.float64)
    for (dx, state), expected in zip(
        run(adadelta(rho=0.99), g, dtype), algorithm_1(g, 0.99), strict=True
    ):
        assert dx.dtype == dtype
        assert ulps(state.e_g, expected.e_g) < 32
        assert ulps(state.e_x, expected.e_x) < 96
        # The update is the exact one, rounded once.
        np.testing.assert_allclose(
            np.asarray(dx, np.float64),
            expected.dx,
            rtol=float(jnp.finfo(dtype).eps) * 0.51,
            atol=float(jnp.finfo(dtype).smallest_subnormal),
        )


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


def test_the_largest_gradients_that_can_be_squared_are_taken_as_they_are():
    g = np.array([[1e18, 1.8e19], [1.8e19, 1e18]])
    for (dx, state), expected in zip(
        run(adadelta(), g, jnp.float32), algorithm_1(g.astype(np.float32)), strict=True
    ):
        assert ulps(dx, expected.dx) <= 5
        assert ulps(state.e_g, expected.e_g) <= 3


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
@pytest.mark.parametrize("eps", [1e-30, 1e-300])
def test_an_eps_too_small_for_the_dtype_gives_no_nan(dtype, eps):
    g = np.zeros((30, 4))
    g[5:, 1:] = [1e-20, 1.0, 1e4]
    for dx, state in run(adadelta(eps=eps), g, dtype):
        assert jnp.isfinite(dx).all()
        assert jnp.isfinite(state.e_g).all()
        assert jnp.isfinite(state.e_x).all()
        assert dx[0] == 0


def test_a_traced_eps_of_zero_gives_no_nan():
    @jax.jit
    def first_update(g, eps):
        optimizer = adadelta(eps=eps)
        return optimizer.update(g, optimizer.init(g))[0]

    found = first_update(jnp.array([0.0, 1e-30, 1.0]), 0.0)
    assert found[0] == 0
    assert jnp.isfinite(found).all()


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
