"""A state is data: every function that returns or reads one keeps the same rules in every storage.

The functions are listed in state_functions.py, the storages in states.py. Here are the ways in
which users hold a state: donated, on many devices, in host memory, under odd names, averaged, cast.
"""

import functools
import subprocess
import sys

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
    OF_NO_STORAGE,
    READERS,
    WRAPPED,
    Run,
    begun,
)
from states import BITS, DTYPES, EPS, assert_agree, normal, same_bits, same_types

from optax_adadelta import (
    adadelta,
    clip_by_global_norm,
    convert,
    reduce_eps_on_plateau,
    stochastic_round,
)
from optax_adadelta.diagnostics import averages

FUNCTIONS = OF_ANY_OPTIMIZER | OF_ADADELTA | OF_NO_STORAGE
ALONE = [
    *((name, "adadelta", bits) for name in OF_ANY_OPTIMIZER | OF_ADADELTA for bits in DTYPES),
    *((name, "adadelta", None) for name in OF_NO_STORAGE),
]
AROUND = [
    (name, wrap, bits) for name in OF_ANY_OPTIMIZER for wrap in list(WRAPPED)[1:] for bits in DTYPES
]
EVERY = pytest.mark.parametrize(("name", "wrap", "bits"), ALONE + AROUND)


def params():
    return {"w": normal((8, 16)), "b": normal((8,), 1), "deep": list(normal((5,), 2))}


def case(name, params, wrap, *bits_and_eps):
    """A function that returns a state, and arguments for it."""
    return FUNCTIONS[name](Run(params, WRAPPED[wrap], *bits_and_eps))


def spans(tree):
    """Where each array begins and ends in memory, or each part of it on a device, by its path."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        if isinstance(leaf, jax.Array):
            parts = [shard.data for shard in leaf.addressable_shards]
            starts = [(part.unsafe_buffer_pointer(), part.nbytes) for part in parts]
        elif isinstance(leaf, np.ndarray):
            starts = [(leaf.ctypes.data, leaf.nbytes)]
        elif hasattr(leaf, "data_ptr"):  # a tensor
            starts = [(leaf.data_ptr(), leaf.nbytes)]
        else:
            continue
        yield from ((jax.tree_util.keystr(path), at, at + size) for at, size in starts)


def assert_apart(some, others):
    """No two arrays of `some` share memory, and none does with one of `others`."""
    some, others = list(spans(some)), list(spans(others))
    assert some
    for i, (path, start, end) in enumerate(some):
        shared = [p for p, s, e in [*some[:i], *others] if s < end and start < e]
        assert not shared, f"{path} shares memory with {shared}"


@jax.jit(donate_argnums=0)
def donated(leaves):
    return [x + jnp.ones_like(x) for x in leaves]


def donate(tree):
    """Donates every array of a tree to a step, each once."""
    leaves = {id(x): x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)}
    donated(list(leaves.values()))
    assert all(x.is_deleted() for x in leaves.values())


@EVERY
def test_a_state_owns_its_arrays(name, wrap, bits):
    function, *arguments = case(name, params(), wrap, bits)
    before = jax.tree.map(np.array, arguments)
    found = function(*arguments)
    assert_apart(found, arguments)
    donate(found)
    same_bits(jax.tree.map(np.array, arguments), before)
    found = function(*arguments)
    expected = jax.tree.map(np.array, found)
    donate(arguments)
    same_bits(jax.tree.map(np.array, found), expected)


def on_mesh(kind, **options):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    return lambda p: NamedSharding(mesh, P("x") if p.ndim else P(), **options)


PLACES = {
    "a mesh": on_mesh(AxisType.Auto),
    "a mesh with explicit axes": on_mesh(AxisType.Explicit),
    "host memory": on_mesh(AxisType.Auto, memory_kind="pinned_host"),
    "host memory beside one device": lambda p: SingleDeviceSharding(
        jax.devices()[0], memory_kind="pinned_host"
    ),
}


def is_ours(part):
    return type(part).__module__ == "optax_adadelta"


def scalars_of_ours(tree):
    """The scalars of the parts that are ours; where others are, is Optax's affair."""
    ours = [part for part in jax.tree.leaves(tree, is_leaf=is_ours) if is_ours(part)]
    ours = [part._replace(best=None) if hasattr(part, "best") else part for part in ours]
    return [leaf for leaf in jax.tree.leaves(ours) if leaf.ndim == 0]


