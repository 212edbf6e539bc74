"""The recipes of docs/recipes.md, as they stand there, against what they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import recipes
from reference import algorithm_1, gradients
from states import BITS, apart

from optax_adadelta import adadelta, clip_by_global_norm
from optax_adadelta.diagnostics import averages


@pytest.fixture(scope="module")
def sections():
    return recipes.run("recipes.md")


@pytest.fixture(scope="module")
def page(sections):
    """The names that the page's code defines."""
    names, _ = list(sections.values())[-1]
    return names


def test_every_recipe_has_code_that_does_not_compile_after_the_second_step(sections, compiled):
    with_code = [t for t, (names, jitted) in sections.items() if jitted or "optimizer" in names]
    assert with_code == list(sections)[1:]
    recipes.check_compilations(sections, compiled)


def test_schedules_and_changes_by_hand_do_not_compile_after_the_second_step(compiled):
    sections = recipes.run("schedules_and_logging.md")
    assert all("optimizer" in names for names, _ in list(sections.values())[1:])
    recipes.check_compilations(sections, compiled)


def test_lazy_rows_step_as_rows_that_are_leaves_of_their_own(page):
    size, width, steps = 20, 4, 30
    rng = np.random.default_rng(0)
    optimizer = adadelta()
    table = jnp.asarray(rng.standard_normal((size, width)), jnp.float32)
    state = optimizer.init(table)
    leaves = list(table)
    states = [optimizer.init(leaf) for leaf in leaves]
    for g in gradients("normal", steps, 8 * width).reshape(steps, 8, width):
        g = jnp.asarray(g, jnp.float32)
        ids = rng.integers(0, size, 8)
        rows, places = jnp.unique(jnp.asarray(ids), size=8, fill_value=size, return_inverse=True)
        summed = jnp.zeros((8, width)).at[places].add(g)
        table, state = page["update_rows"](table, state, rows, summed)
        for row, total in zip(rows, summed, strict=True):
            if row < size:
                updates, states[row] = optimizer.update(total, states[row])
                leaves[row] = optax.apply_updates(leaves[row], updates)
    np.testing.assert_allclose(table, leaves, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(state.e_g, [state.e_g for state in states], rtol=2e-6)
    np.testing.assert_allclose(state.e_x, [state.e_x for state in states], rtol=2e-6)
    assert state.count == steps


@BITS
def test_gathered_rows_step_in_any_storage(bits):
    optimizer = adadelta(state_bits=bits)
    g = jnp.asarray(gradients("normal", 5, 32).reshape(5, 8, 4), jnp.float32)
    rows = jnp.array([6, 1])
    state = optimizer.init(g[0])
    some = state._replace(e_g=state.e_g[rows], e_x=state.e_x[rows])
    for t in range(5):
        _, some = optimizer.update(g[t][rows], some)
    *_, expected = algorithm_1(np.float64(g)[:, np.array(rows)])
    found = averages(some)
    assert apart(found.e_g, expected.e_g) < {None: 1e-5, 16: 5e-3, 8: 0.5}[bits]
    assert apart(found.e_x, expected.e_x) < {None: 1e-5, 16: 5e-3, 8: 0.5}[bits]


@pytest.mark.parametrize("clip", [clip_by_global_norm, optax.clip_by_global_norm])
@pytest.mark.parametrize("bad", [jnp.inf, -jnp.inf, jnp.nan])
@BITS
def test_a_gradient_that_is_not_finite_spoils_the_chain_unless_it_is_cured(bits, bad, clip):
    def trained(optimizer):
        def step(carry, spoils):
            params, state = carry
            grads = jax.grad(lambda p: jnp.prod(p**2))(params)
            grads = grads.at[1].set(jnp.where(spoils, bad, grads[1]))
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        carry = jnp.asarray(start, jnp.float32), optimizer.init(jnp.zeros(3))
        return jax.lax.scan(step, carry, jnp.arange(20) == 10)[0][0]

    start = np.array([3.0, -2.0, 1.0])
    rule = adadelta(state_bits=bits)
    assert jnp.isnan(trained(optax.chain(clip(1.0), rule))).all()
    cures = (
        optax.apply_if_finite(optax.chain(clip(1.0), rule), max_consecutive_errors=5),
        optax.chain(clip(1.0), optax.zero_nans(), rule),
    )
    for cured in cures:
        assert (np.abs(trained(cured)) < np.abs(start)).all()


@pytest.mark.parametrize("conjugate", [True, False])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("bits", [None, 16])
def test_complex_parameters_are_fitted_if_gradients_are_conjugated(page, bits, split, conjugate):
    optimizer = adadelta(eps=1e-4, state_bits=bits)
    if split:
        optimizer = optax.contrib.split_real_and_imaginary(optimizer)
    with jax.numpy_dtype_promotion("standard"):
        distance = abs(page["fit"](optimizer, conjugate) - (1 - 2j))
    assert distance < 1e-2 if conjugate else distance > 1e5
