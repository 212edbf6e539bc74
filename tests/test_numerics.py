"""The guarantees of docs/numerics.md: for every float, and over long runs."""

import collections
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from reference import algorithm_1, gradients

from optax_adadelta import adadelta, scale_by_adadelta


def updates_and_references(g, rho, eps, dtype=jnp.float32):
    """Yields our update, E[g^2] and E[dx^2] and those of Algorithm 1 on the same gradients."""
    g = np.asarray(jnp.asarray(g, dtype), np.float64)
    optimizer = adadelta(rho=rho, eps=eps)
    state = optimizer.init(jnp.zeros(g.shape[1:], dtype))
    for leaf, expected in zip(g, algorithm_1(g, rho, eps), strict=True):
        dx, state = optimizer.update(jnp.asarray(leaf, dtype), state)
        yield (dx, state.e_g, state.e_x), expected


@pytest.mark.parametrize(("rho", "eps"), [(0.5, 1e-32), (0.95, 1e-8), (0.9999, 1e-32)])
def test_gradients_down_to_subnormals_give_the_update_within_1e_5(rho, eps):
    scales = 10.0 ** np.arange(-44, 6)
    g = gradients("normal", 100, 50) * scales
    for (dx, _, _), expected in updates_and_references(g, rho, eps):
        seen = np.abs(expected.dx) > 1e-30
        np.testing.assert_allclose(np.asarray(dx)[seen], expected.dx[seen], rtol=1e-5)


@pytest.mark.parametrize("rho", [0.5, 0.9999])
@pytest.mark.parametrize("eps", [1e-36, 1.1754944e-38, 1e-300])
def test_an_eps_near_the_smallest_float_still_moves_and_stays_bounded(rho, eps):
    floor = max(eps, 64 * float(np.finfo(np.float32).tiny))
    e_x = np.zeros(50)
    g = (gradients("normal", 300, 50) * 10.0 ** np.linspace(-20, 10, 50)).astype(np.float32)
    for leaf, ((dx, _, after), expected) in zip(
        np.abs(np.float64(g)), updates_and_references(g, rho, eps), strict=True
    ):
        size = np.abs(np.float64(dx))
        assert np.isfinite(size).all()
        assert (size <= np.sqrt((e_x + floor) / (1 - rho)) * (1 + 1e-5)).all()
        e_x = np.float64(after)
        # Algorithm 1 moves at least this far, because E[dx^2] is not negative.
        ordinary = expected.e_g > 1e3 * floor
        least = np.sqrt(floor) * leaf / np.sqrt(expected.e_g + floor)
        assert (size >= least * (1 - 1e-5))[ordinary].all()


