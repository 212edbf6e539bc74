"""Inside Optax's wrappers, in every storage: the steps and the state of the plain optimizer."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from states import BITS, same_bits, same_types

from optax_adadelta import adadelta
from optax_adadelta.diagnostics import find_state

tree_get = optax.tree_utils.tree_get


@pytest.fixture(autouse=True)
def optax_wrappers_promote():
    """Some of Optax's own wrappers mix dtypes, so nothing here can be strict about it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def eighths(shape, seed):
    """Multiples of 1/8, whose sums are exact also in bfloat16."""
    return jnp.asarray(np.round(8 * np.random.default_rng(seed).standard_normal(shape)) / 8, "f4")


def gradient(seed):
    """Leaves of two shapes only, because each costs a compilation."""
    layer = {"w": eighths((3, 4), seed), "b": eighths((), seed + 50)}
    return {"layer": layer, "head": eighths((3, 4), seed + 90)}


def eager(function):
    return function


def run(optimizer, grads, wrap=jax.jit):
    """The updates of every step and the last state; the types of the state stay."""
    state, update, made = optimizer.init(grads[0]), wrap(optimizer.update), []
    for g in grads:
        updates, after = update(g, state, grads[0])
        same_types(after, state)
        state = after
        made.append(updates)
    return made, state


# Codes then agree bit for bit, and floats within rounding, because loops are fused differently.
assert_same = functools.partial(chex.assert_trees_all_close, rtol=1e-6)


A = [gradient(t) for t in range(6)]
LOW = jax.tree.map(lambda g: g.astype(jnp.bfloat16), A)
BAD = jax.tree.map(lambda g: g.at[..., :1].set(jnp.nan) if g.ndim else g, A[0])
HUGE = jax.tree.map(lambda g: g + 64, A[0])


def total(*grads):
    return jax.tree.map(lambda *g: sum(g), *grads)


def multi_steps(inner, every, skip=None):
    skip = {} if skip is None else {"should_skip_update_fn": skip}
    return optax.MultiSteps(inner, every, use_grad_mean=False, **skip).gradient_transformation()


# The wrapper, its gradients, those that Adadelta gets, and the steps at which it gets them.
SKIPPING = {
    "apply_if_finite gives up after two": (
        lambda inner: optax.apply_if_finite(inner, 2),
        [A[0], BAD, A[1], BAD, BAD, BAD, A[2]],
        [A[0], A[1], BAD, A[2]],
        [0, 2, 5, 6],
    ),
    "conditionally_mask": (
        lambda inner: optax.conditionally_mask(inner, lambda step: step % 3 != 1),
        A,
        [A[0], A[2], A[3], A[5]],
        [0, 2, 3, 5],
    ),
    "MultiSteps of more and more": (
        lambda inner: multi_steps(inner, lambda step: step + 1),
        A,
        [A[0], total(*A[1:3]), total(*A[3:6])],
        [0, 2, 5],
    ),
    "MultiSteps of more and more in bfloat16": (
        lambda inner: multi_steps(inner, lambda step: step + 1),
        LOW,
        [LOW[0], total(*LOW[1:3]), total(*LOW[3:6])],
        [0, 2, 5],
    ),
    "MultiSteps skips what is not finite": (
        lambda inner: multi_steps(inner, 2, optax.skip_not_finite),
        [A[0], BAD, A[1], A[2], BAD, A[3]],
        [total(*A[:2]), total(*A[2:4])],
        [2, 5],
    ),
    "MultiSteps skips what is large": (
        lambda inner: multi_steps(
            inner, 2, functools.partial(optax.skip_large_updates, max_squared_norm=1e3)
        ),
        [HUGE, A[0], A[1], HUGE, A[2], A[3]],
        [total(*A[:2]), total(*A[2:4])],
        [2, 5],
    ),
}


