"""State inside Flax and Equinox, in every storage: training, serialization, partitioning."""

import functools
import io

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from states import BITS, DTYPES, RULE, assert_owns_its_arrays

from optax_adadelta import AdadeltaState, adadelta, convert, stochastic_round
from optax_adadelta.diagnostics import averages, effective_learning_rate, summaries

pytestmark = pytest.mark.frameworks
INPUTS = np.random.default_rng(0).standard_normal((16, 3), np.float32)
TARGETS = np.random.default_rng(1).standard_normal((16, 8), np.float32)


@pytest.fixture(autouse=True)
def frameworks_promote():
    """Their layers mix dtypes and ranks, so nothing here can be strict about it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def nnx():
    return pytest.importorskip("flax.nnx")


@pytest.fixture
def linen():
    return pytest.importorskip("flax.linen")


@pytest.fixture
def serialization():
    return pytest.importorskip("flax.serialization")


@pytest.fixture
def eqx():
    return pytest.importorskip("equinox")


def optimizer_with(bits, rule=adadelta):
    """An ordinary chain, so that the state is not the outermost node."""
    return optax.chain(optax.clip_by_global_norm(10.0), rule(rho=0.9, state_bits=bits))


def squared_error(outputs):
    return jnp.mean((outputs - TARGETS) ** 2)


def stepper(optimizer, loss):
    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    return step


@functools.cache
def trained(bits, rule=adadelta):
    """A plain JAX run: the optimizer, its step, and the parameters and state after a few steps."""
    optimizer = optimizer_with(bits, rule)
    params = {"w": jnp.ones((3, 8)), "b": jnp.zeros(8), "frozen": None}
    step = stepper(optimizer, lambda p: squared_error(INPUTS @ p["w"] + p["b"]))
    state = optimizer.init(params)
    for _ in range(5):
        params, state, _ = step(params, state)
    return optimizer, step, params, state


def assert_same_run(step, params, one, other):
    """Both states hold the same bits, and training goes on from both in the same way."""
    chex.assert_trees_all_equal_shapes_and_dtypes(one, other)
    chex.assert_trees_all_equal(one, other)
    chex.assert_trees_all_equal(step(params, one), step(params, other))


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


@BITS
def test_nnx_optimizer_trains_as_plain_jax_does(nnx, bits):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(3, 5, rngs=rngs)
            self.out = nnx.Linear(5, 8, rngs=rngs)

        def __call__(self, x):
            return self.out(jnp.tanh(self.hidden(x)))

    def loss(model):
        return squared_error(model(INPUTS))

    model = Model(nnx.Rngs(0))
    graph, variables = nnx.split(model)
    params = nnx.to_pure_dict(variables)
    plain = optimizer_with(bits)
    state = plain.init(params)
    optimizer = nnx.Optimizer(model, optimizer_with(bits), wrt=nnx.Param)

    @nnx.jit
    def train(model, optimizer):
        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    def plain_loss(params):
        nnx.replace_by_pure_dict(variables, params)
        return loss(nnx.merge(graph, variables))

    step = stepper(plain, plain_loss)
    losses = []
    for _ in range(4):
        losses.append(float(train(model, optimizer)))
        params, state, expected = step(params, state)
        np.testing.assert_allclose(losses[-1], expected, rtol=1e-5)
    assert losses[-1] < losses[0]
    close = functools.partial(chex.assert_trees_all_close, rtol=1e-4, atol=1e-7)
    close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), params)
    found, expected = adadelta_state(arrays_of(nnx, optimizer.opt_state)), adadelta_state(state)
    assert found.count == expected.count == 4
    # NNX makes a State of a dict, so only the arrays are compared.
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        if bits and one.ndim:
            # Rounding in the last place may move a value to the next code.
            assert one.dtype == DTYPES[bits]
            assert np.abs(np.int32(one) - np.int32(other)).max() <= 1
        else:
            np.testing.assert_allclose(one, other, rtol=1e-4)


@BITS
@RULE
def test_nnx_optimizer_updates_without_jit(nnx, bits, rule):
    model = nnx.Linear(3, 8, rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    grads = jax.tree.map(lambda p: p + 1.0, nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, rule(state_bits=bits), wrt=nnx.Param)
    plain = rule(state_bits=bits)
    state = plain.init(params)
    for _ in range(3):
        optimizer.update(model, grads)
        updates, state = plain.update(nnx.to_pure_dict(grads), state)
        params = optax.apply_updates(params, updates)
    found = arrays_of(nnx, optimizer.opt_state)
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(model, nnx.Param)), params)
    chex.assert_trees_all_equal(jax.tree.leaves(found), jax.tree.leaves(state))
    # A state that NNX carried is read like any other.
    for read in (
        averages,
        lambda s: effective_learning_rate(s, 1e-6),
        lambda s: summaries(s, 1e-6),
    ):
        expected = jax.tree.leaves(read(state))
        chex.assert_trees_all_equal(jax.tree.leaves(read(found)), expected)


def lora(nnx):
    base = nnx.Linear(3, 8, rngs=nnx.Rngs(0))
    return nnx.LoRA(3, 2, 8, base_module=base, rngs=nnx.Rngs(1))


@BITS
@pytest.mark.parametrize("names", [["Param"], ["LoRAParam"], ["LoRAParam", "Param"]], ids="+".join)
def test_nnx_optimizer_steps_the_variables_of_its_filter_alone(nnx, names, bits):
    model = lora(nnx)
    wrt = tuple(getattr(nnx, name) for name in names)
    chosen, rest = nnx.state(model, wrt, ...)
    params, rest = nnx.to_pure_dict(chosen), jax.tree.map(jnp.copy, nnx.to_pure_dict(rest))
    optimizer = nnx.Optimizer(model, adadelta(state_bits=bits), wrt=wrt)
    grads = nnx.grad(lambda model: squared_error(model(INPUTS)), argnums=nnx.DiffState(0, wrt))
    plain = adadelta(state_bits=bits)
    state = plain.init(params)
    for _ in range(3):
        g = grads(model)
        optimizer.update(model, g)
        updates, state = plain.update(nnx.to_pure_dict(g), state, params)
        params = optax.apply_updates(params, updates)
    found, others = nnx.state(model, wrt, ...)
    chex.assert_trees_all_equal(nnx.to_pure_dict(found), params)
    chex.assert_trees_all_equal(nnx.to_pure_dict(others), rest)
    stored = arrays_of(nnx, optimizer.opt_state)
    chex.assert_trees_all_equal(jax.tree.leaves(stored), jax.tree.leaves(state))


@BITS
@RULE
@pytest.mark.parametrize("start", DTYPES)
@pytest.mark.parametrize("wrap", [lambda rule: rule, optax.chain], ids=["alone", "chain"])
def test_nnx_optimizer_goes_on_in_another_storage(nnx, bits, rule, start, wrap):
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda model: squared_error(model(INPUTS)))(model))

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
    for _ in range(2):
        grads = nnx.grad(lambda model: squared_error(model(INPUTS)))(model)
        updates, state = plain.update(nnx.to_pure_dict(grads), state)
        params = optax.apply_updates(params, updates)
        step(model, new)
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(model, nnx.Param)), params)
    found = adadelta_state(arrays_of(nnx, new.opt_state))
    chex.assert_trees_all_equal(jax.tree.leaves(found), jax.tree.leaves(state))
    nnx.jit(step, donate_argnums=(0, 1))(model, new)
    assert adadelta_state(arrays_of(nnx, new.opt_state)).count == 4
    # The old optimizer has not been changed.
    unchanged = adadelta_state(arrays_of(nnx, optimizer.opt_state))
    chex.assert_trees_all_equal(unchanged, before)


@BITS
@RULE
@pytest.mark.parametrize("prefix", [False, True])
def test_averages_are_carried_between_a_dict_and_nnx(nnx, bits, rule, prefix):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(3, 5, rngs=rngs)
            self.out = nnx.Linear(5, 8, rngs=rngs)

        def __call__(self, x):
            return self.out(jnp.tanh(self.hidden(x)))

    model = Model(nnx.Rngs(0))
    plain = rule(state_bits=bits)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    tree = {"params": params} if prefix else params
    _, state = jax.jit(plain.update)(tree, plain.init(tree))
    optimizer = nnx.Optimizer(model, plain, wrt=nnx.Param)
    optimizer.opt_state = convert.carry_over(state, optimizer.opt_state)
    back = convert.carry_over(optimizer.opt_state, plain.init(tree))
    chex.assert_trees_all_equal(back, state)
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    optimizer.update(model, grads)
    _, state = plain.update(jax.tree.map(jnp.ones_like, tree), state)
    found = arrays_of(nnx, optimizer.opt_state)
    chex.assert_trees_all_equal(jax.tree.leaves(found), jax.tree.leaves(state))


def test_optax_states_are_converted_in_nnx(nnx):
    model = nnx.Linear(3, 8, rngs=nnx.Rngs(0))
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    schedule = optax.constant_schedule(1.0)
    theirs, again = (nnx.Optimizer(model, optax.adadelta(schedule), wrt=nnx.Param) for _ in "ab")
    ours = nnx.Optimizer(model, optax.chain(adadelta(rho=0.9)), wrt=nnx.Param)
    theirs.update(model, grads)
    ours.opt_state = convert.carry_over(convert.from_optax(theirs.opt_state), ours.opt_state)
    again.opt_state = convert.to_optax(ours.opt_state, again.opt_state)
    chex.assert_trees_all_equal(arrays_of(nnx, again.opt_state), arrays_of(nnx, theirs.opt_state))
    for optimizer in (again, ours):
        optimizer.update(model, grads)


@BITS
@RULE
def test_averages_are_carried_between_a_dict_and_equinox(eqx, bits, rule):
    model = eqx.nn.MLP(3, 8, 4, 1, key=jax.random.key(0))
    filtered = eqx.filter(model, eqx.is_inexact_array)
    params = {"layers": [{"weight": layer.weight, "bias": layer.bias} for layer in filtered.layers]}
    plain = rule(state_bits=bits)
    for tree in (params, {"params": params}):
        _, state = jax.jit(plain.update)(tree, plain.init(tree))
        found = convert.carry_over(state, plain.init(filtered))
        chex.assert_trees_all_equal(
            [(layer.weight, layer.bias) for layer in found.e_x.layers],
            [
                (layer["weight"], layer["bias"])
                for layer in state.e_x.get("params", state.e_x)["layers"]
            ],
        )
        chex.assert_trees_all_equal(convert.carry_over(found, plain.init(tree)), state)


@BITS
def test_nnx_optimizer_is_split_and_merged_in_a_jax_jit(nnx, bits):
    """The chain needs an extra argument, which the optimizer passes on."""

    def built():
        model = nnx.Linear(3, 8, rngs=nnx.Rngs(0))
        plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1)
        chain = optax.chain(adadelta(state_bits=bits), plateau)
        return model, nnx.Optimizer(model, chain, wrt=nnx.Param)

    def train(model, optimizer):
        value, grads = nnx.value_and_grad(lambda model: squared_error(model(INPUTS)))(model)
        optimizer.update(model, grads, value=jnp.ones_like(value))

    @jax.jit
    def step(graph, state):
        both = nnx.merge(graph, state)
        train(*both)
        return nnx.split(both)

    split = nnx.split(built())
    expected = built()
    for _ in range(3):
        split = step(*split)
        nnx.jit(train)(*expected)
    _, optimizer = found = nnx.merge(*split)
    assert optimizer.step[...] == optimizer.opt_state[0].count[...] == 3
    # The value never gets better, so the scale was halved twice.
    assert optimizer.opt_state[1].scale[...] == 0.25
    close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-7)
    close(jax.tree.leaves(nnx.state(found)), jax.tree.leaves(nnx.state(expected)))


@BITS
def test_nnx_model_and_optimizer_is_the_optimizer_of_its_model(nnx, bits):
    if not hasattr(nnx, "ModelAndOptimizer"):
        pytest.skip("this version of Flax has no ModelAndOptimizer")
    model, other = (nnx.Linear(3, 8, rngs=nnx.Rngs(0)) for _ in range(2))
    both = nnx.ModelAndOptimizer(model, adadelta(state_bits=bits), wrt=nnx.Param)
    optimizer = nnx.Optimizer(other, adadelta(state_bits=bits), wrt=nnx.Param)
    before = squared_error(model(INPUTS))
    for _ in range(3):
        grads = nnx.grad(lambda model: squared_error(model(INPUTS)))(model)
        both.update(grads)
        optimizer.update(other, grads)
    assert squared_error(both.model(INPUTS)) < before
    chex.assert_trees_all_equal(
        jax.tree.leaves(nnx.state((both.model, both.opt_state))),
        jax.tree.leaves(nnx.state((other, optimizer.opt_state))),
    )


@BITS
def test_nnx_gives_the_state_the_sharding_of_its_parameters(nnx, bits):
    with jax.set_mesh(mesh_of("data", "model")):
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))
        model = nnx.Linear(3, 8, rngs=nnx.Rngs(0), kernel_init=init)
        optimizer = nnx.Optimizer(model, adadelta(state_bits=bits), wrt=nnx.Param)
        optimizer.update(model, nnx.grad(lambda model: squared_error(model(INPUTS)))(model))
    for field in ("e_g", "e_x"):
        specs = nnx.get_partition_spec(nnx.state(optimizer))["opt_state"][field]
        assert specs["kernel"].get_value() == PartitionSpec(None, "model")
        kernel = getattr(optimizer.opt_state, field)["kernel"][...]
        assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 4)}


@BITS
@RULE
def test_flax_serialization_gives_the_same_bits_back(serialization, bits, rule):
    optimizer, step, params, state = trained(bits, rule)
    target = optimizer.init(params)
    data = serialization.to_bytes(state)
    assert_same_run(step, params, serialization.from_bytes(target, data), state)
    # Without a target the fields are there by name, as arrays.
    restored = serialization.msgpack_restore(data)
    found = adadelta_state(state)
    codes = restored["1"]["e_g"]["w"]
    assert codes.dtype == DTYPES[bits]
    np.testing.assert_array_equal(codes, found.e_g["w"])
    as_dict = serialization.to_state_dict(state)
    assert_same_run(step, params, serialization.from_state_dict(target, as_dict), state)


def mesh_of(*axes):
    devices = np.array(jax.devices()).reshape(4, 2)
    return Mesh(devices, axes, axis_types=(AxisType.Auto,) * 2)


@BITS
def test_linen_partitioning_places_the_state_like_the_parameters(linen, bits):
    mesh = mesh_of("data", "model")
    spec = PartitionSpec(None, "model")
    model = linen.Dense(
        8,
        kernel_init=linen.with_partitioning(linen.initializers.lecun_normal(), tuple(spec)),
        bias_init=linen.with_partitioning(linen.initializers.zeros_init(), ("model",)),
    )
    optimizer = optimizer_with(bits)

    def init(key):
        params = model.init(key, INPUTS)
        return params, optimizer.init(params)

    abstract = jax.eval_shape(init, jax.random.key(0))
    specs = adadelta_state(linen.get_partition_spec(abstract))
    for tree in (specs.e_g, specs.e_x):
        assert tree["params"] == {"kernel": spec, "bias": PartitionSpec("model")}
    assert specs.count == PartitionSpec()

    shardings = linen.get_sharding(abstract, mesh)
    placed = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
    params, state = linen.unbox(placed)
    step = stepper(optimizer, lambda p: squared_error(model.apply(p, INPUTS)))
    for _ in range(2):
        params, state, _ = step(params, state)
        found = adadelta_state(state)
        for tree in (found.e_g, found.e_x):
            kernel = tree["params"]["kernel"]
            assert (kernel.shape, kernel.dtype) == ((3, 8), DTYPES[bits])
            assert kernel.sharding.is_equivalent_to(NamedSharding(mesh, spec), 2)
            assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 4)}

    alone = linen.unbox(init(jax.random.key(0)))
    for _ in range(2):
        alone = step(*alone)[:2]
    chex.assert_trees_all_close(params, alone[0], rtol=1e-4, atol=1e-7)


@BITS
@RULE
def test_a_linen_train_state_trains_and_is_saved_as_a_whole(linen, serialization, bits, rule):
    train_state = pytest.importorskip("flax.training.train_state")
    model = linen.Dense(8)

    start = train_state.TrainState.create(
        apply_fn=model.apply,
        params=model.init(jax.random.key(0), INPUTS),
        tx=optimizer_with(bits, rule),
    )

    def loss(params):
        return squared_error(model.apply(params, INPUTS))

    @jax.jit
    def train(state):
        value, grads = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=grads), value

    state = start
    params, plain = start.params, start.tx.init(start.params)
    step = stepper(start.tx, loss)
    losses = []
    for _ in range(4):
        state, value = train(state)
        losses.append(float(value))
        params, plain, _ = step(params, plain)
    assert losses[-1] < losses[0]
    chex.assert_trees_all_close(state.params, params, rtol=1e-4, atol=1e-7)
    chex.assert_trees_all_equal_shapes_and_dtypes(state.opt_state, plain)

    restored = serialization.from_bytes(start, serialization.to_bytes(state))
    chex.assert_trees_all_equal(restored.opt_state, state.opt_state)
    chex.assert_trees_all_equal(train(restored), train(state))


@BITS
@RULE
def test_equinox_trains_and_serialises_leaves(eqx, bits, rule):
    model = eqx.nn.MLP(3, 8, 4, 1, key=jax.random.key(0))
    optimizer = optimizer_with(bits, rule)

    @eqx.filter_jit
    def train(model, state):
        def loss(model):
            return squared_error(jax.vmap(model)(INPUTS))

        value, grads = eqx.filter_value_and_grad(loss)(model)
        updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, value

    start = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    state, losses = start, []
    for _ in range(4):
        model, state, value = train(model, state)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    chex.assert_trees_all_equal_shapes_and_dtypes(state, start)
    assert adadelta_state(state).e_g.layers[0].weight.dtype == DTYPES[bits]

    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, state)
    file.seek(0)
    restored = eqx.tree_deserialise_leaves(file, start)
    chex.assert_trees_all_equal(restored, state)
    # All of the state counts as arrays, so filtering it loses nothing.
    assert jax.tree.leaves(eqx.filter(state, eqx.is_array, inverse=True)) == []
    again, expected = train(model, restored), train(model, state)
    chex.assert_trees_all_equal(
        eqx.filter(again[:2], eqx.is_array), eqx.filter(expected[:2], eqx.is_array)
    )


@BITS
def test_equinox_gradients_stand_beside_the_whole_model(eqx, bits):
    """The model has functions and integers where the gradients have None."""
    model = eqx.nn.MLP(3, 8, 4, 1, key=jax.random.key(0))
    optimizer = adadelta(weight_decay=0.1, state_bits=bits)
    params = eqx.filter(model, eqx.is_inexact_array)
    grads = eqx.filter_grad(lambda model: squared_error(jax.vmap(model)(INPUTS)))(model)
    state = optimizer.init(params)
    assert jax.tree.structure(model) != jax.tree.structure(grads)
    chex.assert_trees_all_equal(
        optimizer.update(grads, state, model), optimizer.update(grads, state, params)
    )


@BITS
def test_equinox_rounds_the_trained_part_of_a_bfloat16_model(eqx, bits):
    model = eqx.nn.MLP(3, 8, 4, 1, dtype=jnp.bfloat16, key=jax.random.key(0))
    chosen = jax.tree.map(lambda _: False, model)
    chosen = eqx.tree_at(
        lambda m: m.layers[1], chosen, jax.tree.map(eqx.is_inexact_array, model.layers[1])
    )
    optimizer = optax.chain(adadelta(state_bits=bits), stochastic_round())
    trained = eqx.filter(model, chosen)
    state = optimizer.init(trained)
    grads = jax.tree.map(jnp.ones_like, trained)
    expected = optimizer.update(grads, state, trained)
    for update in (optimizer.update, eqx.filter_jit(optimizer.update)):
        found = update(grads, state, model)
        chex.assert_trees_all_equal(found, expected)
    moved = eqx.apply_updates(model, found[0])
    assert eqx.tree_equal(moved.layers[0], model.layers[0])
    assert (moved.layers[1].bias != model.layers[1].bias).any()


@BITS
@RULE
def test_orbax_gives_the_same_bits_back(tmp_path, bits, rule):
    """Flax's checkpoints are Orbax's."""
    checkpoint = pytest.importorskip("orbax.checkpoint")
    optimizer, step, params, state = trained(bits, rule)
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        optimizer.init(params),
    )
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", target)
    assert_same_run(step, params, restored, state)


@BITS
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equinox_updates_a_whole_model_with_frozen_parts(eqx, bits, decay):
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
    optimizer = adadelta(weight_decay=decay, state_bits=bits)
    state = optimizer.init(eqx.filter(model, chosen))
    plain = jax.tree.leaves(eqx.filter(model, chosen))
    plain_state = optimizer.init(plain)

    @eqx.filter_jit
    def step(model, state):
        @eqx.filter_value_and_grad
        def loss(trained, frozen):
            return squared_error(jax.vmap(eqx.combine(trained, frozen))(INPUTS))

        value, grads = loss(*eqx.partition(model, chosen))
        updates, state = optimizer.update(grads, state, model)
        return eqx.apply_updates(model, updates), state, value, grads

    for _ in range(3):
        before = model
        model, state, value, grads = step(model, state)
        updates, plain_state = optimizer.update(jax.tree.leaves(grads), plain_state, plain)
        plain = optax.apply_updates(plain, updates)
    chex.assert_trees_all_close(jax.tree.leaves(eqx.filter(model, chosen)), plain, rtol=1e-5)
    assert eqx.tree_equal((model.ids, model.norm), (before.ids, before.norm))
    assert jnp.isfinite(value)


def test_equinox_traces_once_for_all_values_of_an_array_hyperparameter(eqx):
    traced = []

    @eqx.filter_jit
    def step(optimizer, params, state):
        traced.append(0)
        return optimizer.update(params, state, params)

    params = jnp.ones(3)
    found = {}
    for value in (0.5, 0.9, 0.99):
        optimizer = adadelta(0.5, jnp.float32(value), weight_decay=jnp.float32(0.1))
        optimizer = eqx.internal.closure_to_pytree(optimizer)
        _, state = step(optimizer, params, optimizer.init(params))
        found[value] = float(state.e_g[0])
    assert len(traced) == 1
    for value, e_g in found.items():
        np.testing.assert_allclose(e_g, (1 - value) * 1.1**2, rtol=1e-5)


def test_frozen_dicts_and_dicts_are_told_apart(linen):
    from flax.core import freeze

    params = {"w": jnp.ones(3)}
    optimizer = adadelta()
    for given, other in ((params, freeze(params)), (freeze(params), params)):
        state = optimizer.init(other)
        with pytest.raises(ValueError, match=rf"{type(given).__name__}.*{type(other).__name__}"):
            optimizer.update(given, state)


@pytest.mark.parametrize("kind", ["equinox", "nnx", "linen"])
def test_a_model_in_place_of_the_learning_rate_is_refused(eqx, nnx, linen, kind):
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