def test_after_a_huge_gradient_a_coordinate_recovers_no_later_than_in_float64():
    huge = [1e18, 1e20, -1e30, float(jnp.finfo(jnp.float32).max)]
    g = np.concatenate([np.full((50, 4), 0.1), [huge], np.full((600, 4), 0.1)])
    ours, exact = [], []
    for (dx, e_g, e_x), expected in updates_and_references(g, 0.5, 1e-6):
        assert np.isfinite([dx, e_g, e_x]).all()
        ours.append(np.abs(dx))
        exact.append(np.abs(expected.dx))
    ours, exact = np.array(ours), np.array(exact)
    # The same gradient is rounded in the same way at every step, by about 1e-8 per step.
    assert (ours >= exact * (1 - 1e-4)).all()
    np.testing.assert_allclose(ours[50], exact[50], rtol=1e-5)
    back, expected = ((path[51:] > 0.5 * exact[49]).argmax(axis=0) for path in (ours, exact))
    assert (0 < back).all()
    assert (back <= expected).all()
    np.testing.assert_allclose(ours[:, 0], exact[:, 0], rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("rho", [0.99, pytest.param(0.999, marks=pytest.mark.slow)])
def test_averages_of_a_low_precision_model_follow_gradients_that_drop(dtype, rho):
    """Those of Optax, in the dtype of the model, do not."""
    counts = 5, *[round(3 / (1 - rho))] * 2
    drop = np.repeat([0.0, 1.0, 0.1], counts)[:, None] * [1.0, 0.03]
    optimizer = optax.adadelta(1.0, rho)
    state, update = optimizer.init(jnp.zeros(2, dtype)), jax.jit(optimizer.update)
    steps = updates_and_references(drop, rho, 1e-8, dtype)
    for g, ((dx, e_g, _), expected) in zip(drop, steps, strict=True):
        assert np.isfinite(np.float64(dx)).all()
        np.testing.assert_allclose(e_g, expected.e_g, rtol=1e-4)
        _, state = update(jnp.asarray(g, dtype), state, jnp.zeros(2, dtype))
    theirs = np.float64(optax.tree_utils.tree_get(state, "e_g"))
    assert (np.abs(theirs / expected.e_g - 1) > 0.01).any()


INJECT = functools.partial(optax.inject_hyperparams, hyperparam_dtype=jnp.float32)
CARRIED = {
    "schedule": lambda: adadelta(lambda count: 1.0, rho=np.float64(0.9), weight_decay=0.1),
    "injected": lambda: INJECT(adadelta)(rho=0.9),
    "injected schedule": lambda: INJECT(adadelta)(optax.linear_schedule(1.0, 0.5, 5)),
    "MultiSteps": lambda: optax.MultiSteps(adadelta(), 2).gradient_transformation(),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("schedule", jnp.bfloat16),
        ("schedule", jnp.float64),
        ("injected", jnp.float32),
        ("injected schedule", jnp.complex64),
        ("MultiSteps", jnp.bfloat16),
    ],
)
def test_loops_carry_the_state_under_x64(name, dtype):
    optimizer = CARRIED[name]()
    params = {"w": jnp.ones((3, 2), dtype), "b": jnp.ones((), dtype)}

    def step(carry):
        params, state = carry
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    # A loop refuses a carry whose types change, weak types included.
    with jax.numpy_dtype_promotion("standard"):
        carry = params, optimizer.init(params)
        scanned, _ = jax.lax.scan(lambda carry, _: (step(carry), None), carry, length=4)
        looped = jax.lax.fori_loop(0, 4, lambda _, carry: step(carry), carry)
    for got, other in zip(jax.tree.leaves(scanned), jax.tree.leaves(looped), strict=True):
        np.testing.assert_array_equal(got, other)
    assert (np.abs(scanned[0]["w"]) < 1).all()


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("varies", "rho", "bound_e_g", "bound_e_x", "bound_path"),
    [
        (True, 0.95, 1e-6, 1e-5, 1e-6),
        (True, 0.9999, 2e-5, 1e-3, 1e-4),
        # The same gradient is rounded in the same way at every step, which adds up in E[dx^2].
        (False, 0.95, 1e-5, 5e-2, 2e-2),
    ],
)
def test_a_million_steps_drift_little_from_float64(varies, rho, bound_e_g, bound_e_x, bound_path):
    """Both run on the same float32 gradients; the path is the float64 sum of the updates."""
    size, steps, eps = 32, 1_000_000, 1e-6
    scale = jnp.asarray(10.0 ** np.linspace(-4, 3, size), jnp.float32)
    lanes = jnp.arange(size, dtype=jnp.uint32) * jnp.uint32(40503)
    optimizer = scale_by_adadelta(rho, eps)

    def gradient(t):
        t = t if varies else 0 * t
        bits = (t.astype(jnp.uint32) * jnp.uint32(2654435761) + lanes * lanes) >> 8
        return (bits.astype(jnp.float32) * jnp.float32(2.0**-24) - jnp.float32(0.4)) * scale

    def step(carry, t):
        state, path, e_g, e_x, exact_path, length = carry
        g = gradient(t)
        dx, state = optimizer.update(g, state)
        wide = g.astype(jnp.float64)
        e_g = rho * e_g + (1 - rho) * wide**2
        exact = jnp.sqrt(e_x + eps) / jnp.sqrt(e_g + eps) * wide
        e_x = rho * e_x + (1 - rho) * exact**2
        path += dx.astype(jnp.float64)
        return (state, path, e_g, e_x, exact_path + exact, length + jnp.abs(exact)), None

    zeros = jnp.zeros(size, jnp.float64)
    start = (optimizer.init(jnp.zeros(size, jnp.float32)), *[zeros] * 5)
    carry, _ = jax.jit(lambda: jax.lax.scan(step, start, jnp.arange(steps)))()
    state, path, e_g, e_x, exact_path, length = jax.device_get(carry)
    drift = {
        "E[g^2]": (np.max(np.abs(state.e_g / e_g - 1)), bound_e_g),
        "E[dx^2]": (np.max(np.abs(state.e_x / e_x - 1)), bound_e_x),
        "path": (np.max(np.abs(path - exact_path) / length), bound_path),
    }
    assert state.count == steps
    assert all(measured < bound for measured, bound in drift.values()), drift


def test_a_run_has_the_same_bits_in_any_order_of_keys_and_resumed_at_any_step():
    """JAX sorts the keys of a dict, so only an OrderedDict has another order."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adadelta(rho=0.99, weight_decay=0.01))
    g = jnp.asarray(gradients("bursts", 12, 33), jnp.float32)

    @jax.jit
    def step(params, state, g):
        grads = collections.OrderedDict((name, g[: len(p)]) for name, p in params.items())
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def run(names="ab", stop_at=None):
        sizes = {"a": 33, "b": 5}
        params = collections.OrderedDict((name, jnp.ones(sizes[name])) for name in names)
        state = optimizer.init(params)
        for t in range(12):
            if t == stop_at:
                params, state = pickle.loads(pickle.dumps(jax.device_get((params, state))))
            params, state = step(params, state, g[t])
        found = params, state[1].e_g, state[1].e_x
        return jax.device_get([dict(part) for part in found])

    expected = run()
    for other in (run("ba"), *(run(stop_at=t) for t in range(12))):
        jax.tree.map(np.testing.assert_array_equal, other, expected)


@pytest.mark.devices
@pytest.mark.parametrize("spec", [("a",), ("a", "b"), (None, "b")], ids=str)
def test_a_piece_on_one_of_eight_devices_has_the_bits_of_that_piece_alone(spec):
    """The whole leaf, which is compared in test_sharded_state, may differ in the last places.

    If the last axis has 3 to 8 elements and the others 8 or more, jax 0.8 and 0.12 compile without
    fused multiply-adds. That may be so for a piece and not for the leaf.
    """
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    place = NamedSharding(mesh, PartitionSpec(*spec))
    update = jax.jit(adadelta().update)
    whole = adadelta().init(jax.device_put(jnp.zeros((64, 16)), place))
    alone = None
    for leaf in gradients("normal", 20, 64 * 16).reshape(20, 64, 16).astype(np.float32):
        dx, whole = update(jax.device_put(leaf, place), whole)
        index = dx.addressable_shards[-1].index
        alone = alone or adadelta().init(jnp.asarray(leaf[index]))
        alone_dx, alone = update(jnp.asarray(leaf[index]), alone)
        for got, expected in ((dx, alone_dx), (whole.e_g, alone.e_g), (whole.e_x, alone.e_x)):
            np.testing.assert_array_equal(got.addressable_shards[-1].data, expected)
