"""Checkpoints of sharded training with Flax, Equinox and pickle, in every storage."""

import io
import pickle

import jax
import jax.numpy as jnp
import pytest
from checkpoints import (
    BEFORE,
    END,
    assert_placed,
    chain,
    loss,
    numbers,
    on_mesh_of,
    places_on,
    target_on,
    undisturbed,
    without_arrays,
)
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from states import same_bits

from optax_adadelta import adadelta

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("frameworks_promote")]


def place(saved, target):
    """The recipe of the documentation: each array goes where the target is."""
    return jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), saved, target)


def through_pickle(tree, target):
    del target
    return pickle.loads(pickle.dumps(jax.device_get(tree)))


def through_equinox(tree, target):
    eqx = pytest.importorskip("equinox")
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, tree)
    file.seek(0)
    return eqx.tree_deserialise_leaves(file, target)


def through_msgpack(tree, target):
    serialization = pytest.importorskip("flax.serialization")
    return serialization.from_bytes(target, serialization.to_bytes(tree))


@pytest.mark.parametrize(
    ("through", "bits"), [(through_pickle, None), (through_equinox, 16), (through_msgpack, 8)]
)
def test_a_sharded_run_goes_on_after_its_arrays_were_placed(compiled, through, bits):
    # Importing it adds to JAX's settings, and JAX then compiles everything again.
    pytest.importorskip("equinox")
    optimizer, run, tree, end = undisturbed(bits, loss)
    for mesh in ("4x2", "8"):
        places = places_on(mesh)
        target = target_on(optimizer, places)
        found = place(through(tree, target), target)
        assert_placed(found, target)
        same_bits(jax.device_get(found), jax.device_get(tree))
    before = compiled()
    found = run(*found, places, BEFORE, END)
    assert compiled() == before
    same_bits(jax.device_get(found), end)


def test_a_sharded_train_state_goes_on_after_its_arrays_were_placed():
    train_state = pytest.importorskip("flax.training.train_state")
    optimizer = chain(adadelta(state_bits=8))

    def new(seed, places):
        params = jax.device_put(numbers(seed), places)
        state = train_state.TrainState.create(apply_fn=None, params=params, tx=optimizer)
        return state.replace(step=jnp.zeros((), jnp.int32))

    @jax.jit
    def step(state, given):
        return state.apply_gradients(grads=jax.grad(loss)(state.params, given))

    def run(state, places, begin, end):
        for t in range(begin, end):
            state = step(state, jax.device_put(numbers(t), places))
        return state

    places, other = places_on("8"), places_on("4x2")
    with on_mesh_of(places):
        state = run(new(1000, places), places, 0, BEFORE)
        expected = run(state, places, BEFORE, END)
        target = new(1, places)
        found = place(through_msgpack(state, target), target)
        assert_placed(found, without_arrays(target))
        same_bits(run(found, places, BEFORE, END), expected)
    with on_mesh_of(other):
        target = new(1, other)
        moved = place(through_msgpack(state, target), target)
        assert_placed(moved, without_arrays(target))
    assert moved.step == BEFORE
    same_bits(jax.device_get(moved), jax.device_get(state))


def test_a_sharded_nnx_model_and_its_optimizer_move_to_another_mesh(tmp_path):
    nnx, ocp = pytest.importorskip("flax.nnx"), pytest.importorskip("orbax.checkpoint")
    start = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("x", "y"))

    def new(seed=1):
        model = nnx.Linear(64, 64, use_bias=False, kernel_init=start, rngs=nnx.Rngs(seed))
        return model, nnx.Optimizer(model, chain(adadelta(state_bits=8)), wrt=nnx.Param)

    @nnx.jit
    def train(model, optimizer, w):
        def distance(model):  # whose gradients need no sum over devices
            return 0.1 * jnp.sum((model.kernel[...] - w) ** 2)

        optimizer.update(model, nnx.grad(distance)(model))

    def run(both, place, begin, end):
        for t in range(begin, end):
            train(*both, jax.device_put(numbers(t)["w"], place))
        return jax.device_get(jax.tree.leaves(nnx.state(both)))

    def place_on(mesh):
        return NamedSharding(places_on(mesh)["w"].mesh, P("x", "y"))

    place = place_on("4x2")
    with jax.set_mesh(place.mesh):
        both = new(0)
        run(both, place, 0, BEFORE)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "checkpoint", nnx.state(both))
        expected = run(both, place, BEFORE, END)
    place = place_on("2x4")
    with jax.set_mesh(place.mesh), ocp.StandardCheckpointer() as checkpointer:
        _, target = nnx.get_abstract_model(new, place.mesh)
        both = new()
        nnx.update(both, checkpointer.restore(tmp_path / "checkpoint", target))
        assert_placed(nnx.state(both), target)
        assert both[0].kernel[...].sharding.is_equivalent_to(place, 2)
        same_bits(run(both, place, BEFORE, END), expected)