# These compute, which is done in device memory. Optax cannot make a state in the host memory of a
# single device.
STEPS = {name for name in FUNCTIONS if "update" in name or "plateau" in name}
ELSEWHERE = {
    "host memory": STEPS,
    "host memory beside one device": STEPS | {"from_optax", "to_optax"},
}
PLACED = [
    (name, bits, place)
    for place in PLACES
    for name, _, bits in ALONE
    if name not in ELSEWHERE.get(place, ())
]


@pytest.mark.parametrize(("name", "bits", "place"), PLACED)
def test_a_state_is_where_its_parameters_are(name, bits, place):
    given = jax.tree.map(lambda p: jax.device_put(p, PLACES[place](p)), params())
    places = {p.shape: p.sharding for p in jax.tree.leaves(given)}
    function, *arguments = case(name, given, "adadelta", bits)
    found = function(*arguments)
    arrays = [leaf for leaf in jax.tree.leaves(found) if isinstance(leaf, jax.Array) and leaf.ndim]
    for leaf in arrays + scalars_of_ours(found):
        expected = places[leaf.shape]
        assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), leaf.sharding
        assert leaf.sharding.memory_kind == expected.memory_kind


def oddly(part):
    """The same leaves under names that states have too."""
    one, two, *three = part["deep"]
    return {
        "unit": part["w"],
        "a/b": part["b"],
        "layers.0": {"value": one},
        "hyperparams": {"eps": two},
        "inner_state": dict(zip(("count", "e_g", "e_x"), three, strict=True)),
    }


def renamed(tree):
    def is_params(part):
        return isinstance(part, dict) and part.keys() == {"w", "b", "deep"}

    return jax.tree.map(lambda p: oddly(p) if is_params(p) else p, tree, is_leaf=is_params)


# What is numbered in the order of the names is compared in test_convert_torch.py.
@EVERY
def test_names_of_parameters_change_nothing(name, wrap, bits):
    if name == "to_torch":
        return
    (function, *arguments), (other, *odd) = (
        case(name, p, wrap, bits) for p in (params(), oddly(params()))
    )
    same_bits(other(*odd), renamed(function(*arguments)))


# These make or take averages alone, which a scan can carry.
SCANNED = ["init", "update", "carry_over", "with_state_bits None", "with_state_bits 16"]


@pytest.mark.parametrize("varies", ["", "params", "params and eps", "state"])
@pytest.mark.parametrize(("name", "bits"), [(name, bits) for name in SCANNED for bits in DTYPES])
def test_each_device_of_a_shard_map_scans_a_state_of_its_own(name, bits, varies):
    given = jnp.stack([normal((4,), seed) for seed in range(8 if "params" in varies else 1)])
    eps = jnp.logspace(-8, -1, 8) if "eps" in varies else jnp.full(1, EPS)

    def varying(tree):
        zero = 0 * jax.lax.axis_index("x")
        return jax.tree.map(lambda x: x + zero.astype(x.dtype), tree)

    def last(p, e, begin=lambda state: state):
        function, *arguments = case(name, p, "adadelta", bits, e)
        (state,) = jax.tree.leaves(function(*arguments), is_leaf=is_ours)

        def step(state, _):
            return adadelta(eps=e, state_bits=bits).update(p, state)[1], None

        return jax.lax.scan(step, begin(state), length=2)[0]

    def of_device(given, eps):
        begin = (varying,) if varies == "state" else ()
        return jax.tree.map(lambda x: x[None], varying(last(given[0], eps[0], *begin)))

    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    specs = tuple(P("x") if len(x) > 1 else P() for x in (given, eps))
    mapped = jax.shard_map(of_device, mesh=mesh, in_specs=specs, out_specs=P("x"))
    found = jax.jit(mapped)(given, eps)
    alone = jax.jit(last)
    for i in {0, len(given) - 1}:
        expected = alone(given[i], eps[i % len(eps)])
        same_bits(jax.tree.map(lambda x, i=i: x[i], found), expected)


