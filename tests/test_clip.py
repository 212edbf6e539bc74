"""The clip by global norm: Optax's numbers, and what it does where those are special."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from states import same_bits, same_types

from optax_adadelta import clip_by_global_norm

# In units of the dtype's rounding.
FEW = 4


def tree(dtype, scale=1.0):
    rng = np.random.default_rng(0)
    return {
        "w": jnp.asarray(scale * rng.standard_normal((5, 7)), dtype),
        "b": [jnp.asarray(scale, dtype), None],
        "empty": jnp.zeros((0, 4), dtype),
    }


def clipped(max_norm, grads):
    clip = clip_by_global_norm(max_norm)
    return clip.update(grads, clip.init(grads))[0]


def optaxs(max_norm, grads):
    clip = optax.clip_by_global_norm(max_norm)
    return clip.update(grads, clip.init(grads))[0]


def assert_close(found, expected, rtol):
    same_types(found, expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        kind = np.complex128 if jnp.iscomplexobj(x) else np.float64
        np.testing.assert_allclose(np.asarray(x, kind), np.asarray(y, kind), rtol=rtol)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.float64, jnp.complex64, jnp.float16, jnp.bfloat16]
)
def test_it_gives_optaxs_numbers(dtype):
    grads = tree(dtype)
    # Optax sums the norm itself in the gradients' dtype.
    few = FEW if jnp.finfo(dtype).bits > 16 else 8 * FEW
    jitted = jax.jit(clipped)
    for max_norm in (0.5, 1e4, np.inf, 0.0):
        with jax.numpy_dtype_promotion("standard"):
            expected = optaxs(max_norm, grads)
        found = (clipped if dtype == jnp.float32 else jitted)(max_norm, grads)
        assert_close(found, expected, few * float(jnp.finfo(dtype).eps))


def test_gradients_below_the_bound_keep_their_bits_and_a_tree_of_nothing_passes():
    for grads in (tree(jnp.float32, 1e-20), {}, None, (), {"a": None, "b": optax.MaskedNode()}):
        same_bits(clipped(1.0, grads), grads)


def test_the_norm_of_float16_gradients_does_not_overflow():
    g = jnp.full(100, 300.0, jnp.float16)
    np.testing.assert_allclose(np.float32(clipped(1.0, g)), np.full(100, 0.1), rtol=1e-3)


@pytest.mark.parametrize("max_norm", [1.0, np.float32(1.0), np.array(1.0), jnp.float32(1.0), 1])
def test_a_bound_may_be_any_real_scalar(max_norm):
    grads = {"w": jnp.array([3.0, 4.0])}
    np.testing.assert_allclose(clipped(max_norm, grads)["w"], [0.6, 0.8], rtol=1e-6)
    traced = jax.jit(lambda bound: clipped(bound, grads))(max_norm)
    np.testing.assert_allclose(traced["w"], [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize("max_norm", [1.0, 0.0])
@pytest.mark.parametrize("bad", [0.0, -np.inf, np.nan, 1e30])
def test_infinite_and_nan_norms_are_as_with_optax_and_zeros_stay_zeros(bad, max_norm):
    grads = {"w": jnp.array([bad, 0.0]), "b": jnp.array([0.0 if bad == 0 else 2.0])}
    expected = optaxs(max_norm, grads)
    if bad == max_norm == 0:  # Optax's clip gives NaN
        expected = grads
    assert_close(clipped(max_norm, grads), expected, 1e-6)


@pytest.mark.usefixtures("x64")
def test_leaves_of_different_dtypes_share_one_norm():
    grads = {"a": jnp.full(1, 3.0, jnp.float16), "b": jnp.full(1, 4.0, jnp.float64)}
    found = clipped(1.0, grads)
    same_types(found, grads)
    np.testing.assert_allclose(np.float64(found["a"]), [0.6], rtol=1e-3)
    np.testing.assert_allclose(found["b"], [0.8], rtol=1e-15)


@pytest.mark.parametrize(
    ("max_norm", "error"),
    [
        (-1.0, ValueError),
        (np.nan, ValueError),
        (jnp.ones(2), ValueError),
        ("1", TypeError),
        (lambda count: 1.0, TypeError),
    ],
)
def test_a_wrong_max_norm_is_refused_by_name(max_norm, error):
    with pytest.raises(error, match="max_norm") as caught:
        clip_by_global_norm(max_norm)
    assert "step count" not in str(caught.value)  # It may not be a schedule.


def test_integer_gradients_are_refused_by_path():
    with pytest.raises(TypeError, match=r"updates\['n'\].*int32") as caught:
        clipped(1.0, {"n": jnp.arange(3)})
    assert "Adadelta" not in str(caught.value)


def test_the_norm_is_that_of_all_shards():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    g = jnp.arange(16.0)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(g, NamedSharding(mesh, PartitionSpec("data")))
        found = jax.jit(clipped)(1.0, sharded)
    assert found.sharding == sharded.sharding
    np.testing.assert_allclose(found, clipped(1.0, g), rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_its_derivative_is_that_of_finite_differences():
    def loss(x, bound):
        return jnp.sum(jnp.sin(clipped(bound, {"a": x})["a"]))

    x = jnp.array([0.3, -2.0, 1.1])
    for bound in (1.0, 100.0):
        derivative = jax.grad(loss)(x, bound)
        step = 1e-6
        for i in range(3):
            moved = [loss(x.at[i].add(sign * step), bound) for sign in (1, -1)]
            np.testing.assert_allclose(derivative[i], (moved[0] - moved[1]) / (2 * step), atol=1e-8)
