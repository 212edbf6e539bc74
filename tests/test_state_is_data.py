"""A state is data: every function that returns or reads one keeps the same rules.

The functions are listed in state_functions.py, the storages in states.py. Here are the ways in
which users hold a state: donated, on many devices, in host memory, under odd names, averaged, cast.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from state_functions import (
    OF_ADADELTA,
    OF_ANY_OPTIMIZER,
    OF_LIBRARIES,
    OF_NO_STORAGE,
    READERS,
    RULES,
    WRAPPED,
    Run,
)
from states import EPS, assert_owns_its_arrays, normal, same_bits

from optax_adadelta import adadelta, clip_by_global_norm, nadadelta, stochastic_round

FUNCTIONS = OF_ANY_OPTIMIZER | OF_ADADELTA | OF_NO_STORAGE
OF_STORAGES = [*OF_ANY_OPTIMIZER, *OF_ADADELTA]
# A quantized state of nadadelta has every field; that of adadelta in full precision has the fewest.
MOST = [(name, "nadadelta", 8) for name in OF_STORAGES]
LEAST = [(name, "adadelta", None) for name in OF_ANY_OPTIMIZER | OF_NO_STORAGE]
# What Optax has around a state is passed on by functions that take any tree.
AROUND = [
    (name, wrap, 8)
    for name in ("carry_over", "with_state_bits 8")
    for wrap in ("chain", "groups", "injected")
]


def params():
    """The last two are tied."""
    one, other = normal((2,), 2)
    return {"w": normal((8, 16)), "b": normal((8,), 1), "deep": [one, other, other]}


def case(name, params, wrap="adadelta", *bits_and_eps):
    """A function that returns a state, and arguments for it."""
    return FUNCTIONS[name](Run(params, WRAPPED[wrap], *bits_and_eps))


@jax.jit(donate_argnums=0)
def donated(leaves):
    return [x + jnp.ones_like(x) for x in leaves]


def use_up(tree):
    """Donates each array of a tree to a step, and overwrites what is not one of JAX."""
    leaves = {id(x): x for x in jax.tree.leaves(tree)}.values()
    arrays = [x for x in leaves if isinstance(x, jax.Array)]
    donated(arrays)
    assert all(x.is_deleted() for x in arrays)
    for x in leaves:
        if isinstance(x, np.ndarray) or hasattr(x, "data_ptr"):
            x[...] = 0


def copied(tree):
    return jax.tree.map(lambda x: np.array(np.asarray(x)), tree)


def check_ownership(function, *arguments):
    before = copied(arguments)
    found = function(*arguments)
    assert_owns_its_arrays(found, arguments)
    use_up(found)
    same_bits(copied(arguments), before)
    found = function(*arguments)
    expected = copied(found)
    use_up(arguments)
    same_bits(copied(found), expected)


@pytest.mark.parametrize(("name", "wrap", "bits"), MOST + LEAST + AROUND)
def test_a_state_owns_its_arrays(name, wrap, bits):
    check_ownership(*case(name, params(), wrap, bits))


@pytest.mark.peers
@pytest.mark.parametrize("name", OF_LIBRARIES)
def test_a_state_from_or_for_another_library_owns_its_arrays(name, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with jax.numpy_dtype_promotion("standard"):
        check_ownership(*OF_LIBRARIES[name](Run(params())))


# The others read numbers or NumPy arrays.
@pytest.mark.parametrize("name", [name for name in OF_STORAGES if name != "to_torch"])
def test_a_state_that_a_jitted_function_returns_owns_its_arrays(name):
    function, *arguments = case(name, params(), "nadadelta", 8)
    check_ownership(jax.jit(function), *arguments)


def on_mesh(kind, **options):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    return lambda p: NamedSharding(mesh, P("x") if p.ndim else P(), **options)


PLACES = {
    "a mesh": on_mesh(AxisType.Explicit),
    "host memory": on_mesh(AxisType.Auto, memory_kind="pinned_host"),
    "host memory beside one device": lambda p: SingleDeviceSharding(
        jax.devices()[0], memory_kind="pinned_host"
    ),
}


def is_ours(part):
    return type(part).__module__ == "optax_adadelta"


def scalars_of_ours(tree):
    """The scalars and the scales that are ours; where others are, is Optax's affair."""
    ours = [part for part in jax.tree.leaves(tree, is_leaf=is_ours) if is_ours(part)]
    ours = [part._replace(best=None) if hasattr(part, "best") else part for part in ours]
    return [leaf for leaf in jax.tree.leaves(ours) if leaf.ndim == 0] + scales_in(ours)


def has_scale(part):
    return getattr(part, "scale", None) is not None


def scales_in(tree):
    parts = jax.tree.leaves(tree, is_leaf=has_scale)
    return [part.scale for part in parts if has_scale(part)]