@BITS
@pytest.mark.parametrize("name", SKIPPING)
def test_steps_that_a_wrapper_skips_are_as_if_they_never_were(name, bits):
    wrap, given, got, moves = SKIPPING[name]
    updates, state = run(wrap(adadelta(state_bits=bits)), given)
    expected, expected_state = run(adadelta(state_bits=bits), got, eager)
    assert_same([updates[i] for i in moves], expected)
    assert_same(find_state(state), expected_state)
    assert not any(
        np.any(leaf)
        for i in set(range(len(given))) - set(moves)
        for leaf in jax.tree.leaves(updates[i])
    )


FROZEN = optax.set_to_zero()
# The wrapper and the leaves that take steps; the others keep still or pass.
PARTS = {
    "named_chain": (
        lambda inner: optax.named_chain(("clip", optax.clip(1e3)), ("adadelta", inner)),
        ["b", "w", "head"],
    ),
    "masked by a prefix": (
        lambda inner: optax.masked(inner, {"layer": True, "head": False}),
        ["b", "w"],
    ),
    "masked by a function": (
        lambda inner: optax.masked(inner, lambda p: jax.tree.map(lambda x: x.ndim > 0, p)),
        ["w", "head"],
    ),
    "masked twice": (
        lambda inner: optax.masked(
            optax.masked(inner, {"layer": {"w": True, "b": False}, "head": True}),
            {"layer": True, "head": False},
        ),
        ["w"],
    ),
    "selective_transform": (
        lambda inner: optax.selective_transform(
            inner, freeze_mask={"layer": {"w": True, "b": False}, "head": False}
        ),
        ["b", "head"],
    ),
    "frozen first": (
        lambda inner: optax.chain(optax.freeze({"layer": False, "head": True}), inner),
        ["b", "w"],
    ),
    "partition by a function": (
        lambda inner: optax.partition(
            {"train": inner, "freeze": FROZEN},
            lambda p: {"layer": {"w": "train", "b": "freeze"}, "head": "train"},
        ),
        ["w", "head"],
    ),
    "partition with labels of whole parts": (
        lambda inner: optax.partition({0: inner, 1: FROZEN}, {"layer": 0, "head": 1}),
        ["b", "w"],
    ),
}


@BITS
@pytest.mark.parametrize("name", PARTS)
def test_each_part_that_a_wrapper_chooses_steps_as_if_alone(name, bits):
    wrap, chosen = PARTS[name]
    grads = A[:3]
    optimizer = wrap(adadelta(state_bits=bits))
    updates, state = run(optimizer, grads, eager)
    expected, alone = run(adadelta(state_bits=bits), grads, eager)
    last = jax.tree.leaves(expected[-1])
    for part, like in ((updates[-1], last), (tree_get(state, "e_g"), jax.tree.leaves(alone.e_g))):
        for (path, leaf), e in zip(
            jax.tree.leaves_with_path(part, is_leaf=lambda x: isinstance(x, optax.MaskedNode)),
            like,
            strict=True,
        ):
            if path[-1].key in chosen:
                same_bits(leaf, e)
            else:
                assert isinstance(leaf, optax.MaskedNode) or not np.array_equal(leaf, e)


def plus(a, b, factor=1.0):
    return jax.tree.map(lambda x, y: x + factor * y, a, b)


