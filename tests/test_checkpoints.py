"""Checkpoints of sharded runs: onto the same mesh and others, and what goes wrong."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpoints import (
    AUTO,
    BEFORE,
    END,
    EXPLICIT,
    TYPES,
    abstract,
    assert_placed,
    chain,
    loss,
    numbers,
    on_mesh_of,
    places_on,
    printed_apart,
    started,
    steps_of,
    target_on,
    undisturbed,
    without_arrays,
)
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from states import same_bits

from optax_adadelta import AdadeltaState, adadelta, convert, reduce_eps_on_plateau
from optax_adadelta.diagnostics import find_state

pytestmark = pytest.mark.frameworks


@pytest.fixture
def ocp():
    return pytest.importorskip("orbax.checkpoint")


@pytest.fixture
def saved(ocp, tmp_path):
    """Saves a tree, and returns what restores it to a target."""

    def save(tree):
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "checkpoint", tree)

        def restore(*target):
            with ocp.StandardCheckpointer() as checkpointer:
                return checkpointer.restore(tmp_path / "checkpoint", *target)

        return restore

    return save


def placed(tree, target):
    """The recipe of the documentation: each array goes where the target is."""
    return jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), tree, target)


def through_orbax(tree, target, folder):
    ocp = pytest.importorskip("orbax.checkpoint")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "tree", tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "tree", target)


def through_pickle(tree, target, folder):
    return placed(pickle.loads(pickle.dumps(jax.device_get(tree))), target)


def through_equinox(tree, target, folder):
    eqx = pytest.importorskip("equinox")
    eqx.tree_serialise_leaves(folder / "tree.eqx", tree)
    return placed(eqx.tree_deserialise_leaves(folder / "tree.eqx", target), target)


def through_msgpack(tree, target, folder):
    serialization = pytest.importorskip("flax.serialization")
    return placed(serialization.from_bytes(target, serialization.to_bytes(tree)), target)


@pytest.mark.parametrize(
    ("through", "bits", "mesh"),
    [
        (through_orbax, None, "4x2"),
        (through_orbax, 16, "2x4"),
        (through_orbax, 8, "4"),
        (through_orbax, 16, "none"),
        (through_pickle, None, "8"),
        (through_equinox, 16, "2"),
        (through_msgpack, 8, "4x2"),
    ],
)
def test_on_any_mesh_the_same_gradients_give_the_same_bits(compiled, tmp_path, through, bits, mesh):
    if through is not through_orbax:
        # Importing it adds to JAX's settings, and JAX then compiles everything again.
        pytest.importorskip("equinox")
    optimizer, run, tree, end = undisturbed(bits)
    if mesh == "none":
        places = None
        params = jax.tree.map(jnp.zeros_like, jax.device_get(tree[0]))
        target = without_arrays((params, optimizer.init(params)))
    else:
        places = places_on(mesh, EXPLICIT if mesh == "2x4" else AUTO, backwards=True)
        target = target_on(optimizer, places)
    found = through(tree, target, tmp_path)
    assert_placed(found, target)
    same_bits(jax.device_get(found), jax.device_get(tree))
    found = run(*found, places, BEFORE, BEFORE + 1)
    before = compiled()
    found = run(*found, places, BEFORE + 1, END)
    assert compiled() == before
    assert_placed(found, target)
    same_bits(jax.device_get(found), end)


@pytest.mark.parametrize(("bits", "kind"), [(None, AUTO), (8, EXPLICIT)], ids=str)
def test_on_the_same_mesh_training_goes_on_as_if_it_had_not_stopped(saved, compiled, bits, kind):
    optimizer, run, tree, end = undisturbed(bits, loss, kind)
    places = places_on("8", kind)
    found = saved(tree)(target_on(optimizer, places))
    before = compiled()
    found = run(*found, places, BEFORE, END)
    assert compiled() == before
    same_bits(jax.device_get(found), end)


WRAPPERS = {
    "groups": lambda o: optax.multi_transform(
        {"quantized": o, "full": adadelta()}, {"w": "quantized", "h": "full"}
    ),
    "MultiSteps": lambda o: optax.MultiSteps(o, 2),
    "nothing": lambda o: optax.masked(o, dict.fromkeys(TYPES, False)),
}


@pytest.mark.parametrize(("bits", "other"), [(None, 16), (16, 8), (8, None)])
def test_in_another_storage_it_goes_on_as_if_converted_before(saved, compiled, bits, other):
    _, _, tree, _ = undisturbed(bits)
    optimizer, run, *_ = undisturbed(other)
    old, new = places_on("8"), places_on("4x2", backwards=True)
    restore = saved(tree)
    params, state = restore(target_on(chain(adadelta(state_bits=bits)), new))
    state = convert.with_state_bits(state, other, eps=1e-6)
    assert_placed((params, state), target_on(optimizer, new))
    found = run(params, state, new, BEFORE, BEFORE + 1)
    before = compiled()
    found = run(*found, new, BEFORE + 1, END)
    assert compiled() == before
    converted = tree[0], convert.with_state_bits(tree[1], other, eps=1e-6)
    expected = run(*converted, old, BEFORE, END)
    same_bits(jax.device_get(found), jax.device_get(expected))


@pytest.mark.parametrize("name", WRAPPERS)
def test_states_of_wrappers_are_restored_onto_another_mesh(saved, compiled, name):
    optimizer = WRAPPERS[name](adadelta(state_bits=8))
    run, old, new = steps_of(optimizer), places_on("8"), places_on("2x4")
    with jax.numpy_dtype_promotion("standard"):
        tree = started(optimizer, old, run)
        target = target_on(optimizer, new)
        found = saved(tree)(target)
        assert_placed(found, target)
        found = run(*found, new, BEFORE, BEFORE + 2)
        before = compiled()
        found = run(*found, new, BEFORE + 2, BEFORE + 4)
        assert compiled() == before
        expected = run(*tree, old, BEFORE, BEFORE + 4)
    same_bits(jax.device_get(found), jax.device_get(expected))


def test_a_manager_keeps_an_eps_that_falls_on_a_plateau(ocp, tmp_path):
    injected = optax.inject_hyperparams(adadelta, "state_bits", hyperparam_dtype=jnp.float32)
    optimizer = chain(injected(eps=1e-4, state_bits=16))
    plateau = reduce_eps_on_plateau(0.5, patience=1, restore_best=True)
    run, old, new = steps_of(optimizer), places_on("8"), places_on("4x2")

    def epoch(tree, watch, places, value):
        tree = run(*tree, places, 0, 2)
        return plateau.update(tree, watch, value=value)

    tree = started(optimizer, old, run)
    watch = plateau.init(tree)
    with ocp.CheckpointManager(tmp_path) as manager:
        for step, value in enumerate([1.0, 2.0, 0.5]):
            tree, watch = epoch(tree, watch, old, value)
            manager.save(step, args=ocp.args.StandardSave((tree, watch)))
    expected = epoch(tree, watch, old, 3.0)

    target = target_on(optimizer, new)
    target = target, plateau.init(target)
    with ocp.CheckpointManager(tmp_path) as manager:
        assert manager.latest_step() == 2
        tree, watch = manager.restore(2, args=ocp.args.StandardRestore(target))
    assert_placed((tree, watch), target)
    found = epoch(tree, watch, new, 3.0)
    assert optax.tree.get(found[0], "eps") == np.float32(1e-4) / 4
    same_bits(jax.device_get(found), jax.device_get(expected))


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_a_target_of_eval_shape_is_restored_onto_the_old_mesh(saved):
    optimizer, run, tree, _ = undisturbed(8)
    new = places_on("4x2", backwards=True)
    target = jax.eval_shape(lambda p: (p, optimizer.init(p)), abstract(new))
    found = saved(tree)(target)
    for leaf, old in zip(jax.tree.leaves(found), jax.tree.leaves(tree), strict=True):
        assert leaf.sharding == old.sharding
    with pytest.raises(ValueError, match="incompatible devices"):
        run(*found, new, BEFORE, END)


def test_without_the_mesh_scalars_of_other_transformations_are_on_one_device(saved):
    optimizer = optax.MultiSteps(adadelta(), 2)
    run, old, new = steps_of(optimizer), places_on("8"), places_on("4x2")
    with jax.numpy_dtype_promotion("standard"):
        tree = started(optimizer, old, run)
        found = saved(tree)((abstract(new), optimizer.init(abstract(new))))
        with pytest.raises(ValueError, match="incompatible devices"):
            run(*found, new, BEFORE, END)


FEWER_DEVICES = """
import jax, orbax.checkpoint as ocp
from checkpoints import abstract, chain, places_on, target_on
from optax_adadelta import adadelta

