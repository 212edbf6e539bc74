"""Inside Optax's wrappers, in every storage: the steps and the state of the plain optimizer."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import algorithm_1, gradients
from states import BITS, CODE, normal, same_bits, same_types, tree

from optax_adadelta import adadelta
from optax_adadelta.diagnostics import averages, find_state

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


@pytest.mark.parametrize("bits", [None, 8])
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


GROUPS = {
    "w": dict(learning_rate=0.5, rho=0.9, eps=1e-4, weight_decay=0.1),
    "z": dict(learning_rate=2.0, rho=0.6, eps=1e-8, weight_decay=0.0),
    "scalar": dict(learning_rate=0.0, rho=0.99, eps=1e-6, weight_decay=1.0),
}


@BITS
def test_groups_of_parameters_have_hyperparameters_of_their_own(bits):
    params = {"w": normal((3, 4)), "z": jnp.asarray([1j, 2 - 1j], "c8"), "scalar": jnp.float32(2.0)}
    groups = {name: adadelta(**given, state_bits=bits) for name, given in GROUPS.items()}
    optimizer = optax.partition(groups, {name: name for name in params})
    grads = [jax.tree.map(lambda p, t=t: 0.7**t * p, params) for t in range(4)]
    state = optimizer.init(params)
    for g in grads:
        updates, state = optimizer.update(g, state, params)
    for name, p in params.items():
        alone = groups[name].init(p)
        for g in grads:
            expected, alone = groups[name].update(g[name], alone, p)
        assert_same(updates[name], expected)
        group = find_state(state.inner_states[name])
        assert_same((group.e_g[name], group.e_x[name]), (alone.e_g, alone.e_x))
        if bits is None:
            rate, rho, eps, decay = GROUPS[name].values()
            decayed = [np.asarray(g[name], "c16") + decay * np.asarray(p) for g in grads]
            *_, last = algorithm_1(decayed, rho, eps)
            np.testing.assert_allclose(updates[name], rate * last.dx, rtol=2e-6)


@BITS
def test_a_flat_vector_of_the_parameters_takes_the_steps_of_the_tree(bits):
    optimizer = adadelta(state_bits=bits)
    flat, unravel = jax.flatten_util.ravel_pytree(tree())
    state, whole = optimizer.init(flat), optimizer.init(tree())
    wrapped = optax.flatten(optimizer)
    inner = wrapped.init(tree())
    for t in range(3):
        g = tree(t)
        updates, state = optimizer.update(jax.flatten_util.ravel_pytree(g)[0], state)
        flattened, inner = wrapped.update(g, inner)
        expected, whole = optimizer.update(g, whole)
        same_bits(unravel(updates), flattened)
        # An element's index is another, so a value may be rounded to the neighbouring code.
        rtol = 1e-6 if bits is None else 2 * CODE[bits]
        chex.assert_trees_all_close(flattened, expected, rtol=rtol)
    same_bits(inner, state)
    assert jax.tree.map(np.shape, averages(inner)) == ((97,), (97,))


def test_integers_are_frozen():
    params = {"w": jnp.ones(3), "step": jnp.int32(7)}
    optimizer = optax.multi_transform(
        {"train": adadelta(), "freeze": FROZEN}, {"w": "train", "step": "freeze"}
    )
    grads = {"w": jnp.ones(3), "step": jnp.int32(5)}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    assert updates["step"] == 0
    assert (updates["w"] < 0).all()


def test_zero_nans_makes_a_bad_coordinate_stand_still():
    optimizer = optax.chain(optax.zero_nans(), adadelta())
    state = optimizer.init(jnp.ones(2))
    for g in ([1.0, 2.0], [1.0, jnp.nan], [1.0, 2.0]):
        updates, state = optimizer.update(jnp.array(g), state)
        assert (updates[1] == 0) == np.isnan(g[1])
    assert jnp.isfinite(state[1].e_g).all()


def test_maximising_is_a_chain_and_gives_the_negated_path():
    ascent = optax.chain(optax.scale(-1.0), adadelta())
    x = jnp.array([1.0, -2.0])
    state, descent_state = ascent.init(x), adadelta().init(x)
    for _ in range(5):
        up, state = ascent.update(2 * x, state)
        down, descent_state = adadelta().update(2 * x, descent_state)
        np.testing.assert_array_equal(up, -down)


def test_complex_as_two_reals_is_adadelta_of_each_part():
    g = gradients("normal", 20, 16).reshape(20, 8, 2)
    optimizer = optax.contrib.split_real_and_imaginary(adadelta())
    z = jnp.asarray(g @ [1, 1j], jnp.complex64)
    state = optimizer.init(z[0])
    for t, expected in enumerate(algorithm_1(g)):
        updates, state = optimizer.update(z[t], state)
        np.testing.assert_allclose(updates, expected.dx @ [1, 1j], rtol=2e-6)
