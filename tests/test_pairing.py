"""Parameters beside gradients: models with more leaves, and leaves of different dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import algorithm_1
from states import BITS, CODE, same_types

from optax_adadelta import adadelta, scale_by_adadelta


def relu_model():
    return {"w": jnp.ones(2), "ids": jnp.arange(3), "act": jax.nn.relu, "deep": {"b": (1, "name")}}


def beside(w, nothing=None):
    """A tree of gradients, or of trained parameters, with nothing beside `w`."""
    return {"w": w, "ids": nothing, "act": nothing, "deep": nothing}


@pytest.mark.parametrize(
    ("nothing", "mask"),
    [
        (None, None),
        (None, beside(True)),
        (optax.MaskedNode(), beside(True, optax.MaskedNode())),
        (optax.MaskedNode(), lambda model: jax.tree.map(lambda _: True, model)),
    ],
)
def test_a_whole_model_may_stand_for_the_parameters(nothing, mask):
    # With so large an eps the first update shows the size of the gradient, not only its sign.
    optimizer = adadelta(eps=0.1, weight_decay=0.1, weight_decay_mask=mask)
    state = optimizer.init(beside(jnp.ones(2), nothing))
    updates, state = optimizer.update(beside(jnp.ones(2), nothing), state, relu_model())
    (expected,) = algorithm_1(np.full((1, 2), 1.1), eps=0.1)
    np.testing.assert_allclose(updates["w"], expected.dx, rtol=1e-6)
    assert updates == beside(updates["w"], nothing)


def test_a_gradient_needs_a_parameter_beside_it():
    state = adadelta().init(beside(jnp.ones(2)))
    for missing in (None, {"deeper": jnp.ones(2)}, "no array", jnp.arange(2)):
        with pytest.raises((ValueError, TypeError), match=r"params.*\['w'\]"):
            adadelta().update(beside(jnp.ones(2)), state, {**relu_model(), "w": missing})


@BITS
def test_small_float16_gradients_move_float32_parameters(bits):
    optimizer = adadelta(1e-3, eps=1e-7, state_bits=bits)
    params = jnp.float32(0)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    g = jnp.float16(2e-5)
    for _ in range(1000):
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
    expected = 1e-3 * sum(step.dx for step in algorithm_1(np.full(1000, g), eps=1e-7))
    np.testing.assert_allclose(params, expected, rtol=1e-2 if bits else 1e-5)


def test_each_leaf_has_its_own_dtype():
    params = {"a": jnp.ones(2), "b": jnp.ones(2, jnp.bfloat16), "c": jnp.ones(2, jnp.complex64)}
    grads = {**params, "a": params["a"].astype(jnp.float16)}
    optimizer = scale_by_adadelta()
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    same_types(updates, params)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda rule: optax.apply_if_finite(rule, 3),
        lambda rule: optax.conditionally_transform(rule, lambda step: step < 5),
    ],
)
def test_wrappers_that_need_the_dtype_of_the_gradients_work_without_parameters(wrap):
    optimizer = wrap(adadelta())
    state = optimizer.init(jnp.ones(3))
    for _ in range(2):
        updates, state = optimizer.update(jnp.ones(3, jnp.float16), state)
    assert (updates < 0).all()
    assert updates.dtype == jnp.float16


def test_a_parameter_that_is_complex_and_a_gradient_that_is_real():
    p, g = jnp.ones(2, jnp.complex64), jnp.ones(2)
    for grads, params in ((g, p), (p, g)):
        with pytest.raises(TypeError, match="both must be real or both complex"):
            adadelta().update(grads, adadelta().init(params), params)


def test_a_parameter_of_another_shape_is_refused_without_decay_too():
    state = adadelta().init(jnp.ones(3))
    with pytest.raises(ValueError, match=r"shape \(3,\).*params.*shape \(1, 3\)"):
        adadelta().update(jnp.ones(3), state, jnp.ones((1, 3)))


# So large that the first update depends on the size of the gradient, and not on its sign alone.
EPS = 0.09
# Gradient, parameter, and the update: the wider of the two, of equal ones the parameter's.
KINDS = [
    (jnp.bfloat16, jnp.float32, jnp.float32),
    (jnp.float32, jnp.float16, jnp.float32),
    (jnp.float16, jnp.bfloat16, jnp.bfloat16),
    (jnp.bfloat16, jnp.float64, jnp.float64),
    (jnp.float64, jnp.float32, jnp.float64),
    (jnp.complex64, jnp.complex128, jnp.complex128),
]


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: "-".join(k.__name__ for k in kinds))
def test_an_update_has_the_wider_dtype_if_parameters_are_given(kinds, bits, request):
    if any(jnp.finfo(kind).bits > 32 for kind in kinds):
        request.getfixturevalue("x64")
    g, p = jnp.asarray([0.5, -2.0], kinds[0]), jnp.asarray([1.0, 3.0], kinds[1])
    (expected,) = algorithm_1(np.array([[0.5, -2.0]]) + 0.5 * np.array([[1.0, 3.0]]), eps=EPS)
    optimizer = adadelta(weight_decay=0.5, eps=EPS, state_bits=bits)
    state = optimizer.init(p)
    updates, after = optimizer.update(g, state, p)
    same_types(after, state)
    assert updates.dtype == kinds[2]
    rtol = max(4 * float(jnp.finfo(kinds[2]).eps), 1e-6 if bits is None else CODE[bits])
    np.testing.assert_allclose(np.asarray(updates, "c16"), expected.dx, rtol=rtol)
    plain = adadelta(state_bits=bits).update
    for update, dtype in ((plain, kinds[2]), (lambda g, state, _: plain(g, state), kinds[0])):
        updates, after = jax.eval_shape(update, g, state, p)
        same_types(after, state)
        assert updates.dtype == dtype
