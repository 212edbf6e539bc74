"""Schedules that users bring, and hyperparameters in the state, which they read and change."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import one_step
from states import CODE, normal, same_bits, same_types
from states import EPS as UNIT

from optax_adadelta import adadelta
from optax_adadelta.diagnostics import averages, find_state

pytestmark = pytest.mark.usefixtures("optax_promotes")

PER_EPOCH, EPOCHS = 5, 6
STEPS = PER_EPOCH * EPOCHS
CURVATURE = 10.0 ** np.linspace(-2, 2, 16)
NOISE = np.random.default_rng(0).standard_normal((STEPS, 16))

# Each as Optax has it, and as a formula of the step.
STEP_LR = (
    optax.exponential_decay(1.0, PER_EPOCH, 0.7, staircase=True),
    lambda t: 0.7 ** (t // PER_EPOCH),
)
COSINE = (
    optax.cosine_decay_schedule(1.0, STEPS),
    lambda t: (1 + math.cos(math.pi * t / STEPS)) / 2,
)
WARM_UP = (
    optax.warmup_constant_schedule(0.0, 1.0, 8),
    lambda t: min(t / 8, 1.0),
)
RHO = optax.linear_schedule(0.8, 0.95, 20), lambda t: 0.8 + 0.15 * min(t / 20, 1)
EPS = (
    optax.exponential_decay(1e-4, 10, 0.1, end_value=1e-6),
    lambda t: max(1e-4 * 0.1 ** (t / 10), 1e-6),
)
DECAY = optax.polynomial_schedule(0.1, 0.0, 2, 25), lambda t: 0.1 * (1 - min(t / 25, 1)) ** 2


def reference(learning_rate, rho, eps, weight_decay):
    """The parameters after each step of a noisy quadratic, in float64."""
    x, e_g, e_x = np.ones(16), np.zeros(16), np.zeros(16)
    for t in range(STEPS):
        g = CURVATURE * x + NOISE[t] + weight_decay(t) * x
        dx, e_g, e_x = one_step(g, e_g, e_x, rho(t), eps(t))
        x = x + learning_rate(t) * dx
        yield x


def path_of(optimizer):
    x = jnp.ones(16, jnp.float64)
    state = optimizer.init(x)
    update = jax.jit(optimizer.update)
    for t in range(STEPS):
        g = jnp.asarray(CURVATURE * np.asarray(x) + NOISE[t], jnp.float64)
        updates, state = update(g, state, x)
        x = optax.apply_updates(x, updates)
        yield x
    assert find_state(state).count == STEPS


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("rate", "make"),
    [(STEP_LR, adadelta), (COSINE, optax.inject_hyperparams(adadelta)), (WARM_UP, adadelta)],
    ids=["steps", "cosine and injected", "warm-up"],
)
def test_four_schedules_share_one_count(rate, make):
    schedules, formulas = zip(rate, RHO, EPS, DECAY, strict=True)
    # Some of Optax's schedules return float32 for any count.
    for found, x in zip(path_of(make(*schedules)), reference(*formulas), strict=True):
        np.testing.assert_allclose(found, x, rtol=2e-6, atol=1e-7)


def set_in_the_dict(state, name, value):
    hyperparams = state[1].hyperparams
    hyperparams[name] = jnp.full_like(hyperparams[name], value)
    return state


def set_in_the_tree(state, name, value):
    old = optax.tree.get(state, name)
    return optax.tree.set(state, **{name: jnp.full_like(old, value)})


def chain_for(bits=None, dtype=None):
    inject = optax.inject_hyperparams(adadelta, "state_bits", dtype)
    return optax.chain(optax.clip(10.0), inject(eps=1e-4, weight_decay=0.01, state_bits=bits))


@pytest.mark.parametrize(
    ("change", "bits", "model", "injected"),
    [
        (set_in_the_dict, None, jnp.float32, None),
        (set_in_the_tree, 8, jnp.float32, jnp.float32),
        (set_in_the_dict, None, jnp.bfloat16, jnp.float32),
        (set_in_the_tree, None, jnp.float64, None),
    ],
)
def test_a_change_by_hand_keeps_dtypes_and_compiles_nothing(
    change, bits, model, injected, compiled, request
):
    """Each hyperparameter is changed twice, and compared with an optimizer of that value."""
    if model == jnp.float64:
        request.getfixturevalue("x64")
    optimizer, params = chain_for(bits, injected), jnp.ones(3, model)
    state, step = optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(2):
        _, state = step(params, state, params)
    given = {"learning_rate": 1.0, "rho": 0.95, "eps": 1e-4, "weight_decay": 0.01}
    kept = jnp.dtype(injected or model).type
    for name, values in {
        "learning_rate": (0.5, 0.25),
        "rho": (0.875, 0.9),
        "eps": (2.0**-20, 1e-8),
        "weight_decay": (0.5, 0.0),
    }.items():
        for value in values:
            given[name] = value
            alone = adadelta(**{k: kept(v) for k, v in given.items()}, state_bits=bits)
            expected, _ = alone.update(params, find_state(state), params)
            before_types = jax.eval_shape(lambda x: x, state)
            state = change(state, name, value)
            before = compiled()
            updates, state = step(params, state, params)
            assert compiled() == before
            same_types(jax.eval_shape(lambda x: x, state), before_types)
            np.testing.assert_allclose(updates, expected, rtol=2e-6)


def test_a_python_number_set_by_hand_keeps_its_dtype_and_compiles_once_more(compiled):
    """docs/schedules_and_logging.md says so."""
    optimizer = chain_for()
    params = jnp.ones(3)
    step = jax.jit(optimizer.update)
    _, state = step(params, optimizer.init(params), params)
    counts = [compiled()]
    for value in (1e-5, 1e-6):
        state[1].hyperparams["eps"] = value
        for _ in range(2):
            _, state = step(params, state, params)
        counts.append(compiled())
        assert state[1].hyperparams["eps"].dtype == jnp.float32
        assert not state[1].hyperparams["eps"].weak_type
    assert np.diff(counts).tolist() == [1, 0]


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
        np.testing.assert_allclose(one + UNIT, other + UNIT, rtol=1e-5 + 2 * CODE[bits])
    for name in ("learning_rate", "rho", "eps", "weight_decay"):
        assert optax.tree_utils.tree_get(state, name) == state.hyperparams[name]
        replaced = optax.tree_utils.tree_set(state, **{name: jnp.float32(0.5)})
        assert replaced.hyperparams[name] == 0.5
        same_bits(averages(replaced), averages(state))
