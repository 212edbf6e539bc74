"""What the suites of Optax, torch, Keras and Optimisers.jl ask of an optimizer, in our words.

test_wrappers.py asks it inside Optax's wrappers. test_frameworks.py has what Flax asks, and
test_peers.py what needs torch or Keras.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from reference import algorithm_1
from states import BITS, CODE, DTYPES, normal, same_bits, same_types, trained, tree

from optax_adadelta import AdadeltaState, adadelta
from optax_adadelta.diagnostics import averages, find_state

tree_get, tree_set = optax.tree_utils.tree_get, optax.tree_utils.tree_set


# Codes then agree bit for bit, and floats within rounding, because loops are fused differently.
assert_same = functools.partial(chex.assert_trees_all_close, rtol=1e-6)


def eager(function):
    return function


def modulus_squared(z):
    return jnp.real(z * jnp.conj(z))


def rosenbrock(a, x):
    return modulus_squared(a - x[0]) + 100 * modulus_squared(x[1] - x[0] ** 2)


def distance(target, x):
    return sum(
        jnp.sum(modulus_squared(a - b))
        for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(target), strict=True)
    )


TREE = {"w": np.array([[2.0, -3.0], [0.5, 0.25]]), "more": [np.array(-1.5), np.array([4.0])]}
PROBLEMS = {
    "parabola": (functools.partial(distance, TREE), TREE),
    "parabola in the complex plane": (
        functools.partial(distance, {"z": np.array([1 - 2j, -3j, 0.5])}),
        {"z": np.array([1 - 2j, -3j, 0.5])},
    ),
    "Rosenbrock": (functools.partial(rosenbrock, 1.0), np.array([1.0, 1.0])),
    "Rosenbrock in the complex plane": (
        functools.partial(rosenbrock, 1 + 0.5j),
        np.array([1 + 0.5j, (1 + 0.5j) ** 2]),
    ),
}


def solve(optimizer, loss, target, steps):
    """The parameters after so many steps from zero in one compiled loop."""

    def step(carry, _):
        params, state = carry
        grads = jax.grad(loss)(params)
        # JAX's gradient of a real function of a complex number is the conjugate of the ascent.
        grads = jax.tree.map(jnp.conj, grads)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def loop(params):
        return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[0][0]

    return loop(jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.result_type(x)), target))


@BITS
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_usual_toy_problems_are_solved(name, bits):
    loss, target = PROBLEMS[name]
    optimizer = adadelta(optax.cosine_decay_schedule(0.3, 10_000), state_bits=bits)
    with jax.numpy_dtype_promotion("standard"):  # which Optax's schedule needs
        found = solve(optimizer, loss, target, 10_000)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-3), found, target)


# So large that the first update depends on the size of the gradient, and not on its sign alone.
EPS = 0.09
# Gradient, parameter, and the update: the wider of the two, of equal ones the parameter's.
KINDS = [
    (jnp.bfloat16, jnp.float32, jnp.float32),
    (jnp.float16, jnp.bfloat16, jnp.bfloat16),
    (jnp.float64, jnp.float32, jnp.float64),
    (jnp.complex64, jnp.complex128, jnp.complex128),
]


@BITS
@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: "-".join(k.__name__ for k in kinds))
def test_a_decayed_update_has_the_wider_dtype_in_every_storage(kinds, bits, request):
    if any(jnp.finfo(kind).bits > 32 for kind in kinds):
        request.getfixturevalue("x64")
    g, p = jnp.asarray([0.5, -2.0], kinds[0]), jnp.asarray([1.0, 3.0], kinds[1])
    (expected,) = algorithm_1(np.array([[0.5, -2.0]]) + 0.5 * np.array([[1.0, 3.0]]), eps=EPS)
    optimizer = adadelta(weight_decay=0.5, eps=EPS, state_bits=bits)
    state = optimizer.init(p)
    updates, after = optimizer.update(g, state, p)
    same_types(after, state)
    assert updates.dtype == kinds[2]
    rtol = max(4 * float(jnp.finfo(kinds[2]).eps), 1e-6 if bits is None else CODE[bits])
    np.testing.assert_allclose(np.asarray(updates, "c16"), expected.dx, rtol=rtol)
    plain = adadelta(state_bits=bits).update
    for update, dtype in ((plain, kinds[2]), (lambda g, state, _: plain(g, state), kinds[0])):
        updates, after = jax.eval_shape(update, g, state, p)
        same_types(after, state)
        assert updates.dtype == dtype


@BITS
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.complex64])
def test_both_branches_of_a_condition_have_the_types_of_the_state(dtype, bits):
    g = jnp.asarray([1.0, -2.0], dtype)
    optimizer = adadelta(0.5, weight_decay=0.1, state_bits=bits)
    state = optimizer.init(g)

    @jax.jit
    def step(flag, state):
        return jax.lax.cond(flag, lambda: optimizer.update(g, state, g), lambda: (g, state))

    same_types(step(True, state), optimizer.update(g, state, g))
    assert step(True, state)[1].count == 1
    same_bits(step(False, state), (g, state))


@BITS
def test_weakly_typed_parameters_leave_a_state_that_needs_no_second_compilation(bits, compiled):
    params = {"array": jnp.asarray(2.0), "number": 3.0}
    assert params["array"].weak_type
    optimizer = adadelta(state_bits=bits)
    state = optimizer.init(params)
    types = jax.tree.map(jax.typeof, state)
    assert jax.tree.map(jax.typeof, jax.jit(optimizer.init)(params)) == types
    same_types(jax.eval_shape(optimizer.init, params), state)
    assert {x.dtype for x in jax.tree.leaves((state.e_g, state.e_x))} == {jnp.dtype(DTYPES[bits])}
    update = jax.jit(optimizer.update)
    _, state = update(params, state, params)
    assert jax.tree.map(jax.typeof, state) == types
    before = compiled()
    update(params, state, params)
    assert compiled() == before


@BITS
@pytest.mark.parametrize("jit", [False, True])
def test_an_explicitly_sharded_state_has_the_same_types_after_init_and_update(bits, jit):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    wrap = jax.jit if jit else eager
    optimizer = adadelta(weight_decay=0.1, state_bits=bits)
    with jax.set_mesh(mesh):
        p = jax.device_put(jnp.ones((2, 8, 4), jnp.float16), NamedSharding(mesh, P(None, "x")))
        state = wrap(optimizer.init)(p)
        updates, after = wrap(optimizer.update)(p, state, p)
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
    shardings = {jax.typeof(x).sharding for x in (p, updates, state.e_g, state.e_x)}
    assert len(shardings) == 1
    assert shardings.pop().spec[1] == "x"


@BITS
def test_data_parallel_replicas_step_with_the_mean_gradient_and_stay_equal(bits):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    # Multiples of 1/8, so that the mean is exact in any order.
    batches = [jnp.round(8 * normal((8, 6), t)) / 8 for t in range(4)]
    optimizer = adadelta(state_bits=bits)

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P("x"), P()), out_specs=P())
    def step(g, state):
        return optimizer.update(jax.lax.pmean(g[0], "x"), state)

    state = alone = optimizer.init(batches[0][0])
    for g in batches:
        updates, state = step(g, state)
        expected, alone = optimizer.update(g.mean(0), alone)
        np.testing.assert_allclose(updates, expected, rtol=1e-6)
        assert_same(state, alone)


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


CHANGES = {"learning_rate": (1.0, 0.25), "rho": (0.95, 0.55), "eps": (1e-6, 1e-3)}


@BITS
@pytest.mark.parametrize("name", CHANGES)
def test_a_hyperparameter_changed_in_mid_run_counts_from_then_on_and_keeps_the_averages(name, bits):
    before, after = CHANGES[name]
    g = np.linspace(0.5, 1.5, 8) * np.array([1, -1, 1, -8, 8, -8])[:, None]
    built = functools.partial(adadelta, state_bits=bits)
    injected = optax.inject_hyperparams(built, static_args="state_bits")(**{name: before})
    state, own = built().init(g[0]), injected.init(jnp.float32(g[0]))
    given = {"rho": 0.95, "eps": 1e-6} | {name: lambda t: before if t < 3 else after}
    rate = given.pop("learning_rate", lambda t: 1.0)
    kept = {name: before if callable(h) else h for name, h in given.items()}
    # An update has half of the error of each average, which may be one code.
    rtol = 1e-5 if bits is None else CODE[bits]
    for t, (step, unchanged) in enumerate(
        zip(algorithm_1(g, **given), algorithm_1(g, **kept), strict=True)
    ):
        if t == 3:
            own.hyperparams[name] = jnp.float32(after)
        optimizer = built(**{name: before if t < 3 else after})
        updates, state = optimizer.update(jnp.float32(g[t]), state)
        theirs, own = injected.update(jnp.float32(g[t]), own, jnp.float32(g[t]))
        for found in (updates, theirs):
            np.testing.assert_allclose(found, rate(t) * step.dx, rtol=rtol)
        if t == 3:
            # So large a change that a code's width cannot hide it.
            ratio = rate(t) * step.dx / unchanged.dx
            assert np.all((ratio < 1 - rtol) | (ratio > 1 + rtol))
    assert state.count == own.inner_state.count == 6


class FollowsAnArgument:
    """A schedule with a state, which reads an extra argument of the update."""

    def init(self):
        return jnp.float32(1.0)

    def update(self, state, **extra):
        return extra["value"]

    def __call__(self, state, **extra):
        return state


@BITS
def test_a_schedule_with_a_state_of_its_own_is_injected(bits):
    built = functools.partial(adadelta, state_bits=bits)
    injected = optax.inject_hyperparams(built, static_args="state_bits")(FollowsAnArgument())
    g = normal((5,))
    state, plain = injected.init(g), built().init(g)
    for value in (0.5, 0.25):
        updates, state = injected.update(g, state, g, value=jnp.float32(value))
        expected, plain = built().update(g, plain)
        np.testing.assert_allclose(updates, state.hyperparams["learning_rate"] * expected, 1e-6)
        assert_same(state.inner_state, plain)
    assert state.hyperparams_states["learning_rate"] == 0.25


@BITS
def test_the_averages_in_a_state_are_mapped_beside_another_tree_and_the_rest_apart(bits):
    optimizer = optax.chain(optax.scale(2.0), adadelta(state_bits=bits))
    state = optimizer.init(tree())
    names = {"w": "W", "b": ["B"]}
    rest = []
    mapped = optax.tree_map_params(
        optimizer, lambda _, name: name, state, names, transform_non_params=rest.append
    )
    assert mapped[1] == AdadeltaState(None, names, names, None)
    assert [x.dtype for x in rest] == [jnp.int32] + ([] if bits is None else [jnp.float32])


@BITS
def test_a_state_is_found_among_others_by_its_class_and_set_as_a_whole(bits):
    optimizer = optax.chain(optax.scale_by_schedule(lambda count: 1.0), adadelta(state_bits=bits))
    state = optimizer.init(tree())
    with pytest.raises(KeyError, match="count"):
        tree_get(state, "count")
    replaced = tree_set(state, AdadeltaState=trained(bits))
    same_bits(tree_get(replaced, "AdadeltaState"), trained(bits))
    both = {"e_g": trained(bits).e_x, "e_x": trained(bits).e_g}
    same_bits({name: tree_get(tree_set(state, **both), name) for name in both}, both)
    assert replaced[0].count == 0
    assert replaced[1].count == 3


@BITS
@pytest.mark.parametrize("mask", [None, {"w": True, "f": False, "n": False, "b": [False]}])
def test_a_whole_model_may_stand_beside_gradients_of_a_part_of_it(bits, mask):
    part = {**tree(), "f": None, "n": None}
    model = {**tree(1), "f": {"any": jnp.tanh, "steps": 7}, "n": jnp.arange(3)}
    optimizer = adadelta(1.0, 0.95, EPS, 0.5, mask, state_bits=bits)
    state = optimizer.init(part)
    found = optimizer.update(part, state, model)
    same_bits(found, optimizer.update(part, state, {**tree(1), "f": None, "n": None}))
    for updates, g, p, decay in (
        (found[0]["w"], part["w"], model["w"], 0.5),
        (found[0]["b"][0], part["b"][0], model["b"][0], 0.0 if mask else 0.5),
    ):
        (expected,) = algorithm_1([np.float64(g) + decay * np.float64(p)], eps=EPS)
        np.testing.assert_allclose(updates, expected.dx, rtol=1e-5 if bits is None else CODE[bits])


@BITS
def test_one_array_in_two_places_has_averages_in_each(bits):
    """Each place steps by its own gradient, and its state can be donated."""
    w = normal((4,))
    optimizer = adadelta(state_bits=bits)
    state = optimizer.init({"a": w, "b": w})
    update = jax.jit(optimizer.update, donate_argnums=1)
    for g in ({"a": w, "b": 9 * w}, {"a": 9 * w, "b": w}):
        updates, state = update(g, state)
    for name, factors in {"a": (1, 9), "b": (9, 1)}.items():
        *_, last = algorithm_1(np.float64([factor * w for factor in factors]))
        np.testing.assert_allclose(
            updates[name], last.dx, rtol=1e-5 if bits is None else CODE[bits]
        )


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
