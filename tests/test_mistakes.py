"""Wrong calls that users make: each gives an error or a warning that names the mistake."""

import contextlib
import re
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import sparse
from reference import algorithm_1

from optax_adadelta import adadelta, scale_by_adadelta

PARAMS = {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}
OPTIMIZER = adadelta()
STATE = OPTIMIZER.init(PARAMS)


@contextlib.contextmanager
def refused(error, *parts):
    """Expects an error with these parts in its message or notes, and no values of an array."""
    with pytest.raises(error) as caught:
        yield
    told = " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert re.search(".*".join(map(re.escape, parts)), told, re.DOTALL), told
    assert "[[" not in told


@chex.dataclass
class Model:
    """A callable model that is a pytree, as Equinox's and Flax NNX's are."""

    w: jax.Array

    def __call__(self, x):
        return self.w @ x


@pytest.mark.parametrize("name", ["learning_rate", "rho", "eps", "weight_decay"])
@pytest.mark.parametrize(
    "given", [PARAMS, [jnp.ones(3)], (), Model(w=jnp.ones((2, 3)))], ids=lambda x: type(x).__name__
)
def test_parameters_in_place_of_a_hyperparameter(name, given):
    with refused(TypeError, name, type(given).__name__, "init"):
        adadelta(**{name: given})


def test_other_callables_and_arrays_in_place_of_a_hyperparameter():
    with refused(ValueError, "learning_rate", "(3, 4)", "init"):
        adadelta(PARAMS["w"])
    # A built-in has no signature. Its result is a class, which is checked like any other result.
    with refused(TypeError, "weight_decay", "type"):
        adadelta(weight_decay=type).update(PARAMS, STATE, PARAMS)


def test_callable_trees_of_scalars_and_of_tables_may_be_schedules():
    @chex.dataclass
    class Half:
        factor: jax.Array

        def __call__(self, count):
            return self.factor / (1 + count.astype(jnp.float32))

    table = jax.tree_util.Partial(lambda table, count: table[0, count], jnp.full((2, 2), 0.5))
    whole, _ = OPTIMIZER.update(PARAMS, STATE)
    for schedule in (Half(factor=jnp.float32(0.5)), table):
        updates, _ = adadelta(schedule).update(PARAMS, STATE)
        np.testing.assert_array_equal(updates["w"], whole["w"] / 2)


def test_a_model_that_cannot_be_told_from_a_schedule_is_named_when_it_fails():
    class Unbound:
        def __call__(self, x):
            raise RuntimeError("not bound")

    optimizer = adadelta(Unbound())
    with refused(RuntimeError, "not bound", "learning_rate", "Unbound", "init"):
        optimizer.update(PARAMS, STATE)


@pytest.mark.parametrize("schedule", [lambda: 1.0, lambda a, b: 1.0, lambda *, count: 1.0])
@pytest.mark.parametrize("name", ["learning_rate", "rho", "eps", "weight_decay"])
def test_a_schedule_that_does_not_take_the_count(name, schedule):
    with refused(TypeError, name, "schedule", "count"):
        adadelta(**{name: schedule})


# What is wrong with gradients or parameters, and what the error says of it.
DEEPER = {"w": PARAMS["w"], "b": {"c": jnp.ones(4)}}
MISMATCHED = [
    ((1.0, PARAMS), None, ("updates and state.e_g", "state.e_g has", "value_and_grad")),
    ((PARAMS, "aux"), None, ("updates has", "state.e_g has", "(grads, aux)")),
    ((jnp.ones(2), jnp.ones(3)), None, ("updates and state.e_g", "Call init")),
    ({"w": PARAMS["w"], "b": None}, None, ("updates has None at ['b']", "zeros")),
    ({"w": PARAMS["w"], "c": PARAMS["b"]}, None, ("updates has ['c'], state.e_g has ['b']",)),
    ({"w": PARAMS["w"]}, None, ("state.e_g has ['b'], updates does not", "init")),
    ({**PARAMS, "c": jnp.ones(1)}, None, ("updates has ['c'], state.e_g does not", "init")),
    (DEEPER, None, ("updates has ['b']['c'], state.e_g has ['b']", "init")),
    ([PARAMS["b"]], None, ("updates has [0], state.e_g has ['b'], ['w']", "init")),
    (jnp.ones(4), None, ("updates has", "state.e_g has ['b'], ['w']", "init")),
    (PARAMS, None, ("params is None", "update(grads, state, params)")),
    (PARAMS, {"w": PARAMS["w"]}, ("updates has ['b'], params does not",)),
    (PARAMS, {**PARAMS, "b": jnp.ones(5)}, ("params['b'] has shape (5,)",)),
    (PARAMS, DEEPER, ("updates has ['b'], params has ['b']['c']",)),
]