@functools.cache
def trained(bits):
    return Run(params(), bits=bits).state()


def cast(state, dtype):
    """A checkpoint in few bits casts all floats, and nothing else."""

    def one(x):
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(one, state)


def mean(state, other):
    return jax.tree.map(lambda a, b: (a + b) / 2, state, other)


def pmean(state, other):
    states = jax.tree.map(lambda a, b: jnp.stack([a, b]), state, other)
    states = jax.vmap(lambda s: jax.lax.pmean(s, "d"), axis_name="d")(states)
    return jax.tree.map(lambda x: x[0], states)


def with_averages(state, dtype):
    return state._replace(**{f: cast(getattr(state, f), dtype) for f in ("e_g", "e_x")})


# For each, in which storages it is wrong, what the error names, and what makes it of a state.
CURE = r"with_state_bits\(.*None\)"
LOW, FULL, ANY = (16, 8), (None,), tuple(DTYPES)
WRONG = {
    "mean": (LOW, CURE, lambda s: mean(s, s)),
    "pmean": (LOW, CURE, lambda s: pmean(s, s)),
    "incremental_update": (LOW, CURE, lambda s: optax.incremental_update(s, s, 0.5)),
    "averages in bfloat16": (FULL, "e_g.*bfloat16", lambda s: cast(s, jnp.bfloat16)),
    "averages in float16": (FULL, "e_g.*float16", lambda s: cast(s, jnp.float16)),
    "unit in bfloat16": (LOW, "unit.*bfloat16", lambda s: cast(s, jnp.bfloat16)),
    "unit in float16": (LOW, "unit.*float16", lambda s: cast(s, jnp.float16)),
    "unit of integers": (LOW, "unit.*int32", lambda s: s._replace(unit=jnp.int32(1))),
    "unit of two": (LOW, "unit", lambda s: s._replace(unit=jnp.ones(2))),
    "no unit": (LOW, "unit", lambda s: s._replace(unit=None)),
    "unit beside floats": (FULL, "unit", lambda s: s._replace(unit=jnp.float32(EPS))),
    "codes of int32": (LOW, "int32", lambda s: jax.tree.map(lambda x: x.astype(jnp.int32), s)),
    "E[g^2] in full precision": (LOW, "e_g", lambda s: s._replace(e_g=trained(None).e_g)),
    "E[dx^2] in full precision": (LOW, "e_x", lambda s: s._replace(e_x=trained(None).e_x)),
    "codes of 16 and 8 bits": (
        LOW,
        "uint",
        lambda s: s._replace(e_g=trained(16).e_g, e_x=trained(8).e_x),
    ),
    "count of floats": (LOW, "count.*float32", lambda s: s._replace(count=jnp.float32(2))),
    "E[dx^2] without a leaf": (ANY, "'b'", lambda s: s._replace(e_x={**s.e_x, "b": None})),
    "E[g^2] without a leaf": (ANY, "'b'", lambda s: s._replace(e_g={**s.e_g, "b": None})),
    "E[dx^2] in another shape": (ANY, "'b'", lambda s: s._replace(e_x={**s.e_x, "b": s.e_x["w"]})),
}
READ_WRONG = [(r, w, bits) for r in READERS for w, (wrong, *_) in WRONG.items() for bits in wrong]


@pytest.mark.parametrize(("reader", "wrong", "bits"), READ_WRONG)
def test_a_state_that_cannot_be_right_is_refused(reader, wrong, bits):
    _, words, spoil = WRONG[wrong]
    with jax.numpy_dtype_promotion("standard"):  # as by default
        state = spoil(trained(bits))
    with pytest.raises((TypeError, ValueError), match=rf"(?s)(?=.*state).*{words}"):
        READERS[reader](Run(params(), bits=bits), state)


