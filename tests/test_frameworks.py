"""State inside Flax and Equinox: training, serialization, partitioning."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec
from states import assert_owns_its_arrays, same_bits, same_types

from optax_adadelta import (
    AdadeltaState,
    adadelta,
    convert,
    nadadelta,
    reduce_eps_on_plateau,
)
from optax_adadelta.diagnostics import averages, effective_learning_rate, summaries

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("frameworks_promote")]
INPUTS = np.random.default_rng(0).standard_normal((16, 3), np.float32)
TARGETS = np.random.default_rng(1).standard_normal((16, 8), np.float32)
ONCE_EACH = pytest.mark.parametrize(
    ("bits", "rule"), [(None, adadelta), (16, nadadelta), (8, adadelta)]
)


@pytest.fixture
def nnx():
    return pytest.importorskip("flax.nnx")


@pytest.fixture
def eqx():
    return pytest.importorskip("equinox")


def squared_error(outputs):
    return jnp.mean((outputs - TARGETS) ** 2)


def error_of(model):
    return squared_error(model(INPUTS))


def stepper(optimizer, loss):
    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    return step


def adadelta_state(state):
    leaves = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, AdadeltaState))
    (found,) = (part for part in leaves if isinstance(part, AdadeltaState))
    return found


def arrays_of(nnx, state):
    """The state without the variables that NNX wraps its arrays in."""

    def is_variable(part):
        return isinstance(part, nnx.Variable)

    return jax.tree.map(
        lambda part: part[...] if is_variable(part) else part, state, is_leaf=is_variable
    )


def assert_same_leaves(one, other):
    """NNX makes a State of a dict, so only the arrays are compared."""
    same_bits(jax.tree.leaves(one), jax.tree.leaves(other))


def through_msgpack(tree, target, folder):
    serialization = pytest.importorskip("flax.serialization")
    return serialization.from_bytes(target, serialization.to_bytes(tree))


def through_a_state_dict(tree, target, folder):
    serialization = pytest.importorskip("flax.serialization")
    return serialization.from_state_dict(target, serialization.to_state_dict(tree))


def through_equinox(tree, target, folder):
    eqx = pytest.importorskip("equinox")
    # All of it counts as arrays, so filtering it loses nothing.
    assert jax.tree.leaves(eqx.filter(tree, eqx.is_array, inverse=True)) == []
    eqx.tree_serialise_leaves(folder / "tree.eqx", tree)
    return eqx.tree_deserialise_leaves(folder / "tree.eqx", target)


def through_orbax(tree, target, folder):
    """Flax's checkpoints are Orbax's."""
    ocp = pytest.importorskip("orbax.checkpoint")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "tree", tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "tree", target)


@functools.cache
def run_with_plateau(bits, rule):
    """A run with Optax's and our wrappers around the optimizer: how it begins and goes on."""
    inject = optax.inject_hyperparams(rule, "state_bits", jnp.float32)
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), inject(eps=1e-5, state_bits=bits))
    plateau = reduce_eps_on_plateau(0.5, restore_best=True)
    step = stepper(optimizer, lambda p: squared_error(INPUTS @ p["w"] + p["b"]))

    def start():
        params = {"w": jnp.ones((3, 8)), "b": jnp.zeros(8), "frozen": None}
        tree = params, optimizer.init(params)
        return tree, plateau.init(tree)

    def epoch(tree, watch, value):
        return plateau.update(step(*tree)[:2], watch, value=value)

    return start, epoch


@ONCE_EACH
@pytest.mark.parametrize(
    "through", [through_msgpack, through_a_state_dict, through_equinox, through_orbax]
)
def test_a_run_goes_on_with_the_same_bits_after_it_was_saved(through, bits, rule, tmp_path):
    start, epoch = run_with_plateau(bits, rule)
    saved = epoch(*start(), value=1.0)
    found = through(saved, start(), tmp_path)
    same_types(found, saved)
    same_bits(found, saved)
    same_bits(epoch(*found, value=2.0), epoch(*saved, value=2.0))


