"""The recipes of docs/recipes.md, as they stand there, against NumPy and what they promise."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import recipes
from reference import gradients, one_step
from states import BITS, CODE, apart, same_bits, same_types

from optax_adadelta import adadelta
from optax_adadelta.diagnostics import averages

pytestmark = pytest.mark.scripts

STEPS = 12


@pytest.fixture(scope="module")
def sections():
    return recipes.run("recipes.md")


@pytest.fixture(scope="module")
def page(sections):
    """The names that the page's code defines."""
    return list(sections.values())[-1]


@pytest.fixture(autouse=True)
def as_readers_have_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def updates_of(optimizer, grads, params):
    """The updates for these gradients; the parameters do not move."""
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for g in grads:
        updates, state = update(g, state, params)
        yield updates


@pytest.mark.parametrize("kind", ["torch", "part of the loss", "decoupled"])
def test_the_order_of_clipping_and_decay(sections, kind):
    names = sections["Order of clipping and decay"]
    page = (recipes.DOCS / "recipes.md").read_text(encoding="utf-8")
    cells = dict(re.findall(r"^\| (torch|L2).* \| `(.+)` \|$", page, re.MULTILINE))
    code = {"torch": cells["torch"], "part of the loss": cells["L2"], "decoupled": "optimizer"}
    optimizer = eval(code[kind], {**names, "wd": 0.3})
    params = {"kernel": 4 * random(3, 2), "bias": 4 * random(2, seed=1)}
    grads = [{"kernel": 3 * random(3, 2, seed=t), "bias": random(2, seed=t)} for t in range(STEPS)]
    state = {name: (0.0, 0.0) for name in params}
    given, start = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (grads, params))
    found = updates_of(optimizer, given, start)
    shrunk = []
    for g, updates in zip(grads, found, strict=True):
        if kind == "part of the loss":
            g = {name: g[name] + 0.3 * params[name] for name in g}
        norm = np.sqrt(sum(np.sum(x**2) for x in g.values()))
        shrunk.append(norm > 5)
        g = {name: x * min(1, 5 / norm) for name, x in g.items()}
        if kind == "torch":
            g = {name: g[name] + 0.3 * params[name] for name in g}
        for name in params:
            dx, *averages = one_step(g[name], *state[name], 0.95, 1e-6)
            state[name] = averages
            if kind == "decoupled" and name == "kernel":
                dx = dx - 1e-4 * params[name]
            np.testing.assert_allclose(updates[name], dx, rtol=1e-4)
    assert any(shrunk)


def test_scaled_gradients_that_float16_would_lose_make_the_right_steps(sections):
    names = sections["Mixed precision with loss scaling"]
    step, optimizer = names["half_step"], names["optimizer"]
    n = 2**16
    x = np.float64(np.float16(random(n, 4)))
    y = np.float64(np.float16(x @ np.array([1e-3, -1e-3, 5e-4, 0.0])))
    ends = {}
    for power in (0, 10):
        params, scale = jnp.zeros(4), jnp.float32(2.0**power)
        state = optimizer.init(params)
        for _ in range(STEPS):
            params, state, scale = step(params, state, scale, jnp.asarray(x), jnp.asarray(y))
        assert state.total_notfinite == 0
        ends[power] = params
    p, e_g, e_x = np.zeros(4), np.zeros(4), np.zeros(4)
    for _ in range(STEPS):
        dx, e_g, e_x = one_step(2 / n * x.T @ (x @ p - y), e_g, e_x, 0.95, 1e-6)
        p = p + dx
    error = {power: np.linalg.norm(end - p) / np.linalg.norm(p) for power, end in ends.items()}
    assert error[10] < 0.01 < 0.1 < error[0]


def test_a_step_that_overflows_changes_the_scale_alone(sections):
    names = sections["Mixed precision with loss scaling"]
    step, optimizer = names["half_step"], names["optimizer"]
    params, x, y = jnp.array([3.0, -2.0]), jnp.eye(2), jnp.zeros(2)
    params, state, scale = step(params, optimizer.init(params), jnp.float32(8.0), x, y)
    assert 8 < scale < 8.01
    after, state_after, scale = step(params, state, jnp.float32(2.0**20), x, y)
    assert scale == 2.0**19
    same_bits((after, state_after.inner_state), (params, state.inner_state))
    assert (state_after.notfinite_count, state_after.total_notfinite) == (1, 1)


