"""Hyperparameters: what may be given, what is refused, and that no value recompiles."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import algorithm_1, gradients
from states import QUANTIZED

from optax_adadelta import adadelta, scale_by_adadelta

NAMES = ("learning_rate", "rho", "eps", "weight_decay")
STEPS = 30
GRADIENTS = gradients("normal", STEPS, 64)
GIVEN = {"learning_rate": 0.5, "rho": 0.9, "eps": 1e-4, "weight_decay": 0.1}


def path_of(optimizer):
    """The parameters after each step; the gradients do not depend on the parameters."""
    params = jnp.ones(64)
    state = optimizer.init(params)
    for g in GRADIENTS:
        updates, state = optimizer.update(jnp.asarray(g, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        yield params


def reference_path(learning_rate=1.0, rho=0.95, eps=1e-6, weight_decay=0.0):
    """The same in float64; each hyperparameter is a number or a function of the step."""
    learning_rate, weight_decay = (
        h if callable(h) else lambda t, h=h: h for h in (learning_rate, weight_decay)
    )
    params, decayed = np.ones(64), []
    for t, g in enumerate(GRADIENTS):
        decayed.append(g + weight_decay(t) * params)
        *_, last = algorithm_1(decayed, rho, eps)
        params = params + learning_rate(t) * last.dx
        yield params


def assert_follows(optimizer, **hyperparameters):
    for got, expected in zip(path_of(optimizer), reference_path(**hyperparameters), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-6)


@pytest.mark.parametrize(
    "kind",
    [float, np.float64, np.float32, np.array, jnp.asarray, lambda value: jnp.array(value, "f4")],
    ids=["float", "float64", "float32", "numpy array", "weakly typed array", "array"],
)
def test_a_hyperparameter_is_a_number_or_an_array(kind):
    assert_follows(adadelta(**{name: kind(value) for name, value in GIVEN.items()}), **GIVEN)


def test_no_learning_rate_is_one():
    for got, expected in zip(path_of(adadelta(None)), path_of(adadelta()), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("jit", [False, True])
def test_a_hyperparameter_is_a_schedule_of_the_updates_made_so_far(jit):
    shrunk = 1.02 ** -np.arange(STEPS)
    tables = {name: jnp.asarray(value * shrunk, jnp.float32) for name, value in GIVEN.items()}
    optimizer = adadelta(
        **{name: lambda t, table=table: table[t] for name, table in tables.items()}
    )
    if jit:
        optimizer = optax.GradientTransformation(optimizer.init, jax.jit(optimizer.update))
    expected = {name: lambda t, v=value: v * shrunk[t] for name, value in GIVEN.items()}
    assert_follows(optimizer, **expected)


def test_a_schedule_may_return_a_number():
    returned = {name: lambda count, value=value: value for name, value in GIVEN.items()}
    assert_follows(adadelta(**returned), **GIVEN)


def test_a_hyperparameter_may_be_traced():
    @jax.jit
    def final(given):
        return list(itertools.islice(path_of(adadelta(**given)), 4))

    first = itertools.islice(reference_path(**GIVEN), 4)
    for got, expected in zip(final(GIVEN), first, strict=True):
        np.testing.assert_allclose(got, expected, rtol=5e-6)


@pytest.mark.usefixtures("x64")
def test_a_float64_array_is_as_exact_as_a_number():
    g = jnp.asarray(GRADIENTS, jnp.float64)
    optimizer = adadelta(**{name: jnp.float64(value) for name, value in GIVEN.items()})
    params, state = jnp.ones(64), adadelta().init(jnp.ones(64))
    for t, expected in enumerate(reference_path(0.5, 0.9, 1e-4, lambda t: 0.1)):
        updates, state = optimizer.update(g[t], state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params, expected, rtol=1e-12)


def test_a_hundred_values_compile_one_update(compiled):
    params = {"w": jnp.ones((5, 7)), "b": jnp.ones(7)}
    values = 0.01 + np.random.default_rng(0).random(100) / 2
    arrays = [jnp.asarray(value, jnp.float32) for value in values]
    state = adadelta().init(params)
    for given in (0.125, jnp.float32(0.125)):
        _, state = adadelta(given, given, given, given).update(params, state, params)
    before = compiled()
    for i, (value, array) in enumerate(zip(values, arrays, strict=True)):
        kinds = [float(value), np.float32(value), np.array(value), lambda count, v=value: v]
        for given in (kinds[i % 4], array):
            _, state = adadelta(given, given, given, given).update(params, state, params)
    assert compiled() == before
    assert state.count == 202


@jax.jit
def slowly(value):
    """The value, after a second of computation or more."""
    x = jnp.full((400, 400), 1 / 400)
    x = jax.lax.fori_loop(0, 400, lambda _, y: y @ x, x)
    return value + 0 * x[0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "names"),
    [
        (adadelta, NAMES),
        # This starts many operations for each schedule, and JAX waits if 32 are under way on a CPU.
        *((optax.inject_hyperparams(adadelta), (name,)) for name in NAMES),
    ],
)
def test_an_eager_step_does_not_wait_for_the_values_of_schedules(make, names):
    params, factor = jnp.ones(3), jnp.float32(1.0)
    late = slowly(factor)
    optimizer = make(**{name: (lambda count, v=GIVEN[name]: v * late) for name in names})
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(params, state, params)
    jax.block_until_ready((updates, state))

    late = slowly(factor)
    updates, _ = optimizer.update(params, state, params)
    assert not late.is_ready(), "the call returned only after the slow computation"
    late = factor
    expected, _ = optimizer.update(params, state, params)
    np.testing.assert_array_equal(updates, expected)


@pytest.mark.slow
def test_an_array_that_is_still_being_computed_is_checked_by_init():
    slowly(jnp.float32(1.0)).block_until_ready()
    value = slowly(jnp.float32(0.25))
    optimizer = adadelta(rho=value, state_bits=8)
    assert not value.is_ready(), "building the optimizer waited"
    with pytest.raises(ValueError, match=r"^rho must be"):
        optimizer.init(jnp.ones(3))
    with pytest.raises(ValueError, match=r"^eps must be"):
        adadelta(eps=slowly(jnp.float32(0.0))).init(jnp.ones(3))


@pytest.mark.slow
def test_a_weight_decay_of_zero_that_is_still_being_computed_needs_no_parameters():
    g = jnp.ones(3)
    state = adadelta().init(g)
    found, _ = adadelta(weight_decay=slowly(jnp.float32(0.0))).update(g, state)
    np.testing.assert_array_equal(found, adadelta().update(g, state)[0])
    with pytest.raises(ValueError, match="params is None"):
        adadelta(weight_decay=slowly(jnp.float32(0.1))).update(g, state)


NAN, INF = float("nan"), float("inf")
OUT_OF_RANGE = {
    "learning_rate": (-1.0, NAN, INF),
    "rho": (1.0, -0.125, NAN),
    "eps": (-0.5, INF),
    "weight_decay": (-0.25, NAN, INF),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in OUT_OF_RANGE for value in OUT_OF_RANGE[name]]
)
@pytest.mark.parametrize(
    "kind", [float, np.float32, jnp.asarray, lambda value: lambda count: value]
)
def test_a_value_out_of_its_range_is_refused_by_name(name, value, kind):
    def build_and_step():
        optimizer = adadelta(**{name: kind(value)})
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)), jnp.ones(2))

    with pytest.raises(ValueError, match=rf"^{name} must be .*; got {re.escape(str(value))}"):
        build_and_step()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["0.9", True, 0.9j, None, np.array(True), np.complex64(1)])
def test_a_value_that_is_not_a_number_is_refused_by_name(name, value):
    if name == "learning_rate" and value is None:
        return  # It means 1, as in Optax.
    with pytest.raises(TypeError, match=f"^{name} must be a real number.*{type(value).__name__}"):
        adadelta(**{name: value})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [np.array, jnp.array])
def test_an_array_that_is_not_a_scalar_is_refused_by_name(name, kind):
    message = rf"^{name} must be a scalar; .* shape \(2,\)"
    with pytest.raises(ValueError, match=f"{message}.*vmap"):
        adadelta(**{name: kind([0.1, 0.2])})
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda value: adadelta(**{name: value}).init(value))(jnp.ones(2))


@pytest.mark.parametrize("name", ["learning_rate", "eps", "weight_decay"])
@pytest.mark.parametrize("value", [1e39, 10**400])
def test_what_float32_cannot_hold_is_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .* finite in float32; got"):
        adadelta(**{name: value})


def test_the_largest_float32_is_allowed():
    largest = float(np.finfo(np.float32).max)
    g = jnp.full(3, 2.0)
    optimizer = adadelta(eps=largest)
    # Both roots are of eps, so the update is the gradient.
    np.testing.assert_allclose(optimizer.update(g, optimizer.init(g))[0], -g, rtol=1e-6)
    adadelta(learning_rate=largest, weight_decay=largest)


@pytest.mark.parametrize("kind", [float, np.float32, jnp.asarray])
def test_an_eps_of_zero_is_refused(kind):
    with pytest.raises(ValueError, match=r"^eps must be positive.*; got 0\.0\. .*1e-6"):
        adadelta(eps=kind(0.0))


@pytest.mark.parametrize(
    ("name", "value"),
    [("rho", jnp.bfloat16(0.999)), ("eps", jnp.float16(1e-8)), ("eps", jnp.complex64(1e-6))],
)
def test_a_value_that_a_cast_has_spoiled_is_refused_with_the_remedy(name, value):
    with pytest.raises(
        (TypeError, ValueError), match=f"^{name} must.*hyperparam_dtype=jnp.float32"
    ):
        adadelta(**{name: value})
    with pytest.raises(ValueError, match=r"^rho must") as caught:
        adadelta(rho=np.float32(1.5))
    assert "hyperparam_dtype" not in str(caught.value)


@QUANTIZED
@pytest.mark.parametrize("make", [adadelta, scale_by_adadelta])
def test_the_seed_is_zero_if_none_is_given(make, bits):
    g = jnp.asarray(GRADIENTS[0], jnp.float32)
    found, given, other = (
        optimizer.update(g, optimizer.init(g))[1].e_g
        for optimizer in (make(state_bits=bits), *(make(state_bits=bits, seed=n) for n in (0, 1)))
    )
    np.testing.assert_array_equal(found, given)
    assert not jnp.array_equal(found, other)


def test_scale_by_adadelta_checks_alike():
    with pytest.raises(ValueError, match=r"^rho must be"):
        scale_by_adadelta(rho=1.5)
    with pytest.raises(ValueError, match=r"^eps must be"):
        scale_by_adadelta(eps=0)


def test_the_repr_of_an_optimizer_tells_its_hyperparameters():
    rate = optax.constant_schedule(1.0)
    text = repr(adadelta(rate, 0.9, jnp.float32(1e-8), weight_decay=0.25, state_bits=16))
    names = ("learning_rate=", "rho=0.9", "eps=", "weight_decay=0.25", "state_bits=16")
    for word in ("adadelta(", *names, "update"):
        assert word in text
    # Showing the value of an array would fetch it, and every value would give another name.
    assert "1e-08" not in text
    assert "scale_by_adadelta(" in repr(scale_by_adadelta())
