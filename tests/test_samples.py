"""A few coordinates of a run: the right ones, the right numbers, wherever the step runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from reference import algorithm_1, gradients
from states import same_bits

from optax_adadelta import adadelta
from optax_adadelta.diagnostics import choose_coordinates, sample

SHAPES = {"scalar": (), "vector": (7,), "matrix": (6, 5), "empty": (0, 3)}
PARAMS = {"layer": {name: jnp.zeros(shape) for name, shape in SHAPES.items()}}
GRADIENTS = gradients("scales", 20, 30)


@pytest.mark.parametrize("size", [1, 4, 10])
def test_coordinates_are_distinct_and_inside(size):
    coordinates = choose_coordinates(adadelta().init(PARAMS), size=size)
    assert list(coordinates) == ["layer/matrix", "layer/scalar", "layer/vector"]
    for name, indices in coordinates.items():
        shape = SHAPES[name.removeprefix("layer/")] or (1,)
        assert indices.shape == (len(shape), min(size, np.prod(shape)))
        assert (indices >= 0).all()
        assert (indices < np.array(shape)[:, None]).all()
        assert len(set(zip(*indices, strict=True))) == indices.shape[1]


def test_coordinates_depend_on_shapes_and_seed_alone():
    def flat(*args, **kwargs):
        return np.concatenate([i.ravel() for i in choose_coordinates(*args, **kwargs).values()])

    state = adadelta().init(PARAMS)
    np.testing.assert_array_equal(flat(state), flat(jax.eval_shape(adadelta().init, PARAMS)))
    assert (flat(state, seed=1) != flat(state)).any()


def test_each_coordinate_is_as_likely_as_any_other():
    state = adadelta().init({"w": jnp.zeros((4, 5))})
    seen = np.zeros((4, 5))
    for seed in range(2000):
        seen[tuple(choose_coordinates(state, 5, seed)["w"])] += 1
    # 500 expected, with a standard deviation of 19.4.
    assert abs(seen - 500).max() < 5 * 19.4


@pytest.mark.parametrize("size", [0, -1])
def test_at_least_one_coordinate(size):
    with pytest.raises(ValueError, match=f"size must be at least 1.*; got {size}"):
        choose_coordinates(adadelta().init(PARAMS), size)


def run(optimizer, look, wrap=lambda step: step):
    """What `look(state, updates)` returned at each of the steps."""
    params = {"w": jnp.zeros((6, 5)), "b": jnp.zeros(())}
    state = optimizer.init(params)

    def step(state, g):
        grads = {"w": g.reshape(6, 5), "b": g[0]}
        updates, state = optimizer.update(grads, state, params)
        return state, look(state, updates)

    step = wrap(step)
    seen = []
    for g in jnp.asarray(GRADIENTS, jnp.float32):
        state, now = step(state, g)
        seen.append(now)
    return jax.tree.map(lambda *times: np.stack(times), *seen)


@pytest.mark.parametrize(
    ("wrap", "around"),
    [
        (lambda step: step, lambda optimizer: optimizer),
        (jax.jit, lambda optimizer: optax.chain(optax.identity(), optimizer)),
        (jax.jit, lambda o: optax.masked(o, {"w": True, "b": True})),
    ],
    ids=["alone", "chain", "masked"],
)
def test_a_sample_is_the_paper_s_step_at_the_coordinates(wrap, around):
    rate, eps = 0.5, 1e-4
    optimizer = around(adadelta(rate, eps=eps))
    coordinates = choose_coordinates(optimizer.init({"w": jnp.zeros((6, 5)), "b": jnp.zeros(())}))
    seen = run(optimizer, lambda s, u: sample(s, u, coordinates, eps, rate), wrap)
    np.testing.assert_array_equal(seen.count, np.arange(1, 21))
    at = np.ravel_multi_index(coordinates["w"], (6, 5))
    steps = list(algorithm_1(GRADIENTS, eps=eps))
    for name, where in (("w", at), ("b", [0])):
        rates = [rate * np.sqrt((s.e_x + eps) / (s.e_g + eps))[where] for s in steps]
        np.testing.assert_allclose(seen.rate[name], rates, rtol=1e-5)
        updates = [rate * s.dx[where] for s in steps]
        np.testing.assert_allclose(seen.update[name], updates, rtol=1e-5)


def test_the_frozen_part_of_a_model_is_left_out():
    optimizer = optax.masked(adadelta(), {"a": True, "b": False})
    params = {"a": jnp.ones(3), "b": jnp.ones(3)}
    coordinates = choose_coordinates(optimizer.init(params))
    assert list(coordinates) == ["a"]
    updates, state = optimizer.update(params, optimizer.init(params), params)
    seen = sample(state, updates, coordinates, 1e-6)
    np.testing.assert_array_equal(seen.update["a"], updates["a"][coordinates["a"][0]])


def test_coordinates_of_one_s_own():
    optimizer = adadelta()
    updates, state = optimizer.update(PARAMS, optimizer.init(PARAMS))
    for own in ([[0, 5], [4, 0]], np.array([[0, 5], [4, 0]]), jnp.array([[0, 5], [4, 0]])):
        seen = sample(state, updates, {"layer/matrix": own}, 1e-6)
        assert list(seen.rate) == list(seen.update) == ["layer/matrix"]
        np.testing.assert_array_equal(seen.rate["layer/matrix"], [1, 1])
    traced = jax.jit(sample)(state, updates, {"layer/matrix": own}, 1e-6)
    same_bits(traced, seen)


def test_a_leaf_that_is_not_there():
    state = adadelta().init({"a": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"'b'.* leaves are: 'a'"):
        sample(state, {"a": jnp.ones(3)}, {"b": np.array([[0]])}, 1e-6)
    with pytest.raises(ValueError, match=r"'a'.* leaves are: none"):
        sample(state, {}, {"a": np.array([[0]])}, 1e-6)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([[6, 1], [0, 2]], r"within .*\(6, 5\); got .*\[1, 0\] to \[6, 2\]"),
        ([[0], [5]], r"within .*\(6, 5\); got .*\[0, 5\]"),
        ([[-1], [0]], r"within .*\(6, 5\); got .*\[-1, 0\]"),
        ([[1, 2]], r"integers of shape \[2, n\].*; got int(?:32|64) of shape \[1, 2\]"),
        ([1, 2], r"integers of shape \[2, n\].*; got int(?:32|64) of shape \[2\]"),
        ([[0.0], [0.0]], r"integers of shape \[2, n\].*; got float(?:32|64) of shape \[2, 1\]"),
    ],
)
def test_coordinates_that_are_not_inside(indices, message):
    updates, state = adadelta().update(PARAMS, adadelta().init(PARAMS))
    with pytest.raises(ValueError, match=f"'layer/matrix' must be {message}"):
        sample(state, updates, {"layer/matrix": np.array(indices)}, 1e-6)


def test_updates_of_another_shape():
    state = adadelta().init({"a": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"'a' has updates of shape \(2,\) and .* shape \(3,\)"):
        sample(state, {"a": jnp.ones(2)}, {"a": np.array([[0]])}, 1e-6)


def test_two_leaves_of_one_name():
    state = adadelta().init({"a": {"b": jnp.ones(2)}, "a/b": jnp.ones(3)})
    with pytest.raises(ValueError, match="Two leaves have the name 'a/b'"):
        choose_coordinates(state)


@pytest.mark.devices
@pytest.mark.parametrize(
    ("wrap", "kinds"),
    [
        (lambda f: f, (AxisType.Auto, AxisType.Auto)),
        (jax.jit, (AxisType.Explicit, AxisType.Explicit)),
        (jax.jit, (AxisType.Auto, AxisType.Explicit)),
    ],
)
def test_the_leaves_of_eight_devices(wrap, kinds):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=kinds)
    optimizer = adadelta()
    alone = jnp.asarray(GRADIENTS[:8, :6], jnp.float32)
    coordinates = choose_coordinates(optimizer.init(alone))

    def look(g):
        updates, state = optimizer.update(g, optimizer.init(g))
        return sample(state, updates, coordinates, 1e-6)

    with jax.set_mesh(mesh):
        spread = wrap(look)(jax.device_put(alone, NamedSharding(mesh, PartitionSpec("x", "y"))))
    for both in zip(jax.tree.leaves(spread), jax.tree.leaves(look(alone)), strict=True):
        np.testing.assert_allclose(*both, rtol=1e-6)
