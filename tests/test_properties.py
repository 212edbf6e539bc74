"""The algebra of Adadelta, on cases that hypothesis makes up.

40 cases of each property by default; `HYPOTHESIS_PROFILE=nightly` makes it 500.
"""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from optax_adadelta import scale_by_adadelta

STEPS = 4
TINY = float(jnp.finfo(jnp.float32).tiny)
LOW = (jnp.float16, jnp.bfloat16)
FULL = (jnp.float32, jnp.float64, jnp.complex64)


@st.composite
def cases(draw, dtypes=LOW + FULL):
    """Gradients for a few steps, of any magnitude that the dtype holds well, rho and eps."""
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(st.sampled_from([(), (5,), (3, 4), (2, 0)]))
    magnitude = draw(st.integers(-3, 3) if dtype == jnp.float16 else st.integers(-10, 10))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    real, imaginary = rng.standard_normal((2, STEPS, *shape)) * 10.0**magnitude
    if draw(st.booleans()):
        real *= rng.random(real.shape) < 0.5
    g = real + 1j * imaginary if jnp.issubdtype(dtype, jnp.complexfloating) else real
    rho = draw(st.just(0.0) | st.floats(0.001, 0.9999))
    return g.astype(dtype), rho, 10.0 ** draw(st.floats(-12, -2))


def wide_enough_for(g):
    return jax.enable_x64(any(leaf.dtype == np.float64 for leaf in jax.tree.leaves(g)))


def steps(g, rho, eps):
    """The update and the state after each gradient, in NumPy; `g` may be a tree."""
    made = []
    with wide_enough_for(g):
        optimizer = scale_by_adadelta(rho, eps)
        state = optimizer.init(jax.tree.map(lambda leaf: leaf[0], g))
        for t in range(STEPS):
            dx, state = optimizer.update(jax.tree.map(lambda leaf, t=t: leaf[t], g), state)
            made.append(jax.device_get((dx, state)))
    return made


def assert_equal(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@given(cases(FULL), st.integers(-10, 10))
def test_scaling_gradients_and_eps_together_scales_the_updates(case, doublings):
    g, rho, eps = case
    scale = 2.0**doublings
    scaled = steps(g * g.dtype.type(scale), rho, eps * scale**2)
    # A power of two, so exactly.
    for (dx, state), (got, got_state) in zip(steps(g, rho, eps), scaled, strict=True):
        np.testing.assert_array_equal(got, scale * dx)
        np.testing.assert_array_equal(got_state.e_g, scale**2 * state.e_g)
        np.testing.assert_array_equal(got_state.e_x, scale**2 * state.e_x)


@given(cases())
def test_the_opposite_gradients_make_the_opposite_updates(case):
    g, rho, eps = case
    for (dx, state), (got, got_state) in zip(steps(g, rho, eps), steps(-g, rho, eps), strict=True):
        np.testing.assert_array_equal(got, -dx)
        assert_equal(got_state, state)


@given(cases())
def test_coordinates_and_leaves_are_independent(case):
    g, rho, eps = case
    flat = g.reshape(STEPS, -1)
    middle = flat.shape[1] // 2
    whole = steps(flat, rho, eps)
    backwards = steps(flat[:, ::-1], rho, eps)
    split = steps({"z": flat[:, :middle], "a": flat[:, middle:]}, rho, eps)
    exchanged = steps([flat[:, middle:], flat[:, :middle]], rho, eps)
    for (dx, state), (back, _), (part, part_state), (other, _) in zip(
        whole, backwards, split, exchanged, strict=True
    ):
        np.testing.assert_array_equal(back[::-1], dx)
        np.testing.assert_array_equal(np.concatenate([part["z"], part["a"]]), dx)
        assert_equal(other, [part["a"], part["z"]])
        for whole_leaf, leaf in ((state.e_g, part_state.e_g), (state.e_x, part_state.e_x)):
            np.testing.assert_array_equal(np.concatenate([leaf["z"], leaf["a"]]), whole_leaf)


@given(cases())
def test_a_zero_gradient_moves_nothing_and_decays_the_averages_by_rho(case):
    g, rho, eps = case
    *_, (_, state) = steps(g, rho, eps)
    optimizer = scale_by_adadelta(rho, eps)
    with wide_enough_for(g):
        dx, after = jax.device_get(optimizer.update(np.zeros_like(g[0]), state))
    assert (dx == 0).all()
    for got, before in ((after.e_g, state.e_g), (after.e_x, state.e_x)):
        exact = rho * np.asarray(before, np.float64)
        # Within one unit in the last place; the CPU backend takes subnormals for zero.
        np.testing.assert_allclose(np.float64(got), exact, rtol=2.0**-23, atol=TINY)


@given(cases())
def test_an_update_is_bounded_by_the_past_updates(case):
    g, rho, eps = case
    e_x = np.zeros(g.shape[1:])
    limits = jnp.finfo(g.dtype)
    rounding, least = float(limits.eps), float(limits.smallest_subnormal)
    for dx, state in steps(g, rho, eps):
        bound = np.sqrt((e_x + eps) / (1 - rho))
        size = np.abs(np.asarray(dx, np.complex128))
        assert (size <= bound * (1 + rounding + 1e-6) + least).all()
        e_x = np.asarray(state.e_x, np.float64)