def lora(nnx):
    base = nnx.Linear(3, 8, rngs=nnx.Rngs(0))
    return nnx.LoRA(3, 2, 8, base_module=base, rngs=nnx.Rngs(1))


@pytest.mark.parametrize(
    ("names", "bits", "rule"),
    [
        (["LoRAParam"], 8, adadelta),
        (["LoRAParam", "Param"], 16, nadadelta),
    ],
)
def test_nnx_optimizer_steps_the_variables_of_its_filter_alone(nnx, names, bits, rule):
    model = lora(nnx)
    wrt = tuple(getattr(nnx, name) for name in names)
    chosen, rest = nnx.state(model, wrt, ...)
    params, rest = nnx.to_pure_dict(chosen), jax.tree.map(jnp.copy, nnx.to_pure_dict(rest))
    optimizer = nnx.Optimizer(model, rule(state_bits=bits), wrt=wrt)
    grads = nnx.grad(error_of, argnums=nnx.DiffState(0, wrt))
    plain = rule(state_bits=bits)
    state = plain.init(params)
    for _ in range(2):
        g = grads(model)
        optimizer.update(model, g)
        updates, state = plain.update(nnx.to_pure_dict(g), state, params)
        params = optax.apply_updates(params, updates)
    found, others = nnx.state(model, wrt, ...)
    same_bits(nnx.to_pure_dict(found), params)
    same_bits(nnx.to_pure_dict(others), rest)
    stored = arrays_of(nnx, optimizer.opt_state)
    assert_same_leaves(stored, state)
    # A state that NNX carried is read like any other.
    assert_same_leaves(averages(stored), averages(state))
    for read in (effective_learning_rate, summaries):
        assert_same_leaves(read(stored, 1e-6), read(state, 1e-6))


@pytest.mark.parametrize(
    ("start", "bits", "rule", "wrap"),
    [
        (None, 16, adadelta, lambda rule: rule),
        (16, 8, nadadelta, optax.chain),
        (8, None, adadelta, optax.chain),
        (8, 16, nadadelta, lambda rule: rule),
    ],
)
def test_nnx_optimizer_goes_on_in_another_storage(nnx, start, bits, rule, wrap):
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(error_of)(model))

    model = nnx.Linear(3, 8, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, wrap(rule(state_bits=start)), wrt=nnx.Param)
    step(model, optimizer)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    before = adadelta_state(arrays_of(nnx, optimizer.opt_state))
    plain = rule(state_bits=bits)
    state = convert.with_state_bits(before, bits, eps=1e-6)
    state = convert.carry_over(state, plain.init(params))

    # As docs/frameworks.md says.
    new = nnx.Optimizer(model, wrap(rule(state_bits=bits)), wrt=nnx.Param)
    new.opt_state = convert.with_state_bits(optimizer.opt_state, bits, eps=1e-6)

    assert_owns_its_arrays(new.opt_state, optimizer.opt_state)
    updates, state = plain.update(nnx.to_pure_dict(nnx.grad(error_of)(model)), state)
    step(model, new)
    same_bits(nnx.to_pure_dict(nnx.state(model, nnx.Param)), optax.apply_updates(params, updates))
    assert_same_leaves(adadelta_state(arrays_of(nnx, new.opt_state)), state)
    nnx.jit(step, donate_argnums=(0, 1))(model, new)
    assert adadelta_state(arrays_of(nnx, new.opt_state)).count == 3
    # The old optimizer has not been changed.
    same_bits(adadelta_state(arrays_of(nnx, optimizer.opt_state)), before)