# These compute, which is done in device memory. Optax cannot make a state in the host memory of a
# single device.
STEPS = {name for name in FUNCTIONS if "update" in name or "plateau" in name}
ELSEWHERE = {
    "host memory": STEPS,
    "host memory beside one device": STEPS | {"from_optax", "to_optax"},
}
PLACED = [
    (*each, place)
    for place in PLACES
    for each in MOST + [each for each in LEAST if each[0] in OF_NO_STORAGE]
    if each[0] not in ELSEWHERE.get(place, ())
]


@pytest.mark.devices
@pytest.mark.parametrize(("name", "wrap", "bits", "place"), PLACED)
def test_a_state_is_where_its_parameters_are(name, wrap, bits, place):
    given = jax.tree.map(lambda p: jax.device_put(p, PLACES[place](p)), params())
    places = {p.shape: p.sharding for p in jax.tree.leaves(given)}
    function, *arguments = case(name, given, wrap, bits)
    found = function(*arguments)
    arrays = [leaf for leaf in jax.tree.leaves(found) if isinstance(leaf, jax.Array) and leaf.ndim]
    scales = {id(scale) for scale in scales_in(found)}
    for leaf in arrays + scalars_of_ours(found):
        expected = places[() if id(leaf) in scales else leaf.shape]
        assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), leaf.sharding
        assert leaf.sharding.memory_kind == expected.memory_kind


def oddly(part):
    """The same leaves under names that states have too."""
    one, two, three = part["deep"]
    return {
        "unit": part["w"],
        "a/b": part["b"],
        "layers.0": {"value": one},
        "hyperparams": {"eps": two},
        "inner_state": {"e_g": three},
    }


def renamed(tree):
    def is_params(part):
        return isinstance(part, dict) and part.keys() == {"w", "b", "deep"}

    return jax.tree.map(lambda p: oddly(p) if is_params(p) else p, tree, is_leaf=is_params)


# What to_torch returns is numbered in the order of the names, and a step reads no names.
NAMED = [each for each in MOST + AROUND if each[0] not in ("to_torch", "update")]


@pytest.mark.parametrize(("name", "wrap", "bits"), NAMED)
def test_names_of_parameters_change_nothing(name, wrap, bits):
    (function, *arguments), (other, *odd) = (
        case(name, p, wrap, bits) for p in (params(), oddly(params()))
    )
    same_bits(in_any_order(other(*odd)), in_any_order(renamed(function(*arguments))))


def in_any_order(tree):
    """The scales are in the order of the names."""
    return jax.tree.map(
        lambda part: part._replace(scale=jnp.sort(part.scale)) if has_scale(part) else part,
        tree,
        is_leaf=has_scale,
    )


# These make or take averages alone, which a scan can carry.
SCANNED = ["init", "update", "carry_over", "with_state_bits None", "with_state_bits 8"]


@pytest.mark.parametrize("varies", ["", "params", "params and eps", "state"])
@pytest.mark.parametrize("name", SCANNED)
@pytest.mark.parametrize(("rule", "bits"), [("adadelta", None), ("nadadelta", 8)])
def test_each_device_of_a_shard_map_scans_a_state_of_its_own(name, rule, bits, varies):
    def varying(x, what):
        return jax.lax.pcast(x, "x", to="varying") if what in varies else x

    def last(p, eps):
        p, eps = varying(p, "params"), varying(eps, "eps")
        function, *arguments = case(name, p, rule, bits, eps)
        (start,) = jax.tree.leaves(function(*arguments), is_leaf=is_ours)

        def step(state, _):
            return RULES[rule](eps=eps, state_bits=bits).update(p, state)[1], None

        state, _ = jax.lax.scan(step, varying(start, "state"), length=2)
        return jax.tree.map(lambda x: x[None], state)

    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(last, mesh=mesh, in_specs=P(), out_specs=P("x"))
    jax.eval_shape(mapped, normal((4,)), jnp.float32(EPS))  # a scan refuses types that change


@functools.cache
def trained(bits, rule="adadelta"):
    return Run(params(), RULES[rule], bits).state()


def mean(state):
    return jax.tree.map(lambda a, b: (a + b) / 2, state, state)


def cast(state, dtype, *fields):
    """Casts all floats, as a checkpoint in few bits does, or else these fields."""

    def one(x):
        return x.astype(dtype) if fields or jnp.issubdtype(x.dtype, jnp.floating) else x

    part = {field: jax.tree.map(one, getattr(state, field)) for field in fields or state._fields}
    return state._replace(**part)


