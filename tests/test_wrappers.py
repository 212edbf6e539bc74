"""Inside Optax's wrappers: the steps and the state of the plain optimizer.

A wrapper sees only plain arrays, so most tests here need one storage. It is that of 8 bits, because
the codes of two programs agree bit for bit, while floats may be rounded otherwise.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import algorithm_1, gradients
from states import CODE, normal, same_bits, same_types, tree

from optax_adadelta import adadelta
from optax_adadelta.diagnostics import averages, find_state

pytestmark = pytest.mark.usefixtures("optax_promotes")
tree_get = optax.tree_utils.tree_get
assert_same = functools.partial(chex.assert_trees_all_close, rtol=1e-6)
EIGHT = adadelta(state_bits=8)


def eighths(shape, seed):
    """Multiples of 1/8, whose sums are exact also in bfloat16."""
    return jnp.asarray(np.round(8 * np.random.default_rng(seed).standard_normal(shape)) / 8, "f4")


def gradient(seed):
    """Leaves of two shapes only, because each costs a compilation."""
    layer = {"w": eighths((3, 4), seed), "b": eighths((), seed + 50)}
    return {"layer": layer, "head": eighths((3, 4), seed + 90)}


A = [gradient(t) for t in range(6)]
LOW = jax.tree.map(lambda g: g.astype(jnp.bfloat16), A)
BAD = jax.tree.map(lambda g: g.at[..., :1].set(jnp.nan) if g.ndim else g, A[0])


def run(optimizer, grads):
    """The updates of every step and the last state; the types of the state stay."""
    state, made = optimizer.init(grads[0]), []
    for g in grads:
        updates, after = optimizer.update(g, state, grads[0])
        same_types(after, state)
        state = after
        made.append(updates)
    return made, state


def total(*grads):
    return jax.tree.map(lambda *g: sum(g), *grads)


def multi_steps(every, skip=None):
    skip = {} if skip is None else {"should_skip_update_fn": skip}
    return optax.MultiSteps(EIGHT, every, use_grad_mean=False, **skip).gradient_transformation()


# The wrapper, its gradients, those that Adadelta gets, and the steps at which it gets them.
SKIPPING = {
    "apply_if_finite gives up after two": (
        optax.apply_if_finite(EIGHT, 2),
        [A[0], BAD, A[1], BAD, BAD, BAD, A[2]],
        [A[0], A[1], BAD, A[2]],
        [0, 2, 5, 6],
    ),
    "conditionally_mask": (
        optax.conditionally_mask(EIGHT, lambda step: step % 3 != 1),
        A,
        [A[0], A[2], A[3], A[5]],
        [0, 2, 3, 5],
    ),
    "MultiSteps of more and more in bfloat16": (
        multi_steps(lambda step: step + 1),
        LOW,
        [LOW[0], total(*LOW[1:3]), total(*LOW[3:6])],
        [0, 2, 5],
    ),
    "MultiSteps skips what is not finite": (
        multi_steps(2, optax.skip_not_finite),
        [A[0], BAD, A[1], A[2], BAD, A[3]],
        [total(*A[:2]), total(*A[2:4])],
        [2, 5],
    ),
}


@pytest.mark.parametrize("name", SKIPPING)
def test_steps_that_a_wrapper_skips_are_as_if_they_never_were(name):
    wrapped, given, got, moves = SKIPPING[name]
    updates, state = run(wrapped._replace(update=jax.jit(wrapped.update)), given)
    expected, expected_state = run(EIGHT, got)
    assert_same([updates[i] for i in moves], expected)
    same_bits(find_state(state), expected_state)
    skipped = [updates[i] for i in set(range(len(given))) - set(moves)]
    assert not any(map(np.any, jax.tree.leaves(skipped)))


FROZEN = optax.set_to_zero()
# The wrapper and the leaves that take steps; the others keep still or pass.
PARTS = {
    "masked by a prefix": (
        lambda inner: optax.masked(inner, {"layer": True, "head": False}),
        ["b", "w"],
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
    "partition by a function": (
        lambda inner: optax.partition(
            {"train": inner, "freeze": FROZEN},
            lambda p: {"layer": {"w": "train", "b": "freeze"}, "head": "train"},
        ),
        ["w", "head"],
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_each_part_that_a_wrapper_chooses_steps_as_if_alone(name):
    wrap, chosen = PARTS[name]
    updates, state = run(wrap(EIGHT), A[:3])
    expected, alone = run(EIGHT, A[:3])
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


GROUPS = {
    "w": dict(learning_rate=0.5, rho=0.9, eps=1e-4, weight_decay=0.1),
    "z": dict(learning_rate=2.0, rho=0.6, eps=1e-8, weight_decay=0.0),
    "scalar": dict(learning_rate=0.0, rho=0.99, eps=1e-6, weight_decay=1.0),
}


def test_groups_of_parameters_have_hyperparameters_of_their_own():
    params = {"w": normal((3, 4)), "z": jnp.asarray([1j, 2 - 1j], "c8"), "scalar": jnp.float32(2.0)}
    groups = {name: adadelta(**given) for name, given in GROUPS.items()}
    optimizer = optax.partition(groups, {name: name for name in params})
    grads = [jax.tree.map(lambda p, t=t: 0.7**t * p, params) for t in range(4)]
    state = optimizer.init(params)
    for g in grads:
        updates, state = optimizer.update(g, state, params)
    for name, p in params.items():
        rate, rho, eps, decay = GROUPS[name].values()
        decayed = [np.asarray(g[name], "c16") + decay * np.asarray(p) for g in grads]
        *_, last = algorithm_1(decayed, rho, eps)
        np.testing.assert_allclose(updates[name], rate * last.dx, rtol=2e-6)
        group = find_state(state.inner_states[name])
        np.testing.assert_allclose(group.e_g[name], last.e_g, rtol=2e-6)
        np.testing.assert_allclose(group.e_x[name], last.e_x, rtol=2e-6)


@pytest.mark.parametrize("bits", [None, 8])
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


def test_complex_as_two_reals_is_adadelta_of_each_part():
    g = gradients("normal", 20, 16).reshape(20, 8, 2)
    optimizer = optax.contrib.split_real_and_imaginary(adadelta())
    z = jnp.asarray(g @ [1, 1j], jnp.complex64)
    state = optimizer.init(z[0])
    for t, expected in enumerate(algorithm_1(g)):
        updates, state = optimizer.update(z[t], state)
        np.testing.assert_allclose(updates, expected.dx @ [1, 1j], rtol=2e-6)