@pytest.mark.parametrize(
    ("bits", "rule", "prefix"), [(None, adadelta, False), (8, nadadelta, True)]
)
def test_averages_are_carried_between_a_dict_and_nnx(nnx, bits, rule, prefix):
    model = nnx.Sequential(nnx.Linear(3, 5, rngs=nnx.Rngs(0)), nnx.Linear(5, 8, rngs=nnx.Rngs(1)))
    plain = rule(state_bits=bits)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    tree = {"params": params} if prefix else params
    _, state = plain.update(tree, plain.init(tree))
    optimizer = nnx.Optimizer(model, plain, wrt=nnx.Param)
    optimizer.opt_state = convert.carry_over(state, optimizer.opt_state)
    same_bits(convert.carry_over(optimizer.opt_state, plain.init(tree)), state)
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    _, state = plain.update(jax.tree.map(jnp.ones_like, tree), state)
    assert_same_leaves(arrays_of(nnx, optimizer.opt_state), state)


def test_optax_states_are_converted_in_nnx(nnx):
    model = nnx.Linear(3, 8, rngs=nnx.Rngs(0))
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    schedule = optax.constant_schedule(1.0)
    theirs, again = (nnx.Optimizer(model, optax.adadelta(schedule), wrt=nnx.Param) for _ in "ab")
    ours = nnx.Optimizer(model, optax.chain(adadelta(rho=0.9)), wrt=nnx.Param)
    theirs.update(model, grads)
    ours.opt_state = convert.carry_over(convert.from_optax(theirs.opt_state), ours.opt_state)
    again.opt_state = convert.to_optax(ours.opt_state, again.opt_state)
    same_bits(arrays_of(nnx, again.opt_state), arrays_of(nnx, theirs.opt_state))
    for optimizer in (again, ours):
        optimizer.update(model, grads)


def test_averages_are_carried_between_a_dict_and_equinox(eqx):
    model = eqx.nn.MLP(3, 8, 4, 1, key=jax.random.key(0))
    filtered = eqx.filter(model, eqx.is_inexact_array)
    params = {"layers": [{"weight": layer.weight, "bias": layer.bias} for layer in filtered.layers]}
    plain = nadadelta(state_bits=8)
    for tree in (params, {"params": params}):
        _, state = plain.update(tree, plain.init(tree))
        found = convert.carry_over(state, plain.init(filtered))
        same_bits(
            [{"weight": layer.weight, "bias": layer.bias} for layer in found.e_x.layers],
            state.e_x.get("params", state.e_x)["layers"],
        )
        same_bits(convert.carry_over(found, plain.init(tree)), state)


def test_nnx_optimizer_is_split_and_merged_in_a_jax_jit(nnx):
    """The chain needs an extra argument, which the optimizer passes on."""

    def built():
        model = nnx.Linear(3, 8, rngs=nnx.Rngs(0))
        plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1)
        chain = optax.chain(adadelta(state_bits=8), plateau)
        return model, nnx.Optimizer(model, chain, wrt=nnx.Param)

    def train(model, optimizer):
        optimizer.update(model, nnx.grad(error_of)(model), value=jnp.ones(()))

    @jax.jit
    def step(graph, state):
        both = nnx.merge(graph, state)
        train(*both)
        return nnx.split(both)

    split, expected, compiled = nnx.split(built()), built(), nnx.jit(train)
    for _ in range(3):
        split = step(*split)
        compiled(*expected)
    found = nnx.merge(*split)
    # The value never gets better, so the scale was halved twice.
    assert found[1].opt_state[1].scale[...] == 0.25
    leaves = [jax.tree.leaves(nnx.state(both)) for both in (found, expected)]
    chex.assert_trees_all_close(*leaves, rtol=1e-5, atol=1e-7)


def test_nnx_gives_the_state_the_sharding_of_its_parameters(nnx):
    with jax.set_mesh(jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)):
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))
        model = nnx.Linear(3, 8, rngs=nnx.Rngs(0), kernel_init=init)
        optimizer = nnx.Optimizer(model, adadelta(state_bits=8), wrt=nnx.Param)
        optimizer.update(model, nnx.grad(error_of)(model))
    for field in ("e_g", "e_x"):
        specs = nnx.get_partition_spec(nnx.state(optimizer))["opt_state"][field]
        assert specs["kernel"].get_value() == PartitionSpec(None, "model")
        kernel = getattr(optimizer.opt_state, field)["kernel"][...]
        assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 4)}