# For each, a storage in which it is wrong, what the error names, and what makes it of a state.
CURE = r"with_state_bits\(.*None\)"
WRONG = {
    "mean": (8, CURE, mean),
    "codes in float32": (8, CURE, lambda s: cast(s, jnp.float32, "e_g", "e_x")),
    "codes in bfloat16": (8, "e_g.*bfloat16", lambda s: cast(s, jnp.bfloat16, "e_g", "e_x")),
    "codes in int32": (8, "e_g.*int32", lambda s: cast(s, jnp.int32, "e_g", "e_x")),
    "averages in bfloat16": (None, "e_g.*bfloat16", lambda s: cast(s, jnp.bfloat16)),
    "unit in bfloat16": (8, "unit.*bfloat16", lambda s: cast(s, jnp.bfloat16)),
    "unit in int32": (8, "unit.*int32", lambda s: s._replace(unit=jnp.int32(1))),
    "unit of two": (8, "unit", lambda s: s._replace(unit=jnp.ones(2))),
    "no unit": (8, "unit", lambda s: s._replace(unit=None)),
    "unit beside averages": (None, "unit", lambda s: s._replace(unit=jnp.float32(EPS))),
    "count in bfloat16": (8, "count.*bfloat16", lambda s: cast(s, jnp.bfloat16, "count")),
    "E[g^2] of another storage": (8, "e_g", lambda s: s._replace(e_g=trained(None).e_g)),
    "E[dx^2] of another storage": (8, "e_x", lambda s: s._replace(e_x=trained(None).e_x)),
    "codes of two storages": (
        8,
        "uint",
        lambda s: s._replace(e_g=trained(16).e_g),
    ),
    "E[g^2] without a leaf": (8, "'b'", lambda s: s._replace(e_g={**s.e_g, "b": None})),
    "E[dx^2] without a leaf": (8, "'b'", lambda s: s._replace(e_x={**s.e_x, "b": None})),
    "E[dx^2] in another shape": (8, "'b'", lambda s: s._replace(e_x={**s.e_x, "b": s.e_x["w"]})),
}
# These too are wrong for nadadelta.
WRONG_TRACE = {
    "mean": WRONG["mean"],
    "trace in float16": (8, "trace.*float16", lambda s: cast(s, jnp.float16, "trace")),
    "trace in int32": (8, "trace.*int32", lambda s: cast(s, jnp.int32, "trace")),
    "mean trace": (8, CURE, lambda s: s._replace(trace=mean(s).trace)),
    "trace without a leaf": (8, "'b'", lambda s: s._replace(trace={**s.trace, "b": None})),
    "scale in bfloat16": (8, "scale.*bfloat16", lambda s: cast(s, jnp.bfloat16, "scale")),
    "scale of two": (8, r"scale.*\(2,\)", lambda s: s._replace(scale=s.scale[:2])),
    "scales of two runs": (8, "scale", lambda s: s._replace(scale=jnp.stack([s.scale] * 2))),
}
READ_WRONG = [
    (reader, rule, wrong)
    for rule, wrongs in (("adadelta", WRONG), ("nadadelta", WRONG_TRACE))
    for wrong in wrongs
    for reader in READERS
]


@pytest.mark.parametrize(("reader", "rule", "wrong"), READ_WRONG)
def test_a_state_that_cannot_be_right_is_refused(reader, rule, wrong):
    bits, words, spoil = (WRONG | WRONG_TRACE)[wrong]
    with jax.numpy_dtype_promotion("standard"):  # as by default
        state = spoil(trained(bits, rule))
    with pytest.raises((TypeError, ValueError), match=rf"(?s)(?=.*state).*{words}"):
        READERS[reader](Run(params(), RULES[rule], bits), state)


TRAINED = {"w": normal((8, 16)).astype(jnp.bfloat16), "v": normal((8, 16), 1)}
REST = {
    "frozen": jnp.ones(3, jnp.bfloat16),
    "activation": jax.nn.relu,
    "layers": 3,
    "name": "model",
    "unused": None,
    "rate": jnp.int32(7),
}
MODEL, TRAINED = {**TRAINED, **REST}, {**TRAINED, **dict.fromkeys(REST)}

# Optimizers that take parameters beside the gradients.
TAKES_PARAMETERS = {
    **{name: WRAPPED[name] for name in ("chain", "injected")},
    "weight decay": lambda **given: adadelta(weight_decay=0.1, **given),
    "nadadelta with weight decay": lambda **given: nadadelta(weight_decay=0.1, **given),
    "clip": lambda **given: optax.chain(clip_by_global_norm(1.0), adadelta(**given)),
    "rounded": lambda **given: optax.chain(adadelta(**given), stochastic_round()),
}


@pytest.mark.parametrize("name", TAKES_PARAMETERS)
def test_a_whole_model_is_taken_for_its_trained_parameters(name):
    optimizer = TAKES_PARAMETERS[name](eps=EPS, state_bits=8)
    state = optimizer.init(TRAINED)
    same_bits(optimizer.update(TRAINED, state, MODEL), optimizer.update(TRAINED, state, TRAINED))
