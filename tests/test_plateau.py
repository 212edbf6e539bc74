"""Lowering eps on a plateau: when, by how much, and what stays as it is."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from states import same_types

from optax_adadelta import adadelta, reduce_eps_on_plateau

EPS = 2.0**-20
LEAST = 2.0**-38
INJECTED = optax.inject_hyperparams(adadelta, static_args="state_bits")
NAN, INF = math.nan, math.inf


def eps_of(tree):
    return optax.tree.get(tree, "eps")


def expected(values, factor, patience, cooldown, rtol, atol, least, mode):
    """The rule in plain Python: yields eps after each value."""
    eps, best, bad, waiting = EPS, None, 0, 0
    for value in values:
        value = value if mode == "min" else -value
        if best is None:
            improved = value < INF
        else:
            improved = value < best - (rtol * abs(best) + atol)
        best = value if improved else best
        bad = 0 if improved else bad + 1
        if waiting:
            waiting, bad = waiting - 1, 0
        elif bad == patience:
            eps, bad, waiting = max(eps * factor, least), 0, cooldown
        yield eps


def found(plateau, values):
    """The same with the package, as one scan."""
    state = INJECTED(eps=EPS).init(jnp.ones(2))

    def turn(carry, value):
        state, watch = plateau.update(*carry, value=value)
        return (state, watch), eps_of(state)

    scan = jax.jit(lambda carry, values: jax.lax.scan(turn, carry, values))
    return scan((state, plateau.init(state)), jnp.asarray(values, jnp.float32))[1]


def series(seed, special=True):
    """Values in eighths that fall slowly and repeat, with both signs, a few of them not finite."""
    rng = np.random.default_rng(seed)
    values = np.round(8 * (rng.standard_normal(60) - np.arange(60) / 40)) / 8
    if special:
        values[rng.integers(0, 60, 6)] = [NAN, INF, NAN, NAN, INF, NAN]
    return values


@pytest.mark.parametrize(
    ("mode", "factor", "patience", "cooldown", "rtol", "atol"),
    [
        ("min", 0.5, 1, 0, 0.0, 0.0),
        ("max", 0.5, 2, 3, 0.25, 0.0),
        ("min", 0.125, 3, 1, 0.25, 0.5),
        ("max", 0.5, 1, 2, 0.0, 0.25),
    ],
)
def test_it_follows_the_rule(mode, factor, patience, cooldown, rtol, atol):
    plateau = reduce_eps_on_plateau(
        factor, patience, cooldown=cooldown, rtol=rtol, atol=atol, min_eps=LEAST, mode=mode
    )
    for seed in range(2):
        values = series(seed) * (1 if mode == "min" else -1)
        rule = expected(values, factor, patience, cooldown, rtol, atol, LEAST, mode)
        np.testing.assert_array_equal(found(plateau, values), list(rule))


@pytest.mark.parametrize(
    ("values", "reductions"),
    [
        ([-1.0, -1.5, -1.4, -1.8], [0, 0, 1, 1]),
        ([-1.0, -1.05, -1.2], [0, 1, 1]),  # 5 % better does not count, 20 % does
        ([0.0, 0.0, -0.1], [0, 1, 1]),
        ([NAN, 1.0, NAN, 0.5, INF], [1, 1, 2, 2, 3]),
        ([INF, INF, 3.0], [1, 2, 2]),
        ([1e38, -1e38], [0, 0]),
    ],
)
def test_an_improvement_counts_for_negative_values_and_nan_is_none(values, reductions):
    paths = found(reduce_eps_on_plateau(0.5, rtol=0.125), values)
    np.testing.assert_array_equal(paths, EPS * 0.5 ** np.array(reductions))
    risen = found(reduce_eps_on_plateau(0.5, rtol=0.125, mode="max"), np.negative(values))
    np.testing.assert_array_equal(risen[1:] / risen[:-1], paths[1:] / paths[:-1])


@pytest.mark.peers
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["abs", "rel"])
def test_it_reduces_when_torch_reduces(mode, threshold_mode):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for patience, cooldown, threshold in [(0, 0, 0.0), (1, 2, 0.125), (3, 1, 0.25)]:
        for seed in range(2):
            values = series(seed, special=False) * (1 if mode == "min" else -1)
            if threshold_mode == "rel":  # torch's relative threshold has the wrong sign below zero
                values = np.abs(values) + 0.125
            values = np.where(rng.random(60) < 0.05, NAN, values)
            values[0] = 4.0
            optimizer = torch.optim.Adadelta([torch.ones(1)], lr=EPS)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, mode, 0.5, patience, threshold, threshold_mode, cooldown, LEAST, 0.0
            )
            rates = []
            for value in values:
                scheduler.step(value)
                rates.append(optimizer.param_groups[0]["lr"])
            tolerance = {"atol" if threshold_mode == "abs" else "rtol": threshold}
            plateau = reduce_eps_on_plateau(
                0.5, patience + 1, cooldown=cooldown, min_eps=LEAST, mode=mode, **tolerance
            )
            np.testing.assert_array_equal(found(plateau, values), rates)


def after(values, eps, **given):
    """The state after a run of values that are not traced."""
    state = INJECTED(eps=EPS).init(jnp.ones(2))
    plateau = reduce_eps_on_plateau(**given)
    watch = plateau.init(state)
    state.hyperparams["eps"] = eps
    for value in values:
        state, watch = plateau.update(state, watch, value=value)
    return eps_of(state)


def test_the_floor_is_kept_and_an_eps_below_it_stays():
    assert after([1.0] * 4, jnp.float32(1e-6), factor=0.01) == np.float32(1e-12)
    assert after([1.0] * 4, jnp.float32(1e-6), factor=0.01, min_eps=3e-8) == np.float32(3e-8)
    assert after([1.0] * 4, jnp.float32(1e-30), min_eps=1e-12) == np.float32(1e-30)


def test_a_number_that_was_set_by_hand_becomes_an_array():
    found = after([1.0, 1.0], 2 * EPS, factor=0.5)
    assert found == EPS
    assert not found.weak_type


@pytest.mark.usefixtures("x64")
def test_in_64_bits_the_best_value_is_float64():
    state = optax.inject_hyperparams(adadelta)(eps=EPS).init(jnp.ones(2))
    plateau = reduce_eps_on_plateau(0.5)
    watch = plateau.init(state)
    for value in (1.0, 1.0 - 1e-12, 1.0 - 2e-12):
        state, watch = plateau.update(state, watch, value=value)
    assert eps_of(state) == EPS
    assert eps_of(state).dtype == jnp.float64
    assert watch.best_value == 1.0 - 2e-12


@pytest.mark.parametrize(
    "value", [2, 2.0, np.float64(2), np.float32(2), jnp.float32(2), jnp.bfloat16(2), jnp.int32(2)]
)
def test_a_value_is_any_real_scalar(value):
    state = INJECTED(eps=EPS).init(jnp.ones(2))
    plateau = reduce_eps_on_plateau()
    watch = plateau.init(state)
    _, after = plateau.update(state, watch, value=value)
    same_types(watch, after)
    assert after.best_value == 2


def test_arguments_may_be_traced():
    @jax.jit
    def last(factor, rtol, atol, least):
        given = dict(factor=factor, rtol=rtol, atol=atol, min_eps=least)
        return after([1.0, 0.9], jnp.float32(EPS), **given)

    assert last(0.5, 0.0625, 0.0625, LEAST) == EPS / 2
    assert last(0.5, 0.0625, 0.0, LEAST) == EPS
    assert last(0.5, 0.25, 0.0, 0.75 * EPS) == 0.75 * EPS


def test_the_tree_must_have_an_eps_of_adadelta():
    plateau = reduce_eps_on_plateau()
    ours = INJECTED(eps=EPS).init(jnp.ones(2))
    adam = optax.inject_hyperparams(optax.adam)(1e-3).init(jnp.ones(2))
    for tree in (jnp.ones(2), adadelta().init(jnp.ones(2)), adam):
        with pytest.raises(ValueError, match=r"inject_hyperparams\(adadelta\)\(eps"):
            plateau.init(tree)
        with pytest.raises(ValueError, match=r"no eps to reduce"):
            plateau.update(tree, plateau.init(ours), value=1.0)
    with pytest.raises(ValueError, match=r"optax\.chain"):
        optax.chain(optax.inject_hyperparams(adadelta)(), plateau).init(jnp.ones(2))
    scheduled = optax.inject_hyperparams(adadelta)(eps=optax.constant_schedule(EPS))
    with pytest.raises(ValueError, match=r"hyperparams\['eps'\] comes from a schedule"):
        plateau.init(scheduled.init(jnp.ones(2)))
    half = optax.inject_hyperparams(adadelta)(eps=2.0**-10).init(jnp.ones(2, jnp.float16))
    with pytest.raises(ValueError, match=r"1e-12, which is zero in float16.*hyperparam_dtype"):
        plateau.init(half)
    assert reduce_eps_on_plateau(min_eps=1e-6).init(half).plateau_count == 0


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"factor": 1.0}, ValueError, "^factor must be above 0 and below 1; got"),
        ({"factor": 0.0}, ValueError, "^factor must be above 0"),
        ({"factor": optax.constant_schedule(0.1)}, TypeError, "^factor must be a real number or a"),
        ({"patience": 0}, ValueError, "^patience must be at least 1 and below"),
        ({"patience": 2**31}, ValueError, "^patience must"),
        ({"patience": 1.0}, TypeError, "^patience must be an integer; got 1.0 of type float"),
        ({"patience": True}, TypeError, "^patience must be an integer"),
        ({"cooldown": -1}, ValueError, "^cooldown must be at least 0"),
        ({"rtol": -0.1}, ValueError, "^rtol must be at least 0 and at most 1"),
        ({"rtol": 1.5}, ValueError, "^rtol must"),
        ({"atol": -0.1}, ValueError, "^atol must be at least 0"),
        ({"atol": INF}, ValueError, "^atol must"),
        ({"min_eps": 0.0}, ValueError, "^min_eps must be positive"),
        ({"min_eps": INF}, ValueError, "^min_eps must"),
        ({"mode": "lower"}, ValueError, "^mode must be 'min' or 'max'; got 'lower'"),
    ],
)
def test_an_argument_out_of_its_range_is_refused_by_name(given, error, words):
    with pytest.raises(error, match=words):
        reduce_eps_on_plateau(**given)


@pytest.mark.parametrize("value", [None, True, "0.5", 1j, jnp.array(True), jnp.complex64(1)])
def test_a_value_that_is_not_a_real_number_is_refused(value):
    state = INJECTED(eps=EPS).init(jnp.ones(2))
    plateau = reduce_eps_on_plateau()
    with pytest.raises(TypeError, match=r"^value must be a real number"):
        plateau.update(state, plateau.init(state), value=value)