@BITS
def test_the_mean_of_states_is_taken_in_full_precision(bits):
    states = [begun(adadelta(state_bits=bits), normal((8, 16), seed)) for seed in range(3)]
    full = [convert.with_state_bits(state, None) for state in states]
    with jax.numpy_dtype_promotion("standard"):
        mean = jax.tree.map(lambda *x: (sum(x) / len(x)).astype(x[0].dtype), *full)
    state = convert.with_state_bits(mean, bits, eps=EPS)
    same_types(state, states[0])
    assert state.count == 2
    expected = [np.mean(part, axis=0) for part in zip(*map(averages, states), strict=True)]
    assert_agree(averages(state), expected, bits)


def test_any_mean_of_states_in_full_precision_goes_on():
    states = [begun(adadelta(), normal((8, 16), seed)) for seed in range(2)]
    exact = states[0]._replace(
        **{
            name: (getattr(states[0], name) + getattr(states[1], name)) / 2
            for name in ("e_g", "e_x")
        }
    )
    expected, after = adadelta().update(normal((8, 16)), exact)
    for way in (mean, pmean, lambda a, b: optax.incremental_update(a, b, 0.5)):
        with jax.numpy_dtype_promotion("standard"):
            state = way(*states)
        updates, state = adadelta().update(normal((8, 16)), state)
        np.testing.assert_allclose(updates, expected, rtol=1e-6)
        assert state.count == after.count == 3


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
    **{name: WRAPPED[name] for name in ("adadelta", "scale_by_adadelta", "chain", "injected")},
    "weight decay": lambda **given: adadelta(weight_decay=0.1, **given),
    "clip": lambda **given: optax.chain(clip_by_global_norm(1.0), adadelta(**given)),
    "rounded": lambda **given: optax.chain(adadelta(**given), stochastic_round()),
}


@BITS
@pytest.mark.parametrize("name", TAKES_PARAMETERS)
def test_a_whole_model_is_taken_for_its_trained_parameters(name, bits):
    optimizer = TAKES_PARAMETERS[name](eps=EPS, state_bits=bits)
    state = optimizer.init(TRAINED)
    same_bits(optimizer.update(TRAINED, state, MODEL), optimizer.update(TRAINED, state, TRAINED))


@BITS
@pytest.mark.parametrize("restore", [False, True])
def test_a_whole_model_goes_back_to_its_best(restore, bits):
    plateau = reduce_eps_on_plateau(0.5, restore_best=restore)
    tree = MODEL, WRAPPED["injected"](eps=EPS, state_bits=bits).init(TRAINED)
    watch = plateau.init(tree)
    later = {**MODEL, "layers": 4, "w": MODEL["w"] + 1}
    (back, state), watch = plateau.update((later, tree[1]), watch, value=jnp.nan)
    same_bits(state.hyperparams["eps"], 0.5 * tree[1].hyperparams["eps"])
    expected = MODEL if restore else later
    for name, leaf in expected.items():
        if hasattr(leaf, "dtype"):
            same_bits(back[name], leaf)
        else:
            assert back[name] == leaf


LOADED_TWICE = """
import importlib, sys
import jax, jax.numpy as jnp
import optax_adadelta

def after_a_step(package, state=None):
    optimizer = package.adadelta(state_bits=8)
    state = optimizer.init(jnp.ones(3)) if state is None else state
    return jax.jit(optimizer.update)(jnp.ones(3), state)[1]

def exported(function, *args):
    data = jax.export.export(jax.jit(function))(*args).serialize()
    return jax.export.deserialize(data).call(*args)

first, state = optax_adadelta, after_a_step(optax_adadelta)
importlib.reload(optax_adadelta)
assert after_a_step(optax_adadelta, state).count == 2
names = [name for name in sys.modules if name.partition(".")[0] == "optax_adadelta"]
for name in names:
    del sys.modules[name]
import optax_adadelta
assert optax_adadelta is not first
assert after_a_step(first, state).count == after_a_step(optax_adadelta, state).count == 2
new = after_a_step(optax_adadelta)
assert isinstance(exported(optax_adadelta.adadelta().init, jnp.ones(3)), type(new))
"""


def test_the_package_may_be_loaded_twice():
    command = [sys.executable, "-W", "error", "-c", LOADED_TWICE]
    subprocess.run(command, check=True, timeout=120)
