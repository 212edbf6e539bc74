"""Trees and leaves that do not fit: the error has the path and says what is wrong."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_adadelta import adadelta

PARAMS = {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}


def refused(error, *parts):
    return pytest.raises(error, match=".*".join(re.escape(part) for part in parts))


@pytest.mark.parametrize(
    ("leaf", "dtype"),
    [
        (jnp.arange(3), "int32"),
        (np.ones(3, bool), "bool"),
        (3, "int32"),
        (jax.ShapeDtypeStruct((3,), jnp.uint8), "uint8"),
        (jax.random.key(0), "key<"),
        (jnp.sin, "is <"),
        ("float32", "is 'float32', of type str"),
    ],
)
def test_parameters_that_are_not_floating_point(leaf, dtype):
    with refused(TypeError, "params['a'][1]", dtype, "eqx.filter", "nnx.Param", "mask"):
        adadelta().init({"a": [jnp.ones(2), leaf]})


def test_gradients_of_integers():
    grads = jax.grad(lambda p: p["w"].sum() * 1.0, allow_int=True)({**PARAMS, "b": jnp.arange(4)})
    with refused(TypeError, "updates['b']", "float0", "eqx.filter", "nnx.Param", "mask"):
        adadelta().update(grads, adadelta().init(PARAMS))


@pytest.mark.parametrize(
    ("grads", "words"),
    [
        ({"w": PARAMS["w"]}, ["state.e_g has ['b'], updates does not"]),
        ({**PARAMS, "c": jnp.ones(1)}, ["updates has ['c'], state.e_g does not"]),
        (
            {"w": PARAMS["w"], "b": {"c": jnp.ones(4)}},
            ["updates has ['b']['c'], state.e_g has ['b']"],
        ),
        ([PARAMS["b"], PARAMS["w"]], ["updates has [0], [1], state.e_g has ['b'], ['w']"]),
        ((PARAMS["b"], PARAMS["w"]), ["updates has [0], [1], state.e_g has ['b'], ['w']"]),
        (jnp.ones(4), ["updates has", "state.e_g has ['b'], ['w']"]),
    ],
)
def test_gradients_of_another_structure(grads, words):
    with refused(ValueError, "updates and state.e_g", *words, "init"):
        adadelta().update(grads, adadelta().init(PARAMS))


def test_gradients_of_another_shape():
    grads = {**PARAMS, "b": jnp.ones(5)}
    with refused(ValueError, "updates['b'] has shape (5,)", "state.e_g['b'] has shape (4,)"):
        adadelta().update(grads, adadelta().init(PARAMS))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"w": PARAMS["w"]}, "updates has ['b'], params does not"),
        ({**PARAMS, "b": jnp.ones(5)}, "params['b'] has shape (5,)"),
        ({**PARAMS, "b": {"c": jnp.ones(4)}}, "updates has ['b'], params has ['b']['c']"),
    ],
)
def test_parameters_that_do_not_match(params, words):
    with refused(ValueError, words):
        adadelta(weight_decay=0.1).update(PARAMS, adadelta().init(PARAMS), params)


def test_real_gradients_of_complex_parameters():
    params = {**PARAMS, "b": jnp.ones(4, jnp.complex64)}
    with refused(TypeError, "updates['b'] is float32", "params['b'] is complex64"):
        adadelta(weight_decay=0.1).update(PARAMS, adadelta().init(params), params)


def test_weight_decay_without_parameters():
    with refused(ValueError, "params is None", "update(grads, state, params)"):
        adadelta(weight_decay=0.1).update(PARAMS, adadelta().init(PARAMS))


def test_accumulators_that_do_not_match():
    state = adadelta().init(PARAMS)
    with refused(ValueError, "updates has ['b'], state.e_x does not"):
        adadelta().update(PARAMS, state._replace(e_x={"w": state.e_x["w"]}))


def test_a_state_cast_to_low_precision():
    state = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), adadelta().init(PARAMS))
    with refused(TypeError, "state.e_g['b']", "bfloat16", "float32", "cast"):
        adadelta().update(PARAMS, state)


@pytest.mark.usefixtures("x64")
def test_averages_of_two_dtypes():
    state = adadelta().init(PARAMS)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), state.e_x)
    with refused(TypeError, "state.e_g['b'] and state.e_x['b'] are float32 and float64"):
        adadelta().update(PARAMS, state._replace(e_x=wide))


@pytest.mark.parametrize("mask", [{"w": True}, {"w": True, "b": {"c": True}}, [True, False]])
def test_a_mask_of_another_structure(mask):
    with refused(ValueError, "weight_decay_mask must have the structure of params", "'b': *"):
        adadelta(weight_decay=0.1, weight_decay_mask=mask).update(
            PARAMS, adadelta().init(PARAMS), PARAMS
        )


@pytest.mark.parametrize("value", [1, "yes", np.ones(4, bool)])
def test_a_mask_that_is_not_of_bools(value):
    with refused(TypeError, "weight_decay_mask['b'] must be True or False", repr(value)):
        adadelta(weight_decay=0.1, weight_decay_mask={"w": True, "b": value}).update(
            PARAMS, adadelta().init(PARAMS), PARAMS
        )


def test_a_traced_mask():
    @jax.jit
    def update(chosen):
        optimizer = adadelta(weight_decay=0.1, weight_decay_mask={"w": True, "b": chosen})
        return optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)

    with refused(TypeError, "weight_decay_mask['b'] must be True or False", "traced"):
        update(True)