@pytest.mark.parametrize(("grads", "params", "parts"), MISMATCHED)
def test_gradients_state_and_parameters_that_do_not_match(grads, params, parts):
    with refused(ValueError, *parts):
        adadelta(weight_decay=0.1).update(grads, STATE, params)


def test_gradients_of_another_shape():
    with refused(ValueError, "updates['b'] has shape (5,)", "state.e_g['b'] has shape (4,)"):
        OPTIMIZER.update({**PARAMS, "b": jnp.ones(5)}, STATE)


@pytest.mark.parametrize("with_params", [False, True])
@pytest.mark.parametrize(
    ("grads", "params", "kinds"),
    [
        ([1.0, 2.0], (1.0, 2.0), ("list", "tuple")),
        ({"a": {"b": (1.0,)}}, {"a": {"b": [1.0]}}, ("tuple", "list")),
        ({"a": [1.0], "b": (1.0,)}, {"a": [1.0], "b": [1.0]}, ("tuple", "list")),
        ([1.0, ()], [1.0], ("[*, ()]", "[*]")),
    ],
)
def test_containers_of_another_type_are_named(grads, params, kinds, with_params):
    state = OPTIMIZER.init(grads if with_params else params)
    name = "params" if with_params else "state.e_g"
    with refused(ValueError, "updates", kinds[0], name, kinds[1]):
        OPTIMIZER.update(grads, state, params if with_params else None)


def test_containers_of_one_type_with_other_metadata_are_shown():
    first, other = (jax.tree_util.Partial(f, jnp.ones(2)) for f in (jnp.sin, jnp.cos))
    with refused(ValueError, "updates is", "sin", "state.e_g is", "cos"):
        OPTIMIZER.update(first, OPTIMIZER.init(other))


def test_sparse_arrays():
    tree = {**PARAMS, "w": sparse.BCOO.fromdense(PARAMS["w"])}
    for call in (
        lambda: OPTIMIZER.init(tree),
        lambda: OPTIMIZER.update(tree, STATE),
        lambda: OPTIMIZER.update(tree, STATE, PARAMS),
    ):
        with refused(TypeError, "['w'] is a BCOO", "dense"):
            call()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((STATE, PARAMS), ("AdadeltaState", "update(grads, state, params)")),
        ((PARAMS, PARAMS, STATE), ("state", "dict", "update(grads, state, params)")),
        ((PARAMS, optax.chain(optax.clip(1.0), OPTIMIZER).init(PARAMS)), ("tuple", "state[1]")),
        ((PARAMS, optax.MultiSteps(OPTIMIZER, 2).init(PARAMS)), ("state.inner_opt_state",)),
        ((PARAMS, STATE._asdict()), ("dict", "AdadeltaState(**state)")),
        ((PARAMS, optax.adam(0.1).init(PARAMS)), ("tuple",)),
    ],
)
def test_arguments_of_update_that_are_swapped_or_of_another_optimizer(arguments, parts):
    with refused(TypeError, *parts):
        OPTIMIZER.update(*arguments)


STRUCTURE = "weight_decay_mask must have the structure of params", "'b': *"
IN_B = "weight_decay_mask['b'] must be True or False"


@pytest.mark.parametrize(
    ("mask", "error", "parts"),
    [
        (lambda p: p.ndim > 1, AttributeError, ("ndim", "weight_decay_mask", "jax.tree.map")),
        (lambda p: len(p) > 9, TypeError, ("weight_decay_mask is False", "static_args")),
        (True, TypeError, ("weight_decay_mask is True",)),
        (jnp.array(True), TypeError, ("weight_decay_mask is Array(True",)),
        ({"w": True}, ValueError, STRUCTURE),
        ({"w": True, "b": {"c": True}}, ValueError, STRUCTURE),
        ([True, False], ValueError, STRUCTURE),
        ({"w": True, "b": 1}, TypeError, (IN_B, "1")),
        ({"w": True, "b": "yes"}, TypeError, (IN_B, "'yes'")),
        ({"w": True, "b": np.ones(4, bool)}, TypeError, (IN_B, "array(")),
    ],
)
def test_a_mask_that_is_not_a_tree_of_bools(mask, error, parts):
    optimizer = adadelta(weight_decay=0.1, weight_decay_mask=mask)
    with refused(error, *parts):
        optimizer.update(PARAMS, STATE, PARAMS)


