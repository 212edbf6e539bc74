"""Inside optax.inject_hyperparams: the dtypes, what is static, what is read and set."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from states import CODE, EPS, normal, same_bits, same_types

from optax_adadelta import adadelta
from optax_adadelta.diagnostics import averages

pytestmark = pytest.mark.usefixtures("optax_promotes")


def test_a_mask_function_is_static():
    params = {"w": jnp.ones(3), "b": jnp.ones(3)}
    injected = optax.inject_hyperparams(adadelta, static_args="weight_decay_mask")(
        weight_decay=0.1, weight_decay_mask=lambda params: {"w": True, "b": False}
    )
    plain = adadelta(weight_decay=0.1, weight_decay_mask={"w": True, "b": False})
    found, expected = (
        rule.update(params, rule.init(params), params)[0] for rule in (injected, plain)
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-6)


def test_rho_is_rounded_to_a_bfloat16_model_unless_told_not_to():
    params = jnp.ones(3, jnp.bfloat16)
    for told, rho in (({}, float(jnp.bfloat16(0.95))), ({"hyperparam_dtype": jnp.float32}, 0.95)):
        injected = optax.inject_hyperparams(adadelta, **told)(rho=0.95)
        before = injected.init(params)
        _, state = jax.jit(injected.update)(params, before, params)
        same_types(state.inner_state, before.inner_state)
        np.testing.assert_allclose(state.inner_state.e_g, np.full(3, 1 - rho), rtol=1e-6)


def test_weight_decay_may_be_static_so_that_no_parameters_are_needed():
    injected = optax.inject_hyperparams(adadelta, static_args="weight_decay")(rho=0.9)
    g = jnp.ones(3)
    updates, _ = jax.jit(lambda g: injected.update(g, injected.init(g)))(g)
    np.testing.assert_allclose(
        updates, adadelta(rho=0.9).update(g, adadelta().init(g))[0], rtol=1e-6
    )
    with pytest.raises(ValueError, match="params is None"):
        jax.jit(optax.inject_hyperparams(adadelta)().update)(
            g, optax.inject_hyperparams(adadelta)().init(g)
        )


def test_for_a_complex_model_the_dtype_must_be_told():
    z = jnp.ones(3, jnp.complex64)
    with pytest.raises(TypeError, match=r"learning_rate must.*hyperparam_dtype=jnp.float32"):
        optax.inject_hyperparams(adadelta)().init(z)
    injected = optax.inject_hyperparams(adadelta, hyperparam_dtype=jnp.float32)()
    updates, _ = injected.update(z, injected.init(z), z)
    np.testing.assert_allclose(updates, adadelta().update(z, adadelta().init(z))[0], rtol=1e-6)


@pytest.mark.parametrize("bits", [None, 8])
def test_injected_hyperparameters_keep_the_storage(bits):
    injected = optax.inject_hyperparams(adadelta, static_args="state_bits")(
        rho=0.9, state_bits=bits
    )
    plain = adadelta(rho=0.9, state_bits=bits)
    g = normal((4, 8))
    state, plain_state = injected.init(g), plain.init(g)
    same_types(state.inner_state, plain_state)
    updates, state = jax.jit(injected.update)(g, state, g)
    expected, plain_state = plain.update(g, plain_state)
    np.testing.assert_allclose(updates, expected, rtol=1e-5 + CODE[bits])
    same_types(state.inner_state, plain_state)
    # The injected rho is float32, so a value at the edge of a code may round to its neighbour.
    for one, other in zip(averages(state), averages(plain_state), strict=True):
        np.testing.assert_allclose(one + EPS, other + EPS, rtol=1e-5 + 2 * CODE[bits])
    for name in ("learning_rate", "rho", "eps", "weight_decay"):
        assert optax.tree_utils.tree_get(state, name) == state.hyperparams[name]
        replaced = optax.tree_utils.tree_set(state, **{name: jnp.float32(0.5)})
        assert replaced.hyperparams[name] == 0.5
        same_bits(averages(replaced), averages(state))
