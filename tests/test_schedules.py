"""Schedules that users bring, and hyperparameters that they change by hand between steps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import one_step
from states import BITS, DTYPES, same_types

from optax_adadelta import adadelta
from optax_adadelta.diagnostics import find_state

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


def path_of(optimizer, dtype=jnp.float64):
    x = jnp.ones(16, dtype)
    state = optimizer.init(x)
    update = jax.jit(optimizer.update)
    for t in range(STEPS):
        g = jnp.asarray(CURVATURE * np.asarray(x) + NOISE[t], dtype)
        updates, state = update(g, state, x)
        x = optax.apply_updates(x, updates)
        yield x
    assert find_state(state).count == STEPS


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("inject", [False, True])
@pytest.mark.parametrize("rate", [STEP_LR, COSINE, WARM_UP], ids=["steps", "cosine", "warm-up"])
def test_four_schedules_share_one_count(rate, inject):
    make = optax.inject_hyperparams(adadelta) if inject else adadelta
    schedules, formulas = zip(rate, RHO, EPS, DECAY, strict=True)
    # Optax's schedules mix int32 with float32, and some of them return float32 for any count.
    with jax.numpy_dtype_promotion("standard"):
        for found, x in zip(path_of(make(*schedules)), reference(*formulas), strict=True):
            np.testing.assert_allclose(found, x, rtol=2e-6, atol=1e-7)


@pytest.mark.peers
@pytest.mark.usefixtures("x64")
def test_the_step_lr_of_torchs_mnist_example():
    torch = pytest.importorskip("torch")
    p = torch.ones(16, dtype=torch.float64)
    theirs = torch.optim.Adadelta([p], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(theirs, step_size=1, gamma=0.7)
    ours = path_of(adadelta(STEP_LR[0], rho=0.9))
    for t, found in enumerate(ours):
        p.grad = torch.from_numpy(CURVATURE * p.numpy() + NOISE[t])
        theirs.step()
        if (t + 1) % PER_EPOCH == 0:
            scheduler.step()
        np.testing.assert_allclose(found, p.numpy(), rtol=2e-6, atol=1e-7)


def set_in_the_dict(state, name, value):
    hyperparams = state[1].hyperparams
    hyperparams[name] = jnp.full_like(hyperparams[name], value)
    return state


def set_in_the_tree(state, name, value):
    old = optax.tree.get(state, name)
    return optax.tree.set(state, **{name: jnp.full_like(old, value)})


BY_HAND = pytest.mark.parametrize("change", [set_in_the_dict, set_in_the_tree])


def chain_for(bits=None, dtype=None):
    inject = optax.inject_hyperparams(adadelta, "state_bits", dtype)
    return optax.chain(optax.clip(10.0), inject(eps=1e-4, weight_decay=0.01, state_bits=bits))


def check_changes_by_hand(optimizer, change, params, compiled, kept):
    """Changes each hyperparameter twice, and compares with an optimizer of that value."""
    state = optimizer.init(params)
    step = jax.jit(optimizer.update)
    for _ in range(2):
        _, state = step(params, state, params)
    given = {"learning_rate": 1.0, "rho": 0.95, "eps": 1e-4, "weight_decay": 0.01}
    bits = {jnp.dtype(t): b for b, t in DTYPES.items()}.get(find_state(state).e_g.dtype)
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


@BITS
@BY_HAND
@pytest.mark.parametrize("dtype", [None, jnp.float32])
def test_a_change_by_hand_keeps_dtypes_and_compiles_nothing(change, bits, dtype, compiled):
    check_changes_by_hand(chain_for(bits, dtype), change, jnp.ones(3), compiled, np.float32)


@BY_HAND
def test_a_change_by_hand_in_a_bfloat16_model(change, compiled):
    params = jnp.ones(3, jnp.bfloat16)
    check_changes_by_hand(chain_for(None, jnp.float32), change, params, compiled, np.float32)


@BY_HAND
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_change_by_hand_in_64_bits(change, dtype, compiled):
    check_changes_by_hand(chain_for(), change, jnp.ones(3, dtype), compiled, jnp.dtype(dtype).type)


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