@BITS
def test_lookahead_moves_half_way_to_where_three_fast_steps_lead(bits):
    inner = adadelta(state_bits=bits)
    optimizer = optax.lookahead(inner, sync_period=3, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(A[0])
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for g in A:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
    steps, alone = run(inner, A, eager)
    slow = A[0]
    for t in (0, 3):
        slow = plus(slow, plus(plus(steps[t], steps[t + 1]), steps[t + 2]), 0.5)
    chex.assert_trees_all_close(params.slow, slow, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(params.fast, params.slow, rtol=1e-5, atol=1e-7)
    assert_same(find_state(state), alone)


@BITS
@pytest.mark.parametrize("opaque", [False, True])
def test_sam_steps_with_the_gradient_at_the_worst_point_nearby(opaque, bits):
    """The loss is half the squared norm, so that the gradient is the parameters."""
    inner = adadelta(state_bits=bits)
    optimizer = optax.contrib.sam(inner, optax.sgd(0.5), opaque_mode=opaque)
    params = expected = A[0]
    state, alone = optimizer.init(params), inner.init(params)
    given = {"grad_fn": lambda params, _: params} if opaque else {}
    update = jax.jit(functools.partial(optimizer.update, **given))
    for _ in range(3):
        for _ in range(1 if opaque else 2):
            updates, after = update(params, state, params)
            same_types(after, state)
            params, state = optax.apply_updates(params, updates), after
        step, alone = inner.update(jax.tree.map(lambda p: 1.5 * p, expected), alone)
        expected = plus(expected, step)
        chex.assert_trees_all_close(params, expected, rtol=1e-5)
    assert state.opt_state.count == 3


@BITS
def test_reduce_on_plateau_halves_the_updates_and_leaves_the_averages(bits):
    inner = adadelta(state_bits=bits)
    optimizer = optax.chain(inner, optax.contrib.reduce_on_plateau(factor=0.5, patience=2))
    update = functools.partial(optimizer.update, value=jnp.float32(1.0))
    updates, state = run(optimizer._replace(update=update), A)
    steps, alone = run(inner, A, eager)
    # The first value is the best one; every second that is no better halves the scale.
    scales = [1, 1, 0.5, 0.5, 0.25, 0.25]
    for found, step, scale in zip(updates, steps, scales, strict=True):
        assert_same(found, jax.tree.map(lambda u, scale=scale: scale * u, step))
    assert_same(state[0], alone)


@BITS
def test_parameters_are_kept_from_falling_below_zero(bits):
    optimizer = optax.chain(adadelta(state_bits=bits), optax.keep_params_nonnegative())
    params = {"w": jnp.array([1e-3, 1.0, 0.0])}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(5):
        updates, state = update({"w": jnp.array([1.0, 1.0, 2.0])}, state, params)
        params = optax.apply_updates(params, updates)
    assert params["w"][0] == params["w"][2] == 0
    assert 0.9 < params["w"][1] < 1


SOLVERS = {
    "mechanize": lambda inner: optax.contrib.mechanize(inner, weight_decay=0.0),
    "schedule_free": lambda inner: optax.contrib.schedule_free(inner, 1.0, b1=0.9),
    "reduce_on_plateau": lambda inner: optax.chain(
        inner, optax.contrib.reduce_on_plateau(patience=50, factor=0.5)
    ),
    "MultiSteps": lambda inner: optax.MultiSteps(inner, 2).gradient_transformation(),
}


@BITS
@pytest.mark.parametrize("name", SOLVERS)
def test_a_parabola_is_solved_inside_wrappers_that_change_the_steps(name, bits):
    optimizer = optax.with_extra_args_support(SOLVERS[name](adadelta(state_bits=bits)))
    target = jnp.array([2.0, -3.0, 0.5])

    def loss(x):
        return jnp.sum((x - target) ** 2)

    def step(carry, _):
        x, state = carry
        value, grad = jax.value_and_grad(loss)(x)
        updates, state = optimizer.update(grad, state, x, value=value)
        return (optax.apply_updates(x, updates), state), None

    @jax.jit
    def solved(x):
        x, state = jax.lax.scan(step, (x, optimizer.init(x)), length=6000)[0]
        return optax.contrib.schedule_free_eval_params(state, x) if name == "schedule_free" else x

    assert loss(solved(jnp.zeros(3))) < 1e-3 * loss(jnp.zeros(3))


@BITS
def test_a_line_search_after_it_never_lets_the_loss_rise(bits):
    def loss(x):
        return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2

    optimizer = optax.chain(
        adadelta(state_bits=bits), optax.scale_by_backtracking_linesearch(20, store_grad=True)
    )
    x, losses = jnp.zeros(2), []
    state = optimizer.init(x)

    @jax.jit
    def step(x, state):
        value, grad = optax.value_and_grad_from_state(loss)(x, state=state)
        updates, state = optimizer.update(grad, state, x, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(x, updates), state, value

    for _ in range(200):
        x, state, value = step(x, state)
        losses.append(float(value))
    assert np.all(np.diff(losses) <= 1e-6)
    assert losses[-1] < 0.7 * losses[0]
    assert int(tree_get(state, "count")) == 200
