"""Inside Optax: every wrapper that people put around an optimizer, and the documented recipes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import algorithm_1, gradients

from optax_adadelta import AdadeltaState, adadelta, scale_by_adadelta


@pytest.fixture(autouse=True)
def optax_wrappers_promote():
    """Some of Optax's own wrappers mix dtypes, so nothing here can be strict about it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


TARGET = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.array([0.3, -0.7])}
START = jax.tree.map(jnp.zeros_like, TARGET)


def loss(params):
    return optax.tree_utils.tree_sum(
        jax.tree.map(lambda p, target: (p - target) ** 2, params, TARGET)
    )


def adadelta_states(state):
    """The parts of any optimizer's state that are this package's."""
    parts = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, AdadeltaState))
    return [part for part in parts if isinstance(part, AdadeltaState)]


def types(state):
    return jax.tree.map(jax.typeof, adadelta_states(state))


def train(optimizer, steps=400, params=START):
    """A user's training loop: one donated jitted step. Returns all losses and the last state."""
    optimizer = optax.with_extra_args_support(optimizer)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(
            grads, state, params, value=value, grad=grads, value_fn=loss
        )
        return optax.apply_updates(params, updates), state, value

    params = jax.tree.map(jnp.copy, params)
    state = optimizer.init(params)
    before = types(state)
    losses = []
    for _ in range(steps):
        params, state, value = step(params, state)
        losses.append(value)
    assert before
    assert types(state) == before
    return params, state, np.array(losses)


def multi_steps(optimizer):
    return optax.MultiSteps(optimizer, every_k_schedule=2).gradient_transformation()


