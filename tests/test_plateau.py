"""Lowering eps on a plateau: when, by how much, and what stays as it is."""

import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from states import BITS, same_bits, same_types

from optax_adadelta import PlateauState, adadelta, reduce_eps_on_plateau

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


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(
    ("factor", "patience", "cooldown", "rtol", "atol"),
    [(0.5, 1, 0, 0.0, 0.0), (0.5, 2, 3, 0.25, 0.0), (0.125, 3, 1, 0.25, 0.5), (0.5, 1, 2, 0, 0.25)],
)
def test_it_follows_the_rule(mode, factor, patience, cooldown, rtol, atol):
    plateau = reduce_eps_on_plateau(
        factor, patience, cooldown=cooldown, rtol=rtol, atol=atol, min_eps=LEAST, mode=mode
    )
    for seed in range(5):
        values = series(seed) * (1 if mode == "min" else -1)
        rule = expected(values, factor, patience, cooldown, rtol, atol, LEAST, mode)
        np.testing.assert_array_equal(found(plateau, values), list(rule))


@pytest.mark.parametrize(
    ("values", "reductions"),
    [
        ([-1.0, -1.5, -1.4, -1.6], [0, 0, 1, 1]),
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
        for seed in range(5):
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


@pytest.mark.parametrize(("patience", "cooldown"), [(1, 0), (2, 3), (4, 1)])
def test_it_reduces_when_optax_reduces_the_learning_rate(patience, cooldown):
    plateau = reduce_eps_on_plateau(0.5, patience, cooldown=cooldown, rtol=0.125, min_eps=LEAST)
    theirs = optax.contrib.reduce_on_plateau(
        0.5, patience, rtol=0.125, cooldown=cooldown, min_scale=LEAST / EPS
    )

    def turn(state, value):
        _, state = theirs.update(jnp.ones(2), state, value=value)
        return state, state.scale

    for seed in range(5):
        values = jnp.asarray(np.abs(series(seed, special=False)) + 0.125, jnp.float32)
        _, scales = jax.lax.scan(turn, theirs.init(jnp.ones(2)), values)
        np.testing.assert_array_equal(found(plateau, values), EPS * scales)


def test_the_learning_rate_and_eps_fall_in_one_run():
    inner = optax.inject_hyperparams(adadelta)(eps=EPS)
    optimizer = optax.chain(inner, optax.contrib.reduce_on_plateau(0.5, patience=1))
    plateau = reduce_eps_on_plateau(0.25, patience=2)
    params = jnp.ones(2)
    state = optimizer.init(params)
    watch = plateau.init(state)
    plain, averages = adadelta(eps=EPS), adadelta().init(params)
    scale = 1.0
    for value, eps in ((3.0, EPS), (3.0, EPS), (3.0, EPS / 4), (2.0, EPS / 4), (1.0, EPS / 4)):
        updates, state = optimizer.update(params, state, params, value=value)
        scale *= 0.5 if value == 3.0 and state[1].scale < scale else 1.0
        unscaled, averages = plain.update(params, averages, params)
        np.testing.assert_allclose(updates, scale * unscaled, rtol=1e-6)
        state, watch = plateau.update(state, watch, value=value)
        assert eps_of(state[0]) == eps
        plain = adadelta(eps=eps)
    assert scale == 0.25


def test_the_floor_is_kept_and_an_eps_below_it_stays():
    def after(eps, **given):
        state = INJECTED(eps=eps).init(jnp.ones(2))
        plateau = reduce_eps_on_plateau(0.01, **given)
        watch = plateau.init(state)
        for value in (1.0, 1.0, 1.0, 1.0):
            state, watch = plateau.update(state, watch, value=value)
        return eps_of(state)

    assert after(1e-6) == np.float32(1e-12)
    assert after(1e-6, min_eps=3e-8) == np.float32(3e-8)
    assert after(1e-30, min_eps=1e-12) == np.float32(1e-30)


def losses(params):
    return jnp.sum(params["w"].astype(jnp.float32) ** 2)


def run(optimizer, plateau, values, params, compiled, wrap=lambda update: update):
    """Trains with a donating step, and yields what there is after each validation."""

    @jax.jit(donate_argnums=(0, 1))
    def step(params, state):
        updates, state = optimizer.update(jax.grad(losses)(params), state, params)
        return optax.apply_updates(params, updates), state

    update = wrap(lambda tree, watch, value: plateau.update(tree, watch, value=value))
    state = optimizer.init(params)
    watch = plateau.init((params, state))
    before = None
    for i, value in enumerate(values):
        for _ in range(2):
            params, state = step(params, state)
        trained = jax.device_get((params, state))
        (params, state), watch = update((params, state), watch, value)
        same_types((params, state), trained)
        yield trained, jax.device_get((params, state)), watch
        if i == 1:
            before = compiled()
    assert compiled() == before


@BITS
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("restore", [False, True])
def test_a_run_goes_on_without_compiling_and_goes_back_to_the_best(
    compiled, bits, dtype, jit, restore
):
    optimizer = optax.chain(
        optax.clip(10.0),
        optax.inject_hyperparams(adadelta, "state_bits", jnp.float32)(eps=EPS, state_bits=bits),
    )
    plateau = reduce_eps_on_plateau(0.5, restore_best=restore, min_eps=EPS / 4)
    params = {"w": jnp.linspace(1, 2, 6, dtype=dtype).reshape(2, 3), "key": jnp.arange(2.0)}
    values = (3.0, 2.0, 2.5, 1.0, NAN, 1.5)
    wrap = jax.jit if jit else lambda update: update
    best, eps = None, EPS
    for value, (trained, after, watch) in zip(
        values, run(optimizer, plateau, values, params, compiled, wrap), strict=True
    ):
        improved = value in (3.0, 2.0, 1.0)
        reduces = not improved and eps > EPS / 4
        best = trained if improved else best
        eps = eps / 2 if reduces else eps
        rest = optax.tree.set(best if restore and reduces else trained, eps=np.float32(eps))
        same_bits(after, rest)
        if restore:
            same_bits(jax.device_get(watch.best), best)
        else:
            assert watch.best is None


def test_without_a_finite_value_it_goes_back_to_the_start():
    optimizer = optax.inject_hyperparams(adadelta)(eps=EPS)
    params = jnp.ones(3)
    tree = params, optimizer.init(params)
    plateau = reduce_eps_on_plateau(0.5, restore_best=True)
    watch = plateau.init(tree)
    updates, state = optimizer.update(params, tree[1], params)
    (params, state), watch = plateau.update((params + updates, state), watch, value=NAN)
    same_bits(params, tree[0])
    same_bits(state.inner_state, tree[1].inner_state)
    assert eps_of(state) == EPS / 2


def test_the_eps_of_each_adadelta_falls_and_those_of_other_optimizers_stay():
    parts = {
        "a": optax.inject_hyperparams(adadelta)(eps=EPS),
        "b": optax.MultiSteps(optax.inject_hyperparams(adadelta)(eps=EPS), 2),
        "c": optax.inject_hyperparams(adadelta)(eps=4 * EPS),
        "d": optax.inject_hyperparams(optax.adam)(1e-3, eps=EPS),
        "e": optax.inject_hyperparams(optax.adadelta)(1.0, eps=EPS),
    }
    optimizer = optax.multi_transform(parts, {name: name for name in parts})
    params = {name: jnp.ones(2) for name in parts}
    state = optimizer.init(params)
    plateau = reduce_eps_on_plateau(0.5)
    watch = plateau.init(state)
    step = jax.jit(optimizer.update, donate_argnums=1)
    for value in (1.0, 1.0):
        _, state = step(params, state, params)
        state, watch = plateau.update(state, watch, value=value)
    _, state = step(params, state, params)
    now = {name: eps_of(part).item() for name, part in state.inner_states.items()}
    assert now == {"a": EPS / 2, "b": EPS / 2, "c": 2 * EPS, "d": EPS, "e": EPS / 2}


def test_an_ensemble_reduces_for_each_model_alone():
    optimizer = optax.inject_hyperparams(adadelta)(eps=EPS)
    plateau = reduce_eps_on_plateau(0.5, restore_best=True)
    params = jnp.arange(1.0, 7.0).reshape(3, 2)
    tree = params, jax.vmap(optimizer.init)(params)
    watch = jax.vmap(plateau.init)(tree)
    update = jax.vmap(lambda tree, watch, value: plateau.update(tree, watch, value=value))
    for values in ([1.0, 2.0, 3.0], [0.5, 2.0, NAN]):
        (params, state), watch = update((tree[0] + 1, tree[1]), watch, jnp.array(values))
        tree = params, state
    np.testing.assert_array_equal(eps_of(state), [EPS, EPS / 2, EPS / 2])
    np.testing.assert_array_equal(params[:, 0], [3.0, 4.0, 6.0])


@BITS
@pytest.mark.parametrize("restore", [False, True])
def test_sharded_trees_keep_their_shardings_and_compile_once(compiled, bits, restore):
    mesh = Mesh(np.array(jax.devices()), ("x",))
    params = {"w": jax.device_put(jnp.ones((8, 3)), NamedSharding(mesh, PartitionSpec("x")))}
    optimizer = INJECTED(eps=EPS, state_bits=bits)
    plateau = reduce_eps_on_plateau(0.5, restore_best=restore)
    values = (3.0, 3.0, 3.0, 1.0)
    donated = jax.tree.map(jnp.copy, params)
    for *_, watch in run(optimizer, plateau, values, donated, compiled):
        if restore:
            stored = watch.best[0]["w"], watch.best[1].inner_state.e_g["w"]
            assert all(x.sharding.spec == PartitionSpec("x") for x in stored)
    tree = params, optimizer.init(params)
    tree, watch = plateau.update(tree, plateau.init(tree), value=1.0)
    assert tree[0]["w"].sharding == params["w"].sharding


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


def test_a_number_that_was_set_by_hand_becomes_an_array():
    state = INJECTED(eps=EPS).init(jnp.ones(2))
    plateau = reduce_eps_on_plateau(0.5)
    watch = plateau.init(state)
    state.hyperparams["eps"] = 2 * EPS
    for value in (1.0, 1.0):
        state, watch = plateau.update(state, watch, value=value)
    assert eps_of(state) == EPS
    assert not eps_of(state).weak_type


def test_arguments_may_be_traced():
    @jax.jit
    def last(factor, rtol, atol, least):
        state = INJECTED(eps=EPS).init(jnp.ones(2))
        plateau = reduce_eps_on_plateau(factor, rtol=rtol, atol=atol, min_eps=least)
        watch = plateau.init(state)
        for value in (1.0, 0.9):
            state, watch = plateau.update(state, watch, value=value)
        return eps_of(state)

    assert last(0.5, 0.0625, 0.0625, LEAST) == EPS / 2
    assert last(0.5, 0.0625, 0.0, LEAST) == EPS
    assert last(0.5, 0.25, 0.0, 0.75 * EPS) == 0.75 * EPS


def test_a_pickle_and_an_exported_step_go_on_alike():
    state = INJECTED(eps=EPS).init(jnp.ones(2))
    plateau = reduce_eps_on_plateau(0.5, patience=2, restore_best=True)
    watch = plateau.init(state)
    state, watch = plateau.update(state, watch, value=1.0)
    state, watch = plateau.update(state, watch, value=1.0)
    copied = pickle.loads(pickle.dumps((state, watch)))
    assert isinstance(copied[1], PlateauState)
    same_bits(plateau.update(*copied, value=1.0), plateau.update(state, watch, value=1.0))


def test_the_tree_must_have_an_eps_of_adadelta():
    plateau = reduce_eps_on_plateau()
    ours = INJECTED(eps=EPS).init(jnp.ones(2))
    adam = optax.inject_hyperparams(optax.adam)(1e-3).init(jnp.ones(2))
    for tree in (jnp.ones(2), adadelta().init(jnp.ones(2)), adam):
        with pytest.raises(ValueError, match=r"inject_hyperparams\(adadelta\)\(eps"):
            plateau.init(tree)
        with pytest.raises(ValueError, match=r"no eps to reduce"):
            plateau.update(tree, plateau.init(ours), value=1.0)
    with pytest.raises(ValueError, match=r"not belong into optax\.chain"):
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
    with pytest.raises(TypeError, match="^value must be a real number"):
        plateau.update(state, plateau.init(state), value=value)


def test_trees_that_cannot_go_back_are_refused():
    state = INJECTED(eps=EPS).init(jnp.ones(2))
    plateau = reduce_eps_on_plateau(restore_best=True)
    watch = plateau.init((jnp.ones(2), state))
    with pytest.raises(ValueError, match=r"^value must be a scalar; got .* \(2,\).*vmap"):
        plateau.update((jnp.ones(2), state), watch, value=np.ones(2))
    for tree in ((jnp.ones(3), state), (jnp.ones(2, jnp.bfloat16), state), (state,)):
        with pytest.raises(ValueError, match=r"init again with this tree"):
            plateau.update(tree, watch, value=1.0)
    with pytest.raises(TypeError, match=r"leaf at \[0\]\['activation'\] is a .*eqx\.filter"):
        plateau.init(({"activation": jax.nn.relu, "w": jnp.ones(2)}, state))
    key = jax.random.key(0)
    (back, _), _ = plateau.update((key, state), plateau.init((key, state)), value=NAN)
    assert back == key