def test_a_traced_mask():
    @jax.jit
    def update(chosen):
        optimizer = adadelta(weight_decay=0.1, weight_decay_mask={"w": True, "b": chosen})
        return optimizer.update(PARAMS, STATE, PARAMS)

    with refused(TypeError, IN_B, "traced"):
        update(True)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("limit", [-1, 1])
def test_a_mask_that_inject_hyperparams_takes_for_a_schedule(jit, limit):
    def mask(params):
        return jax.tree.map(lambda p: p.ndim > limit, params)

    optimizer = optax.inject_hyperparams(adadelta)(weight_decay=0.1, weight_decay_mask=mask)
    state = optimizer.init(PARAMS)
    update = jax.jit(optimizer.update) if jit else optimizer.update
    with refused(TypeError, "weight_decay_mask", "static_args"):
        update(PARAMS, state, PARAMS)


def test_a_single_array_may_have_a_mask_of_one_bool():
    x = jnp.ones(3)
    for mask in (True, False, lambda p: p.ndim > 1):
        optimizer = adadelta(weight_decay=0.1, weight_decay_mask=mask)
        updates, _ = optimizer.update(0 * x, optimizer.init(x), x)
        assert (updates != 0).all() == (mask is True)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: adadelta(1e-3, 0.9, 0.999), "beta"),
        (lambda: adadelta(np.float32(1e-3), jnp.float32(0.9), jnp.float32(0.999)), "beta"),
        (lambda: adadelta(0.1, 0.9, 0.9), "beta"),
        (lambda: adadelta(1.0, 1e-6, 0.95), "swapped"),
        (lambda: scale_by_adadelta(1e-6, 0.9), "swapped"),
    ],
)
def test_a_warning_of_another_optimizers_order_points_at_the_call(make, word):
    with pytest.warns(UserWarning, match=word) as caught:
        make()
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize(
    ("rho", "eps"), [(0.95, 0.5), (0.05, 0.1), (0.0, 1e-3), (0.05, 2.0), (0.9, 0.95)]
)
def test_a_large_eps_or_a_small_rho_alone_is_not_warned_of(rho, eps):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = adadelta(1.0, rho, eps)
    updates, _ = optimizer.update(PARAMS, STATE)
    (expected,) = algorithm_1(np.ones((1, 4)), rho, eps)
    np.testing.assert_allclose(updates["b"], expected.dx, rtol=1e-6)
    # Values that are known only later.
    jax.jit(lambda eps: adadelta(lambda count: 1e-3, lambda count: 0.9, eps).init(PARAMS))(0.999)


@pytest.mark.parametrize(
    ("leaf", "dtype"),
    [
        (jnp.arange(3), "int32"),
        (np.ones(3, bool), "bool"),
        (3, "int32"),
        (jax.ShapeDtypeStruct((3,), jnp.uint8), "uint8"),
        (jax.random.key(0), "key<"),
        (jnp.sin, "is <"),
        ("float32", "is 'float32', of type str"),
    ],
)
def test_parameters_that_are_not_floating_point(leaf, dtype):
    with refused(TypeError, "params['a'][1]", dtype, "eqx.filter", "nnx.Param", "mask"):
        adadelta().init({"a": [jnp.ones(2), leaf]})


def test_gradients_of_integers():
    grads = jax.grad(lambda p: p["w"].sum() * 1.0, allow_int=True)({**PARAMS, "b": jnp.arange(4)})
    with refused(TypeError, "updates['b']", "float0", "eqx.filter", "nnx.Param", "mask"):
        OPTIMIZER.update(grads, STATE)


@pytest.mark.usefixtures("x64")
def test_averages_of_two_dtypes():
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), STATE.e_x)
    with refused(TypeError, "state.e_g['b'] and state.e_x['b'] are float32 and float64"):
        OPTIMIZER.update(PARAMS, STATE._replace(e_x=wide))