@ONCE_EACH
def test_equinox_updates_a_whole_model_with_frozen_parts(eqx, bits, rule):
    class Model(eqx.Module):
        mlp: eqx.nn.MLP
        ids: jax.Array
        norm: eqx.nn.LayerNorm

        def __call__(self, x):
            return self.norm(self.mlp(x))

    model = Model(
        eqx.nn.MLP(3, 8, 16, 1, key=jax.random.key(0)), jnp.arange(3), eqx.nn.LayerNorm(8)
    )
    # As in Equinox's example of fine-tuning: only the MLP is trained.
    chosen = jax.tree.map(lambda _: False, model)
    chosen = eqx.tree_at(
        lambda m: m.mlp, chosen, replace=jax.tree.map(eqx.is_inexact_array, model.mlp)
    )
    optimizer = rule(weight_decay=0.1, state_bits=bits)
    state = optimizer.init(eqx.filter(model, chosen))
    plain = jax.tree.leaves(eqx.filter(model, chosen))
    plain_state = optimizer.init(plain)

    @eqx.filter_jit
    def step(model, state):
        @eqx.filter_value_and_grad
        def loss(trained, frozen):
            return squared_error(jax.vmap(eqx.combine(trained, frozen))(INPUTS))

        value, grads = loss(*eqx.partition(model, chosen))
        # The model has functions and integers where the gradients have None.
        updates, state = optimizer.update(grads, state, model)
        return eqx.apply_updates(model, updates), state, value, grads

    before, losses = model, []
    for _ in range(3):
        model, state, value, grads = step(model, state)
        losses.append(value)
        updates, plain_state = optimizer.update(jax.tree.leaves(grads), plain_state, plain)
        plain = optax.apply_updates(plain, updates)
    chex.assert_trees_all_close(jax.tree.leaves(eqx.filter(model, chosen)), plain, rtol=1e-5)
    assert eqx.tree_equal((model.ids, model.norm), (before.ids, before.norm))
    assert losses[-1] < losses[0]


def test_equinox_traces_once_for_all_values_of_an_array_hyperparameter(eqx):
    traced = []

    @eqx.filter_jit
    def step(optimizer, params, state):
        traced.append(0)
        return optimizer.update(params, state, params)

    params = jnp.ones(3)
    for value in (0.5, 0.9, 0.99):
        optimizer = adadelta(0.5, jnp.float32(value), weight_decay=jnp.float32(0.1))
        optimizer = eqx.internal.closure_to_pytree(optimizer)
        _, state = step(optimizer, params, optimizer.init(params))
        np.testing.assert_allclose(state.e_g, np.full(3, (1 - value) * 1.1**2), rtol=1e-5)
    assert len(traced) == 1


@pytest.mark.parametrize("kind", ["equinox", "nnx", "linen"])
def test_a_model_in_place_of_the_learning_rate_is_refused(eqx, nnx, kind):
    linen = pytest.importorskip("flax.linen")
    model = {
        "equinox": lambda: eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0)),
        "nnx": lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)),
        "linen": lambda: linen.Dense(3),
    }[kind]()
    params = jnp.ones(2)
    told = ""
    try:
        adadelta(model).update(params, adadelta().init(params))
    except Exception as error:  # of the model, where it cannot be told from a schedule
        told = " ".join([str(error), *getattr(error, "__notes__", [])])
    assert "learning_rate" in told
    assert "init" in told


def test_a_whole_model_in_init_is_refused_with_the_filter_to_use(eqx):
    model = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
    with pytest.raises(TypeError, match=r"params\.activation.*eqx\.filter"):
        adadelta().init(model)
    assert adadelta().init(eqx.filter(model, eqx.is_inexact_array)).count == 0