WRAPPED = {
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), adadelta(rho=0.95)),
    "masked": optax.masked(adadelta(), {"w": True, "b": True}),
    "multi_transform": optax.multi_transform(
        {"slow": adadelta(0.5), "fast": adadelta(2.0)}, {"w": "slow", "b": "fast"}
    ),
    "MultiSteps": multi_steps(adadelta()),
    "apply_if_finite": optax.apply_if_finite(adadelta(), max_consecutive_errors=3),
    "inject_hyperparams": optax.inject_hyperparams(adadelta)(
        learning_rate=optax.constant_schedule(1.0), rho=0.9
    ),
    "schedule_free": optax.contrib.schedule_free(adadelta(1.0), learning_rate=1.0, b1=0.9),
    "reduce_on_plateau": optax.chain(adadelta(), optax.contrib.reduce_on_plateau(patience=10)),
    "flatten": optax.flatten(adadelta()),
    "decoupled decay": optax.chain(
        scale_by_adadelta(), optax.add_decayed_weights(1e-4), optax.scale_by_learning_rate(1.0)
    ),
    "zero_nans": optax.chain(optax.zero_nans(), adadelta()),
    "two reals": optax.contrib.split_real_and_imaginary(adadelta()),
    "decay before and schedule after": optax.chain(
        optax.add_decayed_weights(1e-4), adadelta(), optax.scale_by_schedule(lambda count: 1.0)
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_it_descends_in_a_donated_jitted_step_and_keeps_its_types(name):
    _, _, losses = train(WRAPPED[name])
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.6 * losses[0]
    assert np.mean(losses[-50:]) < np.mean(losses[150:200]) < np.mean(losses[:50])


@pytest.mark.parametrize("name", sorted(WRAPPED.keys() - {"multi_transform"}))
def test_its_state_is_looked_up_and_replaced_by_field_name(name):
    _, state, _ = train(WRAPPED[name], steps=4)
    (adadelta_state,) = adadelta_states(state)
    for field in ("e_g", "e_x"):
        found = optax.tree_utils.tree_get(state, field)
        chex.assert_trees_all_equal(found, getattr(adadelta_state, field))
        zeros = jax.tree.map(jnp.zeros_like, found)
        replaced = optax.tree_utils.tree_set(state, **{field: zeros})
        chex.assert_trees_all_equal(optax.tree_utils.tree_get(replaced, field), zeros)


def test_two_states_are_looked_up_by_path():
    _, state, _ = train(WRAPPED["multi_transform"], steps=4)
    found = optax.tree_utils.tree_get_all_with_path(state, "e_g")
    assert len(found) == 2
    assert {jax.tree.structure(e_g).num_leaves for _, e_g in found} == {1}


def test_the_parameters_in_the_state_are_mapped_over():
    optimizer = optax.chain(optax.clip(1.0), adadelta())
    state = optimizer.init(START)
    doubled = optax.tree_map_params(optimizer, lambda leaf: leaf + 2.0, state)
    (found,) = adadelta_states(doubled)
    assert found.count == 0
    chex.assert_trees_all_equal(found.e_g, jax.tree.map(lambda p: jnp.full_like(p, 2.0), START))


def freezing(**labels):
    """A recipe of the page; optax.masked would pass the gradient of the other parts on."""
    return optax.multi_transform({"train": adadelta(), "freeze": optax.set_to_zero()}, labels)


def test_frozen_parts_do_not_move_and_have_no_state():
    optimizer = freezing(w="train", b="freeze")
    params, state, _ = train(optimizer, steps=20)
    alone, alone_state, _ = train(optax.masked(adadelta(), {"w": True, "b": True}), steps=20)
    np.testing.assert_array_equal(params["b"], START["b"])
    np.testing.assert_array_equal(params["w"], alone["w"])
    e_g = optax.tree_utils.tree_get(state, "e_g")
    assert e_g["b"] == optax.MaskedNode()
    np.testing.assert_array_equal(e_g["w"], optax.tree_utils.tree_get(alone_state, "e_g")["w"])


def test_optax_masked_steps_the_part_that_is_chosen():
    grads = {"w": jnp.ones(3), "b": jnp.ones(3)}
    optimizer = optax.masked(adadelta(), {"w": True, "b": False})
    updates, state = optimizer.update(grads, optimizer.init(grads))
    expected, _ = adadelta().update(grads["w"], adadelta().init(grads["w"]))
    np.testing.assert_array_equal(updates["w"], expected)
    assert state.inner_state.e_g["b"] == optax.MaskedNode()


def test_integers_are_frozen():
    params = {"w": jnp.ones(3), "step": jnp.int32(7)}
    optimizer = freezing(w="train", step="freeze")
    grads = {"w": jnp.ones(3), "step": jnp.int32(5)}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    assert updates["step"] == 0
    assert (updates["w"] < 0).all()


def test_multi_steps_is_adadelta_of_the_mean_gradient():
    optimizer = multi_steps(adadelta())
    # Multiples of 1/8, whose mean is exact in float32.
    g = jnp.asarray(np.round(8 * gradients("normal", 20, 8)) / 8, jnp.float32)
    state = optimizer.init(g[0])
    moved = []
    for t in range(20):
        updates, state = optimizer.update(g[t], state, g[0])
        moved.append(updates)
    assert not np.any(moved[::2])
    means = np.float64(g).reshape(10, 2, 8).mean(axis=1)
    np.testing.assert_allclose(moved[1::2], [step.dx for step in algorithm_1(means)], rtol=2e-6)


def test_inject_hyperparams_is_adadelta_with_those_hyperparameters():
    given = dict(learning_rate=0.5, rho=0.9, eps=1e-4, weight_decay=0.01)
    injected = optax.inject_hyperparams(adadelta)(**given)
    params, state, _ = train(injected, steps=30)
    expected, expected_state, _ = train(adadelta(**given), steps=30)
    chex.assert_trees_all_close(params, expected, rtol=2e-5)
    assert set(state.hyperparams) == {*given, "seed"}
    chex.assert_trees_all_close(state.inner_state.e_g, expected_state.e_g, rtol=2e-5)


def test_inject_hyperparams_with_a_mask_function():
    injected = optax.inject_hyperparams(adadelta, static_args="weight_decay_mask")(
        weight_decay=0.1, weight_decay_mask=lambda params: {"w": True, "b": False}
    )
    params, _, _ = train(injected, steps=30)
    expected, _, _ = train(
        adadelta(weight_decay=0.1, weight_decay_mask={"w": True, "b": False}), steps=30
    )
    chex.assert_trees_all_close(params, expected, rtol=2e-5)


def test_inject_hyperparams_rounds_rho_to_a_bfloat16_model_unless_told_not_to():
    params = jnp.ones(3, jnp.bfloat16)
    for told, rho in (({}, float(jnp.bfloat16(0.95))), ({"hyperparam_dtype": jnp.float32}, 0.95)):
        injected = optax.inject_hyperparams(adadelta, **told)(rho=0.95)
        state = injected.init(params)
        before = types(state)
        _, state = jax.jit(injected.update)(params, state, params)
        assert types(state) == before
        np.testing.assert_allclose(state.inner_state.e_g, np.full(3, 1 - rho), rtol=1e-6)


def test_inject_hyperparams_may_leave_weight_decay_out_so_that_no_parameters_are_needed():
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


def test_inject_hyperparams_of_a_complex_model_is_told_the_dtype():
    z = jnp.ones(3, jnp.complex64)
    with pytest.raises(TypeError, match=r"learning_rate must.*hyperparam_dtype=jnp.float32"):
        optax.inject_hyperparams(adadelta)().init(z)
    injected = optax.inject_hyperparams(adadelta, hyperparam_dtype=jnp.float32)()
    updates, _ = injected.update(z, injected.init(z), z)
    np.testing.assert_allclose(updates, adadelta().update(z, adadelta().init(z))[0], rtol=1e-6)


def test_a_batch_that_is_not_finite_is_skipped_by_apply_if_finite():
    optimizer = optax.apply_if_finite(adadelta(), max_consecutive_errors=2)
    state = optimizer.init(jnp.ones(2))
    _, state = optimizer.update(jnp.array([1.0, 2.0]), state)
    for bad in (jnp.nan, jnp.inf):
        updates, after = optimizer.update(jnp.array([1.0, bad]), state)
        assert (updates == 0).all()
        chex.assert_trees_all_equal(after.inner_state, state.inner_state)


def test_zero_nans_makes_a_bad_coordinate_stand_still():
    optimizer = optax.chain(optax.zero_nans(), adadelta())
    state = optimizer.init(jnp.ones(2))
    for g in ([1.0, 2.0], [1.0, jnp.nan], [1.0, 2.0]):
        updates, state = optimizer.update(jnp.array(g), state)
        assert (updates[1] == 0) == np.isnan(g[1])
    assert jnp.isfinite(state[1].e_g).all()


def test_maximising_is_a_chain_and_gives_the_negated_path():
    ascent = optax.chain(optax.scale(-1.0), adadelta())
    x = jnp.array([1.0, -2.0])
    state, descent_state = ascent.init(x), adadelta().init(x)
    for _ in range(5):
        up, state = ascent.update(2 * x, state)
        down, descent_state = adadelta().update(2 * x, descent_state)
        np.testing.assert_array_equal(up, -down)


def test_complex_as_two_reals_is_adadelta_of_each_part():
    g = gradients("normal", 20, 16).reshape(20, 8, 2)
    optimizer = optax.contrib.split_real_and_imaginary(adadelta())
    z = jnp.asarray(g @ [1, 1j], jnp.complex64)
    state = optimizer.init(z[0])
    for t, expected in enumerate(algorithm_1(g)):
        updates, state = optimizer.update(z[t], state)
        np.testing.assert_allclose(updates, expected.dx @ [1, 1j], rtol=2e-6)


def test_schedule_free_evaluates_at_its_average():
    optimizer = WRAPPED["schedule_free"]
    params, state, _ = train(optimizer)
    assert loss(optax.contrib.schedule_free_eval_params(state, params)) < 0.6 * loss(START)


def test_a_scan_carries_the_state():
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adadelta(rho=0.95))

    @jax.jit
    def scanned(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=50)[0]

    params, state = scanned(START)
    expected, expected_state, _ = train(optimizer, steps=50)
    chex.assert_trees_all_close((params, state), (expected, expected_state), rtol=1e-5)


