"""Runs whose eps falls on a plateau: what changes in the tree, and what stays as it is."""

import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from states import same_bits, same_types

from optax_adadelta import AdadeltaState, adadelta, reduce_eps_on_plateau

EPS = 2.0**-20
INJECTED = optax.inject_hyperparams(adadelta, static_args="state_bits")
NAN = math.nan


def eps_of(tree):
    return optax.tree.get(tree, "eps")


@pytest.mark.usefixtures("optax_promotes")
def test_the_learning_rate_and_eps_fall_in_one_run():
    inner = optax.inject_hyperparams(adadelta)(eps=EPS)
    optimizer = optax.chain(inner, optax.contrib.reduce_on_plateau(0.5, patience=1))
    plateau = reduce_eps_on_plateau(0.25, patience=2)
    g = jnp.ones(2)
    state, averages = optimizer.init(g), adadelta().init(g)
    watch = plateau.init(state)
    for value, eps, scale in ((3.0, 1, 1), (3.0, 1, 0.5), (3.0, 1, 0.25), (2.0, 0.25, 0.25)):
        unscaled, averages = adadelta(eps=EPS * eps).update(g, averages)
        updates, state = optimizer.update(g, state, g, value=value)
        np.testing.assert_allclose(updates, scale * unscaled, rtol=1e-6)
        state, watch = plateau.update(state, watch, value=value)


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


@pytest.mark.parametrize(
    ("bits", "dtype", "jit", "restore"),
    [
        (None, jnp.float32, False, True),
        (None, jnp.float32, True, False),
        (16, jnp.bfloat16, True, True),
    ],
)
def test_a_run_goes_on_without_compiling_and_goes_back_to_the_best(
    compiled, bits, dtype, jit, restore
):
    optimizer = optax.chain(
        optax.clip(10.0),
        optax.inject_hyperparams(adadelta, "state_bits", jnp.float32)(eps=EPS, state_bits=bits),
    )
    plateau = reduce_eps_on_plateau(0.5, restore_best=restore, min_eps=EPS / 4)
    params = {"w": jnp.linspace(1, 2, 6, dtype=dtype).reshape(2, 3), "key": jnp.arange(2.0)}
    # Without a finite value it goes back to the start.
    values = (NAN, 2.0, 2.5, 1.0, NAN, 1.5)
    wrap = jax.jit if jit else lambda update: update
    best, eps = jax.device_get((params, optimizer.init(params))), EPS
    for value, (trained, after, watch) in zip(
        values, run(optimizer, plateau, values, params, compiled, wrap), strict=True
    ):
        improved = value in (2.0, 1.0)
        reduces = not improved and eps > EPS / 4
        best = trained if improved else best
        eps = eps / 2 if reduces else eps
        rest = optax.tree.set(best if restore and reduces else trained, eps=np.float32(eps))
        same_bits(after, rest)
        if restore:
            same_bits(jax.device_get(watch.best), best)
        else:
            assert watch.best is None


@pytest.mark.usefixtures("optax_promotes")
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


def as_dicts(node):
    """A tree in which named tuples are dictionaries without the fields that are None."""
    if hasattr(node, "_asdict"):
        node = {name: part for name, part in node._asdict().items() if part is not None}
    if isinstance(node, dict):
        return {name: as_dicts(part) for name, part in node.items()}
    return tuple(map(as_dicts, node)) if isinstance(node, tuple) else node


# As the class of before the package was imported again.
OTHER_CLASS = collections.namedtuple("AdadeltaState", AdadeltaState._fields)


def of_another_class(tree):
    def is_ours(part):
        return isinstance(part, AdadeltaState)

    return jax.tree.map(lambda x: OTHER_CLASS(*x) if is_ours(x) else x, tree, is_leaf=is_ours)


@pytest.mark.parametrize("container", [lambda tree: tree, as_dicts, of_another_class])
def test_parameters_of_other_optimizers_may_have_the_names_of_the_fields(container):
    named = {name: jnp.ones(2) for name in ("count", "e_g", "e_x", "unit")}
    ours = INJECTED(eps=EPS, state_bits=8).init(named)
    adam = optax.inject_hyperparams(optax.adam)(1e-3, eps=EPS)
    others = [adam.init(names) for names in (named, {"e_g": named["e_g"]}, {"net": named})]
    tree = container({"ours": ours, "others": others})
    plateau = reduce_eps_on_plateau(0.5)
    watch = plateau.init(tree)
    for value in (1.0, 1.0):
        tree, watch = plateau.update(tree, watch, value=value)
    expected = container({"ours": ours, "others": others})
    same_bits(tree["others"], expected["others"])
    same_bits(tree["ours"], optax.tree.set(expected["ours"], eps=jnp.float32(EPS / 2)))
    with pytest.raises(ValueError, match="no eps to reduce"):
        plateau.init(container(others))


def test_an_eps_beside_the_state_is_not_that_of_the_optimizer():
    beside = {"hyperparams": {"eps": 1e-3}, "opt_state": adadelta().init(jnp.ones(2))}
    with pytest.raises(ValueError, match="no eps to reduce"):
        reduce_eps_on_plateau().init(beside)
    ours = optax.inject_hyperparams(adadelta)(eps=EPS).init(jnp.ones(2))
    tree, plateau = {**beside, "opt_state": ours}, reduce_eps_on_plateau(0.5)
    after, _ = plateau.update(tree, plateau.init(tree), value=NAN)
    assert after["hyperparams"] == {"eps": 1e-3}
    assert eps_of(after["opt_state"]) == EPS / 2


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


