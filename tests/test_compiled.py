"""What the compiler makes of a step: in-place loops, one for each result, and nothing else.

No test here takes the time. Each reads the program, so that a change which costs a copy, a loop or
scratch memory fails on every machine alike.
"""

import re

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optax_adadelta import adadelta, clip_by_global_norm, nadadelta, scale_by_adadelta

SHAPES = {"w": (96, 250), "b": (1003,), "k": (3, 3, 16, 40)}
SIZE = sum(jnp.zeros(shape).size for shape in SHAPES.values())
# Scalars such as a count or a norm.
SCALARS = 256


def leaves(dtype=jnp.float32):
    return {name: jnp.ones(shape, dtype) for name, shape in SHAPES.items()}


def stepper(optimizer):
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


class Program:
    """A compiled program, by its numbers."""

    def __init__(self, function, *args, donate):
        self.compiled = jax.jit(function, donate_argnums=donate).lower(*args).compile()
        self.text = self.compiled.as_text()
        memory = self.compiled.memory_analysis()
        self.scratch = memory.temp_size_in_bytes
        self.aliased = memory.alias_size_in_bytes
        self.bytes = self.compiled.cost_analysis()["bytes accessed"]
        self.entry = self.text.rpartition("\nENTRY ")[2]
        arrays = re.compile(r" = \w+\[[\d,]+\]\S* (\w+)\(")
        self.kernels = [
            op for op in arrays.findall(self.entry) if op not in ("parameter", "bitcast")
        ]

    @property
    def copies(self):
        """The copies of arrays, wherever they are in the program."""
        return re.findall(r" = \w+\[[\d,]+\]\S* copy\(", self.text)


def program(optimizer, dtype=jnp.float32):
    params = leaves(dtype)
    return Program(stepper(optimizer), params, optimizer.init(params), params, donate=(0, 1))


INJECTED = optax.inject_hyperparams(adadelta)(rho=0.9, eps=1e-7)
CHAINED = optax.chain(
    scale_by_adadelta(), optax.add_decayed_weights(1e-4), optax.scale_by_learning_rate(0.5)
)
SCHEDULED = adadelta(learning_rate=optax.linear_schedule(1.0, 0.0, 100), rho=0.9)


@pytest.mark.parametrize(
    ("optimizer", "dtype", "stored", "moved"),
    [
        # The bytes per parameter that one average is stored in, and those that a step moves.
        # 12 for E[g^2], 16 for E[dx^2], 20 for the parameters.
        (adadelta(), jnp.float32, 4, 48),
        (SCHEDULED, jnp.float32, 4, 48),
        (CHAINED, jnp.float32, 4, 48),
        (adadelta(), jnp.bfloat16, 4, 38),
        (adadelta(weight_decay=1e-4), jnp.float32, 4, 56),
        (INJECTED, jnp.float32, 4, 56),
        # 8 for E[g^2], 10 for E[dx^2], 16 for the parameters; of 8 bits 7, 7, 14.
        (adadelta(state_bits=16), jnp.float32, 2, 34),
        (adadelta(state_bits=8), jnp.float32, 1, 28),
        (adadelta(state_bits=8), jnp.bfloat16, 1, 18),
    ],
)
def test_a_step_is_three_in_place_loops_per_leaf(optimizer, dtype, stored, moved):
    made = program(optimizer, dtype)
    assert [op for op in made.kernels if op != "constant"] == ["fusion"] * 3 * len(SHAPES)
    assert made.copies == []
    assert made.scratch < SCALARS
    assert made.aliased >= (2 * stored + jnp.dtype(dtype).itemsize) * SIZE
    assert made.bytes == pytest.approx(moved * SIZE, abs=4 * SCALARS)


@pytest.mark.parametrize(
    ("given", "dtype", "moved"),
    [
        # 12 for E[g^2], 16 for E[dx^2], 20 for the trace, 24 for the parameters.
        ({}, jnp.float32, 72),
        ({"nesterov": False}, jnp.float32, 60),
        ({"state_bits": 16}, jnp.bfloat16, 36),
        ({"state_bits": 8}, jnp.float32, 37),
    ],
)
def test_nadadelta_is_four_in_place_loops_per_leaf(given, dtype, moved):
    made = program(nadadelta(**given), dtype)
    of_leaves = r" = \w+\[(?:96,250|1003|3,3,16,40)\]\S* fusion\("
    assert len(re.findall(of_leaves, made.entry)) == 4 * len(SHAPES)
    assert made.copies == []
    # Numbers of each leaf as a whole, such as its eps.
    assert made.scratch < 8 * SCALARS
    state = 3 * (given.get("state_bits", 32) // 8)
    assert made.aliased >= (state + jnp.dtype(dtype).itemsize) * SIZE
    assert made.bytes == pytest.approx(moved * SIZE, abs=8 * SCALARS)


@pytest.mark.usefixtures("x64")
def test_a_float64_step_is_in_place():
    made = program(adadelta(), jnp.float64)
    assert made.kernels == ["fusion"] * 3 * len(SHAPES)
    assert made.copies == []
    assert made.scratch < SCALARS
    assert made.bytes == pytest.approx(96 * SIZE, abs=SCALARS)


def test_after_optaxs_clip_only_the_clipped_gradient_is_kept():
    made = program(optax.chain(optax.clip_by_global_norm(1.0), adadelta()))
    assert made.copies == []
    assert made.scratch <= 4 * SIZE + 4 * SCALARS
    theirs = program(optax.chain(optax.clip_by_global_norm(1.0), optax.adadelta(1.0, 0.95)))
    assert made.bytes < theirs.bytes


@pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="XLA then stores the product too")
def test_after_the_clip_that_multiplies_nothing_is_kept():
    made = program(optax.chain(clip_by_global_norm(1.0), adadelta()))
    assert made.copies == []
    assert made.scratch < 0.2 * SIZE
    assert made.bytes == pytest.approx(52 * SIZE, rel=0.01)