assert len(jax.devices()) == 2
optimizer, places = chain(adadelta(state_bits=8)), places_on("2")
with ocp.StandardCheckpointer() as checkpointer:
    try:
        init = jax.eval_shape(lambda p: (p, optimizer.init(p)), abstract(places))
        checkpointer.restore(folder / "checkpoint", init)
    except ValueError as error:
        print("refused")
    tree = checkpointer.restore(folder / "checkpoint", target_on(optimizer, places))
    checkpointer.save(folder / "again", tree)
"""


def test_where_the_old_devices_are_missing(saved, tmp_path):
    optimizer, _, tree, _ = undisturbed(8)
    restore = saved(tree)
    assert printed_apart(FEWER_DEVICES, tmp_path, devices=2) == "refused\n"
    (tmp_path / "checkpoint").rename(tmp_path / "first")
    (tmp_path / "again").rename(tmp_path / "checkpoint")
    same_bits(restore(target_on(optimizer, places_on("8"))), tree)


def test_without_a_target_named_tuples_are_dictionaries(saved):
    _, _, tree, _ = undisturbed(8)
    params, (_, state) = saved(tree)()
    assert isinstance(state, dict)
    same_bits((params, AdadeltaState(**state)), (tree[0], find_state(tree[1])))


@pytest.mark.usefixtures("frameworks_promote")
def test_a_sharded_train_state_goes_on_after_its_arrays_were_placed(tmp_path):
    train_state = pytest.importorskip("flax.training.train_state")
    optimizer = chain(adadelta(state_bits=8))

    def new(seed, places):
        params = jax.device_put(numbers(seed), places)
        state = train_state.TrainState.create(apply_fn=None, params=params, tx=optimizer)
        return state.replace(step=jnp.zeros((), jnp.int32))

    @jax.jit
    def step(state):
        return state.apply_gradients(grads=state.params)

    ends = []
    for mesh in ("8", "4x2"):
        places = places_on(mesh)
        with on_mesh_of(places):
            begun = step(new(1000, places))
            target = new(1, places)
            found = through_msgpack(begun, target, tmp_path)
            assert_placed(found, without_arrays(target))
            ends.append(jax.device_get(step(found)))
            same_bits(ends[-1], jax.device_get(step(begun)))
    same_bits(*ends)


@pytest.mark.usefixtures("frameworks_promote")
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
