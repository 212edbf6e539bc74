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
from states import BITS, DTYPES

from optax_adadelta import AdadeltaState, adadelta
from optax_adadelta.diagnostics import averages

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


def optimizer_with(bits):
    """An ordinary chain, so that the state is not the outermost node."""
    return optax.chain(optax.clip_by_global_norm(10.0), adadelta(rho=0.9, state_bits=bits))


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
def trained(bits):
    """A plain JAX run: the optimizer, its step, and the parameters and state after a few steps."""
    optimizer = optimizer_with(bits)
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
def test_nnx_optimizer_updates_without_jit(nnx, bits):
    model = nnx.Linear(3, 8, rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    grads = jax.tree.map(lambda p: p + 1.0, nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, adadelta(state_bits=bits), wrt=nnx.Param)
    plain = adadelta(state_bits=bits)
    state = plain.init(params)
    for _ in range(3):
        optimizer.update(model, grads)
        updates, state = plain.update(nnx.to_pure_dict(grads), state)
        params = optax.apply_updates(params, updates)
    found = arrays_of(nnx, optimizer.opt_state)
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(model, nnx.Param)), params)
    chex.assert_trees_all_equal(jax.tree.leaves(found), jax.tree.leaves(state))
    # A state that NNX carried is read like any other.
    chex.assert_trees_all_equal(jax.tree.leaves(averages(found)), jax.tree.leaves(averages(state)))


@BITS
def test_flax_serialization_gives_the_same_bits_back(serialization, bits):
    optimizer, step, params, state = trained(bits)
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
def test_a_linen_train_state_trains_and_is_saved_as_a_whole(linen, serialization, bits):
    train_state = pytest.importorskip("flax.training.train_state")
    model = linen.Dense(8)

    start = train_state.TrainState.create(
        apply_fn=model.apply,
        params=model.init(jax.random.key(0), INPUTS),
        tx=optimizer_with(bits),
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
def test_equinox_trains_and_serialises_leaves(eqx, bits):
    model = eqx.nn.MLP(3, 8, 4, 1, key=jax.random.key(0))
    optimizer = optimizer_with(bits)

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
def test_orbax_gives_the_same_bits_back(tmp_path, bits):
    """Flax's checkpoints are Orbax's."""
    checkpoint = pytest.importorskip("orbax.checkpoint")
    optimizer, step, params, state = trained(bits)
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        optimizer.init(params),
    )
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", target)
    assert_same_run(step, params, restored, state)