def test_it_moves_fewer_bytes_than_optax_and_needs_no_scratch_where_optax_does():
    ours, theirs = program(adadelta()), program(optax.adadelta(1.0, 0.95, 1e-6))
    assert ours.bytes < 0.75 * theirs.bytes
    assert ours.scratch < SCALARS < 4 * SIZE < theirs.scratch
    assert len(ours.kernels) < len(theirs.kernels)


def test_the_state_alone_is_updated_in_place_if_it_comes_first():
    optimizer = adadelta()
    grads = leaves()

    def state_first(state, grads):
        updates, state = optimizer.update(grads, state)
        return state, updates

    made = Program(state_first, optimizer.init(grads), grads, donate=0)
    assert made.copies == []
    assert made.scratch < SCALARS


def test_a_loop_of_steps_copies_nothing():
    optimizer = adadelta()
    params = leaves()
    step = stepper(optimizer)

    def steps(params, state):
        def body(carry):
            grads = jax.tree.map(lambda p: 2 * p - 1, carry[0])
            return step(*carry, grads)

        return jax.lax.scan(lambda carry, _: (body(carry), None), (params, state), length=9)[0]

    made = Program(steps, params, optimizer.init(params), donate=(0, 1))
    assert made.copies == []
    # The gradient of one leaf after another.
    assert made.scratch <= 4 * SIZE + 4 * SCALARS


def test_under_vmap_there_are_as_many_loops():
    optimizer = adadelta()
    params = jax.tree.map(lambda p: jnp.stack([p] * 5), leaves())
    state = jax.vmap(optimizer.init)(params)
    made = Program(jax.vmap(stepper(optimizer)), params, state, params, donate=(0, 1))
    assert made.kernels.count("fusion") <= 3 * len(SHAPES) + 1  # and that of the counts
    assert made.copies == []
    assert made.scratch < SCALARS


@pytest.mark.parametrize(
    ("types", "spec"),
    [(AxisType.Auto, PartitionSpec("data")), (AxisType.Explicit, PartitionSpec(None, "data"))],
)
def test_on_eight_devices_each_steps_its_own_part_and_asks_no_other(types, spec):
    sharding = NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(types,)), spec)
    optimizer = adadelta()
    params = jax.device_put({"w": jnp.ones((64, 256)), "v": jnp.ones((32, 1024))}, sharding)
    made = Program(stepper(optimizer), params, optimizer.init(params), params, donate=(0, 1))
    assert made.kernels == ["fusion"] * 6
    assert made.copies == []
    assert made.scratch < SCALARS
    assert made.aliased >= 12 * (64 * 256 + 32 * 1024) / 8


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_for_other_platforms_there_is_nothing_that_cannot_be_fused(platform, dtype):
    optimizer = adadelta(weight_decay=1e-4)
    params = leaves(dtype)
    exported = jax.export.export(jax.jit(stepper(optimizer)), platforms=[platform])(
        params, optimizer.init(params), params
    )
    ops = set(re.findall(r"(?:stablehlo|chlo)\.(\w+)", exported.mlir_module()))
    elementwise = {"abs", "add", "and", "clamp", "compare", "complex", "constant", "convert"}
    elementwise |= {"broadcast_in_dim", "divide", "imag", "maximum", "minimum", "multiply"}
    elementwise |= {"negate", "or", "real", "select", "sqrt", "square", "subtract"}
    assert ops <= elementwise


def test_without_jit_an_update_is_one_program(compiled):
    optimizer = adadelta()
    grads = {"a": jnp.ones((7, 1021)), "b": jnp.ones(1031)}
    state = optimizer.init(grads)
    before = compiled()
    _, state = optimizer.update(grads, state)
    assert compiled() == before + 1
    for _ in range(3):
        _, state = optimizer.update(grads, state)
    assert compiled() == before + 1