@pytest.mark.devices
@pytest.mark.parametrize("restore", [False, True])
def test_sharded_trees_keep_their_shardings_and_compile_once(compiled, restore):
    mesh = Mesh(np.array(jax.devices()), ("x",))
    params = {"w": jax.device_put(jnp.ones((8, 3)), NamedSharding(mesh, PartitionSpec("x")))}
    optimizer = INJECTED(eps=EPS, state_bits=8)
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
    # A target to restore a checkpoint to needs no arrays.
    shape, place = params["w"].shape, params["w"].sharding
    tree = {"w": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)}, tree[1]
    target = plateau.init(tree)
    for one, other in zip(jax.tree.leaves(target), jax.tree.leaves(watch), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one.sharding.is_equivalent_to(other.sharding, other.ndim)


def test_trees_that_cannot_go_back_are_refused():
    state = INJECTED(eps=EPS).init(jnp.ones(2))
    plateau = reduce_eps_on_plateau(restore_best=True)
    watch = plateau.init((jnp.ones(2), state))
    with pytest.raises(ValueError, match=r"^value must be a scalar; got .* \(2,\).*vmap"):
        plateau.update((jnp.ones(2), state), watch, value=np.ones(2))
    for tree in ((jnp.ones(3), state), (jnp.ones(2, jnp.bfloat16), state), (state,)):
        with pytest.raises(ValueError, match=r"init again with this tree"):
            plateau.update(tree, watch, value=1.0)
    key = jax.random.key(0)
    (back, _), _ = plateau.update((key, state), plateau.init((key, state)), value=NAN)
    assert back == key


def test_a_whole_model_and_its_counters_go_back(compiled):
    fixed = {"f": jax.nn.relu, "name": "mlp", "names": np.array(["a"]), "flag": False, "rate": 0.5}
    w = jnp.ones(2)
    state = optax.inject_hyperparams(adadelta)(eps=EPS).init(w)
    tree = {**fixed, "w": w, "step": 0, "host": np.float64(1), "state": state}
    plateau = reduce_eps_on_plateau(0.5, restore_best=True)
    watch = plateau.init(tree)

    @jax.jit
    def count(step):
        return step + 1

    before = None
    for value, step in ((2.0, 1), (1.0, 2), (3.0, 2), (NAN, 2), (0.5, 3)):
        tree = {**tree, "step": count(tree["step"]), "host": 2.0 * tree["host"]}
        tree, watch = plateau.update(tree, watch, value=value)
        assert (tree["step"], tree["host"]) == (step, 2.0**step)
        assert {name: tree[name] for name in fixed} == fixed
        assert {name: watch.best[name] for name in fixed} == fixed
        before = compiled() if value == 1.0 else before
    assert compiled() == before
    assert watch.best["step"] == 3
    # Without jit, steps are counted in Python.
    (after, _), step = plateau.update({**tree, "step": 5}, watch, value=1.0), tree["step"]
    assert after["step"] == step
    with pytest.raises(ValueError, match="init again with this tree"):
        plateau.update({**tree, "f": 1.0}, watch, value=1.0)


@pytest.mark.parametrize("restore", [False, True])
def test_what_it_returns_may_be_donated_and_what_it_got_may_be_used_again(restore):
    w = jnp.arange(2.0)
    ours = INJECTED(eps=EPS, state_bits=8).init({"w": w})
    eps = ours.hyperparams["eps"]  # and one array in two places, as tied weights are
    tree = {"w": w, "tied": w, "ours": ours, "other": ours._replace(hyperparams={"eps": eps})}
    plateau = reduce_eps_on_plateau(0.5, restore_best=restore)
    watch = plateau.init(tree)
    for value in (1.0, NAN):
        after, next_watch = plateau.update(tree, watch, value=value)
        lowered = [optax.tree.get(after[name], "eps") for name in ("ours", "other")]
        new = jax.tree.leaves((next_watch, after if restore else lowered))
        old = {id(x): x for x in jax.tree.leaves((tree, watch))}.values()
        places = [x.unsafe_buffer_pointer() for x in (*new, *old)]
        assert len(set(places)) == len(places)
        watch = next_watch


@pytest.mark.frameworks
@pytest.mark.usefixtures("optax_promotes")
def test_nnx_keeps_its_optimizer():
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, INJECTED(eps=EPS), wrt=nnx.Param)
    plateau = reduce_eps_on_plateau(0.5)
    watch, whole = plateau.init(optimizer.opt_state), plateau.init(nnx.state(optimizer))
    for value in (1.0, 1.0):
        optimizer.update(model, nnx.state(model, nnx.Param))
        optimizer.opt_state, watch = plateau.update(optimizer.opt_state, watch, value=value)
        tree, whole = plateau.update(nnx.state(optimizer), whole, value=value)
        nnx.update(optimizer, tree)
    assert optimizer.opt_state.hyperparams["eps"].get_value() == EPS / 4
    assert optimizer.opt_state.inner_state.count.get_value() == 2