def test_a_tree_of_nothing():
    for params in ({}, None, (), {"a": None, "b": optax.MaskedNode()}):
        optimizer = adadelta()
        state = optimizer.init(params)
        updates, state = optimizer.update(params, state, params)
        assert updates == params
        assert state.count == 1


def test_where_the_curvature_is_above_two_a_falling_learning_rate_settles():
    """The README's advice: once gradients die away, Adadelta is descent with step 1."""
    x = np.random.default_rng(0).uniform(0, 10, 100)
    inputs = jnp.asarray(np.stack([x, np.ones(100)], axis=1), jnp.float32)
    line = jnp.array([3.0, 2.0])
    steps = 10_000

    def distances(optimizer):
        def step(carry, _):
            params, state = carry
            grads = jax.grad(lambda p: jnp.mean((inputs @ (p - line)) ** 2))(params)
            updates, state = optimizer.update(grads, state)
            params = optax.apply_updates(params, updates)
            return (params, state), jnp.max(jnp.abs(params - line))

        start = jnp.zeros(2)
        return jax.lax.scan(step, (start, optimizer.init(start)), length=steps)[1]

    assert jnp.max(distances(adadelta())[-500:]) > 0.01
    falling = adadelta(optax.cosine_decay_schedule(1.0, steps))
    assert jnp.max(distances(falling)[-500:]) < 1e-5
