"""The transformations: what `init` makes, what `update` keeps, decay, sharding, derivatives."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import algorithm_1
from states import QUANTIZED

from optax_adadelta import AdadeltaState, adadelta
from optax_adadelta._equation import equation
from optax_adadelta._operands import Operands
from optax_adadelta._storage import _full

NARROW = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64)
WIDE = (jnp.float64, jnp.complex128)


@chex.dataclass
class Layer:
    w: jax.Array
    b: jax.Array | None


def tree(*dtypes):
    """Parameters of every form a leaf may have, in each of these dtypes."""
    rng = np.random.default_rng(0)

    def leaf(dtype, *shape):
        real, imaginary = rng.standard_normal((2, *shape))
        return jnp.asarray(real + 1j * imaginary if jnp.iscomplexobj(dtype(0)) else real, dtype)

    def forms(dtype):
        layers = [Layer(w=leaf(dtype, 3, 5), b=None)]
        return {"layers": layers, "scalar": leaf(dtype), "no elements": leaf(dtype, 0, 4)}

    nothing = {"nothing": None, "masked": optax.MaskedNode(), "empty": {}}
    return {**nothing, **{dtype.__name__: forms(dtype) for dtype in dtypes}}


def avals(values):
    """Shapes, dtypes and weak types: what a compiled step is specialised to."""
    return jax.tree.map(lambda leaf: jax.typeof(jnp.asarray(leaf)), values)


@pytest.mark.parametrize("wide", [False, True])
def test_any_tree_keeps_its_structure_and_dtypes_with_jit_and_without(wide, request):
    if wide:
        request.getfixturevalue("x64")
    params = tree(*NARROW, *WIDE * wide)
    optimizer = adadelta(weight_decay=0.1)
    state = optimizer.init(params)
    assert isinstance(state, AdadeltaState)
    for average in (state.e_g, state.e_x):
        chex.assert_trees_all_equal_structs(average, params)
        for zeros, p in zip(jax.tree.leaves(average), jax.tree.leaves(params), strict=True):
            accumulator = jnp.float64 if p.dtype in WIDE else jnp.float32
            assert (zeros.shape, zeros.dtype) == (p.shape, accumulator)
            assert (zeros == 0).all()
    jitted_update = jax.jit(optimizer.update)
    for _ in range(2):
        updates, new_state = optimizer.update(params, state, params)
        chex.assert_trees_all_equal((updates, new_state), jitted_update(params, state, params))
        assert avals(updates) == avals(params)
        assert avals(new_state) == avals(state)
        state = new_state


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("value", [0.9, np.float64(0.9), jnp.float32(0.9)])
def test_the_dtype_of_a_hyperparameter_changes_no_type(value):
    params = {"w": jnp.ones((3, 5), jnp.bfloat16)}

    def step(value):
        optimizer = adadelta(value, value, value, value)
        state = optimizer.init(params)
        return *optimizer.update(params, state, params), state

    for wrap in (lambda function: function, jax.jit):
        updates, after, before = wrap(step)(value)
        assert avals(updates) == avals(params)
        assert avals(after) == avals(before)


def test_numbers_and_numpy_arrays_are_leaves():
    params = {"number": 2.0, "array": np.ones(3, np.float64), "half": np.float16(1)}
    state = adadelta().init(params)
    updates, after = adadelta(weight_decay=0.1).update(params, state, params)
    assert avals(after) == avals(state)
    assert updates["array"].dtype == jnp.float32
    assert updates["half"].dtype == jnp.float16


@pytest.mark.parametrize(
    "mask",
    [
        {"w": True, "layer": {"b": False}},
        {"w": jnp.array(True), "layer": {"b": np.False_}},
        {"w": True, "layer": False},
        lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
    ],
)
def test_weight_decay_is_added_to_the_gradient_where_the_mask_says(mask):
    params = {"w": jnp.full((2, 3), 0.7), "layer": {"b": jnp.full(3, 0.7)}}
    grads = jax.tree.map(lambda p: 0.2 * p, params)
    optimizer = adadelta(weight_decay=0.3, weight_decay_mask=mask)
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    (decayed,), (plain,) = algorithm_1([[0.14 + 0.3 * 0.7]]), algorithm_1([[0.14]])
    np.testing.assert_allclose(updates["w"], np.full((2, 3), decayed.dx), rtol=1e-6)
    np.testing.assert_allclose(updates["layer"]["b"], np.full(3, plain.dx[0]), rtol=1e-6)
    np.testing.assert_allclose(state.e_g["w"], np.full((2, 3), decayed.e_g), rtol=1e-6)


def test_update_takes_extra_arguments_and_needs_no_parameters():
    optimizer, g = adadelta(), jnp.array([1.0, -2.0])
    state = optimizer.init(g)
    assert isinstance(optimizer, optax.GradientTransformationExtraArgs)
    chex.assert_trees_all_equal(
        optimizer.update(g, state, value=1.0), optimizer.update(g, state, 5 * g, grad=g)
    )


def test_the_count_stops_at_its_maximum():
    most = jnp.iinfo(jnp.int32).max
    state = adadelta().init(jnp.ones(2))._replace(count=jnp.int32(most))
    _, state = adadelta().update(jnp.ones(2), state)
    assert state.count == most
    assert state.count.dtype == jnp.int32


def test_weight_decay_of_complex_parameters_adds_both_parts():
    rng = np.random.default_rng(0)
    g, p = rng.standard_normal((2, 5, 2)) @ [1, 1j]
    params, grads = jnp.asarray(p, jnp.complex64), jnp.asarray(g, jnp.complex64)
    optimizer = adadelta(weight_decay=0.3)
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    (expected,) = algorithm_1([g + 0.3 * p])
    np.testing.assert_allclose(updates, expected.dx, rtol=2e-6)
    np.testing.assert_allclose(state.e_g, expected.e_g, rtol=2e-6)


def test_leaves_of_one_shape_are_traced_once(monkeypatch):
    traced = []
    monkeypatch.setattr(
        _full, "equation", lambda g, *rest: traced.append(g.shape) or equation(g, *rest)
    )
    # Shapes of no other test, whose traces JAX would remember.
    params = [jnp.ones((2, 1013)) for _ in range(20)] + [jnp.ones(1019) for _ in range(20)]
    jax.jit(adadelta().update).trace(params, adadelta().init(params))
    assert traced == [(2, 1013), (1019,)]


@pytest.mark.usefixtures("x64")
def test_hyperparameters_are_cast_once_per_dtype_in_the_order_of_the_leaves(monkeypatch):
    # If the order differed between processes, so would the program: hosts would disagree, and a
    # compilation cache would not find it.
    cast, casts = Operands.astype, []
    monkeypatch.setattr(
        Operands, "astype", lambda hyper, dtype: casts.append(dtype) or cast(hyper, dtype)
    )
    # A shape of no other test, whose traces JAX would remember.
    dtypes = [jnp.float64, jnp.float32]
    params = [jnp.ones(1021, dtype) for dtype in (*dtypes, *dtypes)]
    jax.jit(adadelta().update).trace(params, adadelta().init(params))
    assert casts == dtypes


def test_a_leaf_on_another_device_keeps_its_state_there():
    params = jax.device_put(jnp.ones(3), jax.devices()[5])
    state = adadelta().init(params)
    _, state = adadelta().update(params, state)
    assert state.e_g.devices() == state.e_x.devices() == {jax.devices()[5]}


@pytest.fixture
def float64_on_request():
    if not hasattr(jax.config, "jax_explicit_x64_dtypes"):
        pytest.skip("this version of JAX has no float64 on request")
    before = jax.config.jax_explicit_x64_dtypes
    jax.config.update("jax_explicit_x64_dtypes", "allow")
    if float(jax.lax.full((), 0.1, jnp.float64)) != 0.1:
        jax.config.update("jax_explicit_x64_dtypes", before)
        pytest.skip("this jax rounds the numbers of its float64 arrays to float32")
    yield
    jax.config.update("jax_explicit_x64_dtypes", before)


@pytest.mark.usefixtures("float64_on_request")
@QUANTIZED
def test_without_x64_float64_parameters_can_have_quantized_averages(bits):
    g = jax.lax.full((5,), 0.1, jnp.float64)
    optimizer = adadelta(state_bits=bits)
    updates, _ = optimizer.update(g, optimizer.init(g))
    (expected,) = algorithm_1(np.full((1, 5), 0.1))
    np.testing.assert_allclose(updates, expected.dx, rtol=1e-3 if bits == 16 else 0.1)
    assert updates.dtype == jnp.float64


@pytest.mark.usefixtures("float64_on_request")
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_without_x64_float64_parameters_made_on_request_get_float64_averages(wrap):
    g = jax.lax.full((5,), 0.1, jnp.float64)
    optimizer = adadelta(0.3, rho=0.97, eps=1e-7)
    state = wrap(optimizer.init)(g)
    abstract = optimizer.init(jax.ShapeDtypeStruct((5,), jnp.float64))
    assert avals(state) == avals(abstract)
    for step in algorithm_1(np.full((3, 5), 0.1), rho=0.97, eps=1e-7):
        updates, state = wrap(optimizer.update)(g, state)
        np.testing.assert_allclose(updates, 0.3 * step.dx, rtol=1e-13)
        np.testing.assert_allclose(state.e_g, step.e_g, rtol=1e-13)
        np.testing.assert_allclose(state.e_x, step.e_x, rtol=1e-13)
        assert updates.dtype == state.e_g.dtype == state.e_x.dtype == jnp.float64
