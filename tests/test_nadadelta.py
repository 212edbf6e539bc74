"""nadadelta: its numbers, its scale, its invariance, its momentum in every storage, its errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import gradients, relative, root_mean_squares
from states import QUANTIZED, same_bits, same_types

from optax_adadelta import (
    adadelta,
    convert,
    diagnostics,
    nadadelta,
    scale_by_nadadelta,
)
from optax_adadelta._dither import dither_at
from optax_adadelta._equation import Epsilons
from optax_adadelta._storage import Quantization, storage_with

SIZE = 64


def params(dtype=jnp.float32, seed=0):
    """Arrays of very different scales: small weights, zeros, gains of one, a scalar, nothing."""
    rng = np.random.default_rng(seed)
    made = {
        "weights": 0.02 * rng.standard_normal(SIZE),
        "biases": np.zeros(SIZE),
        "gains": np.ones(SIZE),
        "large": 300 * rng.standard_normal(SIZE),
    }
    return {name: jnp.asarray(p, dtype) for name, p in made.items()}


def updates_of(optimizer, start, grads):
    """The updates at each step, and the last state; every parameter gets the same gradients."""
    state, update, found = optimizer.init(start), jax.jit(optimizer.update), []
    for g in grads:
        updates, state = update(jax.tree.map(lambda p, g=g: jnp.asarray(g, p.dtype), start), state)
        found.append(updates)
    return found, state


@pytest.mark.parametrize(
    ("kind", "nesterov"),
    [(kind, True) for kind in ("normal", "scales", "sparse", "zero")] + [("bursts", False)],
)
def test_200_steps_are_those_of_the_reference_in_relative_coordinates(kind, nesterov):
    start, grads = params(), gradients(kind, 200, SIZE)
    found, state = updates_of(nadadelta(nesterov=nesterov), start, grads)
    scales = root_mean_squares(jax.tree.leaves(start))
    np.testing.assert_allclose(state.scale, scales, rtol=1e-6)
    for i, r in enumerate(scales):
        expected = list(relative(grads, r, nesterov=nesterov))
        path = np.cumsum([step.dx for step in expected], axis=0)
        steps = np.cumsum([np.float64(jax.tree.leaves(u)[i]) for u in found], axis=0)
        size = np.abs(path).max(axis=0) + 1e-30
        np.testing.assert_array_less(np.abs(steps - path) / size, 2e-5)
        for name, tolerance in (("e_g", 1e-5), ("e_x", 1e-5)):
            got = jax.tree.leaves(getattr(state, name))[i]
            np.testing.assert_allclose(got, getattr(expected[-1], name), tolerance, 1e-35)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.complex128])
def test_200_steps_in_64_bits_equal_the_reference(dtype):
    start, grads = params(dtype), gradients("normal", 200, SIZE)
    if dtype == jnp.complex128:
        grads = grads + 1j * gradients("normal", 200, SIZE, seed=1)
    found, state = updates_of(nadadelta(), start, grads)
    for i, r in enumerate(np.float64(state.scale)):
        for updates, expected in zip(found, relative(grads, r), strict=True):
            got = jax.tree.leaves(updates)[i]
            assert got.dtype == dtype
            np.testing.assert_allclose(got, expected.dx, rtol=1e-10, atol=1e-12 * r)


@pytest.mark.parametrize(("bits", "bound"), [(16, 5e-5), (8, 3e-2)])
def test_a_quantized_path_is_near_the_reference(bits, bound):
    start, grads = {"w": params()["weights"]}, gradients("normal", 300, SIZE)
    found, state = updates_of(nadadelta(state_bits=bits), start, grads)
    path = np.sum([step.dx for step in relative(grads, np.float64(state.scale[0]))], axis=0)
    error = np.sum((np.sum([np.float64(u["w"]) for u in found], axis=0) - path) ** 2)
    assert error < bound * np.sum(path**2)


@pytest.mark.parametrize(("bits", "factor"), [(None, 2.0**10), (8, 2.0**-10)])
def test_scaling_an_array_scales_its_path_bit_for_bit(bits, factor):
    start, grads = params(), gradients("normal", 50, SIZE)
    optimizer = nadadelta(state_bits=bits)
    found, state = updates_of(optimizer, start, grads)
    scaled = start | {"weights": factor * start["weights"]}

    def scaled_gradients(p, g, name):
        return jnp.asarray(g / factor if name == "weights" else g, p.dtype)

    other = optimizer.init(scaled)
    for g, expected in zip(grads, found, strict=True):
        given = {name: scaled_gradients(p, g, name) for name, p in scaled.items()}
        updates, other = jax.jit(optimizer.update)(given, other)
        np.testing.assert_array_equal(updates["weights"], factor * expected["weights"])
    if bits:
        np.testing.assert_array_equal(other.e_g["weights"], state.e_g["weights"])


@pytest.mark.parametrize(
    ("bits", "factor", "bound"), [(None, 1000.0, 1e-9), (None, 1e-3, 2e-5), (8, 1000.0, 3e-2)]
)
def test_scaling_the_loss_hardly_changes_the_path(bits, factor, bound):
    start, grads = {"weights": params()["weights"]}, gradients("normal", 100, SIZE)
    optimizer = nadadelta(state_bits=bits)
    paths = [
        np.sum(
            [np.float64(u["weights"]) for u in updates_of(optimizer, start, scale * grads)[0]], 0
        )
        for scale in (1.0, factor)
    ]
    error = np.sum((paths[1] - paths[0]) ** 2) / np.sum(paths[0] ** 2)
    # What is left comes from the tiny number beside E[g^2], and from other codes.
    assert error < bound


def test_the_scale_is_the_root_mean_square_and_that_of_zeros_the_mean_of_the_others():
    tree = {"a": jnp.array([3.0, -4.0]), "b": jnp.zeros((2, 3)), "c": jnp.zeros((0, 5)), "d": None}
    tree |= {"e": jnp.full(100, 1e-8), "f": jnp.float32(-40)}
    known = np.array([np.sqrt(12.5), 1e-8, 40])
    mean = np.prod(known) ** (1 / 3)
    expected = [known[0], mean, mean, *known[1:]]
    np.testing.assert_allclose(nadadelta().init(tree).scale, expected, 1e-5)
    # An array that cannot be trained spoils no other.
    scale = nadadelta().init({"a": jnp.array([jnp.nan]), "b": jnp.ones(2), "z": jnp.zeros(2)}).scale
    np.testing.assert_array_equal(scale, [np.nan, 1, 1])
    assert nadadelta().init({"z": jnp.zeros(3)}).scale == np.float32(0.3)
    assert nadadelta().init(jnp.float32(-2.0)).scale == 2.0
    assert nadadelta().init({}).scale.shape == (0,)
    assert nadadelta().update({}, nadadelta().init({}))[0] == {}
    for dtype in (jnp.bfloat16, jnp.complex64):
        scale = nadadelta().init(jnp.full(7, -0.5, dtype)).scale
        assert (scale.dtype, float(scale[0])) == (jnp.float32, 0.5)


def test_the_trace_of_a_plain_zero_momentum_is_not_kept():
    start, grads = params(), gradients("normal", 20, SIZE)
    found, state = updates_of(nadadelta(momentum=0.0), start, grads)
    assert state.trace is None
    expected, kept = updates_of(nadadelta(momentum=jnp.float32(0)), start, grads)
    assert kept.trace is not None
    chex.assert_trees_all_close(found, expected, rtol=1e-6, atol=1e-4)


@QUANTIZED
@pytest.mark.parametrize("size", [1e-6, -1e-3, 1.0, -8.0])
def test_the_stored_trace_is_unbiased(bits, size):
    found = _stored(bits, np.full(400, 0.02 * size, np.float32), r=0.02)
    np.testing.assert_allclose(found.mean(), 0.02 * size, rtol=2e-2)


def _stored(bits, dx, r):
    """What is stored of a first trace, at 60 counts."""
    eps = Epsilons(np.float32(1e-16 / r**2), np.float32(1e-5 * r**2))
    storage = storage_with(bits, relative=True)
    trace = jnp.zeros(dx.shape, storage.dtypes[0])

    @jax.jit
    def one(count):
        quantization = Quantization(eps, eps, None, dither_at(np.uint32(0), count))
        return storage.step_trace(dx, dx, trace, np.float32(0.9), quantization)[0]

    return np.float64([one(t) for t in range(60)])


@pytest.mark.parametrize("bits", [None, 8])
def test_a_nan_stays_in_its_coordinate_and_huge_gradients_keep_the_trace_finite(bits):
    start = params()["gains"]
    optimizer = nadadelta(state_bits=bits)
    state, update = optimizer.init(start), jax.jit(optimizer.update)
    g = jnp.ones(SIZE).at[3].set(jnp.nan).at[5].set(jnp.inf).at[6].set(-3e38)
    for _ in range(3):
        updates, state = update(g, state)
    known = np.delete(np.asarray(updates), 3)
    assert np.isnan(updates[3])
    assert np.isfinite(known).all()
    trace = diagnostics.averages(state)
    assert np.isfinite(np.delete(np.asarray(trace.e_x), 3)).all()


def test_a_state_from_shapes_is_refused_eagerly_and_gives_nan_in_a_compiled_step():
    start = params()
    optimizer = nadadelta()
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), start)
    state = optimizer.init(shapes)
    assert jax.tree.structure(state) == jax.tree.structure(optimizer.init(start))
    with pytest.raises(ValueError, match="init"):
        optimizer.update(start, state)
    updates, _ = jax.jit(optimizer.update)(start, state)
    assert all(np.isnan(u).all() for u in jax.tree.leaves(updates))


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"momentum": 1.0}, ValueError),
        ({"momentum": -0.1}, ValueError),
        ({"momentum": True}, TypeError),
        ({"momentum": {"w": 0.9}}, TypeError),
        ({"eps": 0.0}, ValueError),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(given, error):
    with pytest.raises(error, match=r"momentum|eps"):
        nadadelta(**given)


def test_an_absolute_eps_is_warned_of():
    with pytest.warns(UserWarning, match="share"):
        nadadelta(eps=0.05)


def test_a_state_of_another_rule_or_of_no_scale_is_refused():
    start = params()
    state = nadadelta().init(start)
    for optimizer, given, word in (
        (nadadelta(), adadelta().init(start), "carry_over"),
        (nadadelta(), nadadelta(momentum=0.0).init(start), "carry_over"),
        (adadelta(), state, "carry_over"),
        (nadadelta(), state._replace(scale=jnp.zeros(len(start))), "scale"),
    ):
        with pytest.raises(ValueError, match=word):
            optimizer.update(start, given)


def test_scale_by_nadadelta_is_nadadelta_without_rate_and_sign():
    start, grads = params(), gradients("normal", 10, SIZE)
    chain = optax.chain(scale_by_nadadelta(), optax.scale_by_learning_rate(0.5))
    found, _ = updates_of(chain, start, grads)
    same_bits(found, updates_of(nadadelta(0.5), start, grads)[0])


def test_each_run_of_a_vmap_steps_as_it_does_alone():
    runs = {"w": jnp.stack([params()["weights"], jnp.ones(SIZE)]), "s": jnp.float32([2, -1])}
    optimizer = nadadelta(state_bits=8)
    state = jax.vmap(optimizer.init)(runs)
    assert state.scale.shape == (2, 2)
    for _ in range(3):
        updates, state = jax.jit(jax.vmap(optimizer.update))(runs, state)
    alone = jax.tree.map(lambda p: p[0], runs)
    found = optimizer.init(alone)
    for _ in range(3):
        after, found = jax.jit(optimizer.update)(alone, found)
    same_types(found, jax.tree.map(lambda x: x[0], state))
    # A rounding that the compiler makes otherwise may choose the next code.
    chex.assert_trees_all_close(jax.tree.map(lambda u: u[0], updates), after, rtol=0.2)


def test_diagnostics_read_the_units_of_each_array():
    start = {"w": params()["weights"], "v": params()["large"], "b": jnp.zeros(SIZE)}
    eps = 2e-5
    _, state = updates_of(nadadelta(eps=eps), start, gradients("normal", 9, SIZE))
    read = diagnostics.averages(state)
    coordinates = diagnostics.choose_coordinates(state, SIZE)
    rates = diagnostics.effective_learning_rate(state, eps, 0.5)
    seen = diagnostics.sample(state, start, coordinates, eps, 0.5)
    found = diagnostics.summaries(state, eps, 0.5, quantiles=())
    for name, r in zip(sorted(start), np.float64(state.scale), strict=True):
        e_g, e_x = np.float64(read.e_g[name]), np.float64(read.e_x[name])
        expected = 0.5 * np.sqrt(e_x + eps * r**2) / np.sqrt(e_g + 1e-16 / r**2)
        np.testing.assert_allclose(rates[name], expected, rtol=1e-5)
        np.testing.assert_allclose(seen.rate[name], expected[coordinates[name][0]], rtol=1e-5)
        mean = found[f"{name}/effective_learning_rate/mean"]
        np.testing.assert_allclose(mean, expected.mean(), rtol=1e-4)
        at_rest = np.mean(e_x < eps * r**2 / 100)
        np.testing.assert_allclose(found[f"{name}/share/at_rest"], at_rest, atol=0.02)
        assert found[f"{name}/share/dominated_by_eps"] == 0


@QUANTIZED
def test_complex_parameters_step_in_their_real_directions(bits):
    """With gradients along one direction, a complex parameter moves as a real one does."""
    start, grads = params()["weights"], gradients("normal", 9, SIZE)
    expected, _ = updates_of(nadadelta(state_bits=bits), start, grads)
    turned = jnp.complex64(0.6 + 0.8j) * start.astype(jnp.complex64)
    found, state = updates_of(nadadelta(state_bits=bits), turned, 1j * grads)
    path, other = (np.sum(np.complex128(steps), axis=0) for steps in (found, expected))
    assert np.sum(np.abs(path - 1j * other) ** 2) < 1e-2 * np.sum(np.abs(other) ** 2)
    # The trace is not quantized, so it stays as it is in another storage.
    assert state.trace.dtype == jnp.complex64
    same_bits(convert.with_state_bits(state, None).trace, state.trace)