@BITS
def test_old_rows_of_a_vocabulary_go_on_and_new_ones_start_fresh(sections, bits):
    put = sections["A vocabulary that grows"]["put"]
    optimizer = optax.chain(optax.trace(0.9), adadelta(state_bits=bits))
    old, new = (jnp.asarray(random(n, 4, seed=n), jnp.float32) for n in (5, 3))
    _, before = optimizer.update(old, optimizer.init(old))
    both = jnp.concatenate([old, new])
    state = jax.tree.map(put, before, optimizer.init(both))
    same_types(state, optimizer.init(both))
    updates, _ = optimizer.update(both, state)
    expected, _ = optimizer.update(old, before)
    begun, _ = optimizer.update(new, optimizer.init(new))
    np.testing.assert_allclose(updates[:5], expected, rtol=1e-6)
    # Codes are rounded by the place of an element in its array.
    np.testing.assert_allclose(updates[5:], begun, rtol=1e-6 + CODE[bits])


def test_lazy_rows_step_as_rows_that_are_leaves_of_their_own(page):
    size, width, steps = 20, 4, 30
    rng = np.random.default_rng(0)
    optimizer = adadelta()
    table = jnp.asarray(rng.standard_normal((size, width)), jnp.float32)
    state = optimizer.init(table)
    leaves = list(table)
    states = [optimizer.init(leaf) for leaf in leaves]
    for g in gradients("normal", steps, 8 * width).reshape(steps, 8, width):
        g = jnp.asarray(g, jnp.float32)
        ids = rng.integers(0, size, 8)
        rows, places = jnp.unique(jnp.asarray(ids), size=8, fill_value=size, return_inverse=True)
        summed = jnp.zeros((8, width)).at[places].add(g)
        table, state = page["update_rows"](table, state, rows, summed)
        for row, total in zip(rows, summed, strict=True):
            if row < size:
                updates, states[row] = optimizer.update(total, states[row])
                leaves[row] = optax.apply_updates(leaves[row], updates)
    np.testing.assert_allclose(table, leaves, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(state.e_g, [state.e_g for state in states], rtol=2e-6)
    np.testing.assert_allclose(state.e_x, [state.e_x for state in states], rtol=2e-6)
    assert state.count == steps


@pytest.mark.parametrize("conjugate", [True, False])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("bits", [None, 16])
def test_complex_parameters_are_fitted_if_gradients_are_conjugated(page, bits, split, conjugate):
    target = 1.0 - 2.0j
    optimizer = adadelta(eps=1e-4, state_bits=bits)
    if split:
        optimizer = optax.contrib.split_real_and_imaginary(optimizer)
    if conjugate:
        optimizer = optax.chain(page["conjugate"], optimizer)

    def step(carry, _):
        z, state = carry
        grads = jax.grad(lambda z: jnp.abs(z - target) ** 2)(z)
        updates, state = optimizer.update(grads, state, z)
        return (optax.apply_updates(z, updates), state), None

    z = jnp.zeros((), jnp.complex64)
    (z, _), _ = jax.lax.scan(step, (z, optimizer.init(z)), length=1000)
    assert abs(z - target) < 1e-2 if conjugate else abs(z - target) > 1e5


def test_workers_go_on_from_the_mean_of_their_parameters_and_states():
    names = recipes.run_section("many_devices.md", "Average the workers (local SGD)")
    params, grad = names["new_params"](), jax.grad(names["loss_fn"])
    state = names["rule"].init(params)
    batches = np.float32(random(4, 64, 16)), np.float32(random(4, 64, 8, seed=1))
    found, state = names["train"](params, state, batches)

    ends = []
    for rows in np.split(np.arange(64), 8):
        alone = {name: (np.float64(p), 0.0, 0.0) for name, p in params.items()}
        for x, y in zip(*batches, strict=True):
            at = {name: np.float32(p) for name, (p, *_) in alone.items()}
            for name, g in grad(at, x[rows], y[rows]).items():
                p, *old = alone[name]
                dx, *new = one_step(np.float64(g), *old, 0.95, 1e-6)
                alone[name] = p + dx, *new
        ends.append(alone)
    assert state.count == 4
    for name, start in params.items():
        p, e_g, e_x = (np.mean([end[name][i] for end in ends], axis=0) for i in range(3))
        distance = np.linalg.norm(p - start)
        assert np.linalg.norm(found[name] - p) < 0.1 * distance
        # The state that is handed on has 8 bits.
        assert apart(averages(state).e_g[name], e_g) < 2 * CODE[8]
        assert apart(averages(state).e_x[name], e_x) < 3 * CODE[8]
