"""Training on eight devices, spread in every usual way, against one device and against SGD."""

import collections
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scripts import module
from states import CODE, normal

from optax_adadelta import adadelta

pytestmark = pytest.mark.devices

READER = module("studies._lib.programs")
STEPS = 4
FIRST = np.sqrt(1e-6 / 0.05)  # the largest update of the first step
# Each layer has another storage.
STORAGES = {"w1": None, "w2": 16, "w3": 8, "b3": 8}
SHAPES = {"w1": (32, 128), "w2": (128, 64), "w3": (64, 128), "b3": (128,)}
X, Y = normal((16, 32), 3), normal((16, 128), 4)
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit


class Way(NamedTuple):
    """The sizes of the axes "data" and "model", and where the parameters and the state are."""

    axes: tuple[int, int]
    params: dict[str, P]
    state: dict[str, P]


WHOLE = {"w1": P(None, None), "w2": P(None, None), "w3": P(None, None), "b3": P(None)}
ROWS = {"w1": P("data", None), "w2": P("data", None), "w3": P("data", None), "b3": P("data")}
TENSOR = {"w1": P(None, "model"), "w2": P("model", None), "w3": P(None, "model"), "b3": P("model")}
BOTH = {"w1": P("data", "model"), "w2": P("model", "data"), "w3": P("data", "model")}
BOTH |= {"b3": P("model")}
WAYS = {
    "data parallel": Way((8, 1), WHOLE, WHOLE),
    "fully sharded": Way((8, 1), ROWS, ROWS),
    "tensor parallel": Way((1, 8), TENSOR, TENSOR),
    "data and tensor parallel": Way((4, 2), TENSOR, TENSOR),
    "fully sharded and tensor parallel": Way((4, 2), BOTH, BOTH),
    "ZeRO-1": Way((8, 1), WHOLE, ROWS),
    "ZeRO-1 and tensor parallel": Way((4, 2), TENSOR, BOTH),
}


def params():
    return {name: 0.2 * normal(shape) for name, shape in SHAPES.items()}


def all_storages():
    """An optimizer of leaves that are stored in different ways."""
    rules = {name: adadelta(state_bits=bits) for name, bits in STORAGES.items()}

    def init(params):
        return {name: rules[name].init(p) for name, p in params.items()}

    def update(grads, state, params=None):
        del params
        made = {name: rules[name].update(g, state[name]) for name, g in grads.items()}
        return tuple({name: pair[i] for name, pair in made.items()} for i in (0, 1))

    return optax.GradientTransformation(init, update)


def loss(params, x, y, layouts=(None,) * 3):
    for w, layout in zip(("w1", "w2", "w3"), layouts, strict=True):
        x = jnp.tanh(jnp.einsum("bi,ij->bj", x, params[w], out_sharding=layout))
    return jnp.mean((x + params["b3"][None] - y) ** 2)


class Spread:
    """Parameters, a batch and a step of training, spread in one way."""

    def __init__(self, way, kind):
        self.way, self.kind = WAYS[way], kind
        self.mesh = jax.make_mesh(self.way.axes, ("data", "model"), axis_types=(kind,) * 2)
        self.params, self.state = self.places(self.way.params), self.places(self.way.state)
        self.batch = NamedSharding(self.mesh, P("data", None))

    def places(self, specs):
        return {name: NamedSharding(self.mesh, spec) for name, spec in specs.items()}

    def put(self, tree, places):
        move = jax.sharding.reshard if self.kind == EXPLICIT else jax.lax.with_sharding_constraint
        return move(tree, places)

    def loss(self, params, x, y):
        if self.kind == AUTO:
            return loss(params, x, y)
        # The program itself says what is gathered, and where the output of each layer is.
        gathered = {
            name: P(*(None if axis == "data" else axis for axis in spec))
            for name, spec in self.way.params.items()
        }
        layouts = [P("data", gathered[w][-1]) for w in ("w1", "w2", "w3")]
        return loss(self.put(params, self.places(gathered)), x, y, layouts)

    def step(self, optimizer):
        def step(params, state, x, y):
            grads = jax.grad(self.loss)(params, x, y)
            if self.state != self.params:
                grads = self.put(grads, self.state)
            updates, state = optimizer.update(grads, state)
            if self.state != self.params:
                updates = self.put(updates, self.params)
            return optax.apply_updates(params, updates), state

        return step

    def arguments(self):
        return jax.device_put((params(), (X, Y)), (self.params, self.batch))

    def program(self, optimizer, state):
        """The compiled step."""
        p, xy = self.arguments()
        return jax.jit(self.step(optimizer)).lower(p, state, *xy).compile()


def train(step, params, state, batch):
    """The parameters and the state after a few steps, which change no type and no sharding."""
    before = params, state
    for _ in range(STEPS):
        params, state = step(params, state, *batch)
        assert jax.tree.map(jax.typeof, (params, state)) == jax.tree.map(jax.typeof, before)
        assert_placed((params, state), jax.tree.map(lambda leaf: leaf.sharding, before))
    return params, state


def assert_placed(tree, places):
    for leaf, place in zip(jax.tree.leaves(tree), jax.tree.leaves(places), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)


def assert_trained(found):
    """One device comes to the same. A different order of summation may move a value by a code."""
    for name, bits in STORAGES.items():
        apart = np.abs(found[name] - alone()[name])
        assert np.mean(apart > 1e-6) <= (0.01 if bits else 0)
        assert apart.max() <= 1e-6 + STEPS * FIRST * CODE[bits]


@functools.cache
def alone():
    """The parameters that one device has after as many steps."""
    optimizer = all_storages()

    @jax.jit
    def step(params, state, x, y):
        updates, state = optimizer.update(jax.grad(loss)(params, x, y), state)
        return optax.apply_updates(params, updates), state

    return jax.device_get(train(step, params(), optimizer.init(params()), (X, Y))[0])


@functools.cache
def of_sgd(way, kind):
    """The operations between devices in a step of SGD."""
    spread, optimizer = Spread(way, kind), optax.sgd(0.1)
    with jax.set_mesh(spread.mesh):
        program = spread.program(optimizer, optimizer.init(params()))
        return READER.collectives(program.as_text())


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        ("data parallel", EXPLICIT),
        ("fully sharded", AUTO),
        ("tensor parallel", EXPLICIT),
        ("data and tensor parallel", AUTO),
        ("fully sharded and tensor parallel", EXPLICIT),
        ("ZeRO-1", AUTO),
        ("ZeRO-1 and tensor parallel", EXPLICIT),
    ],
    ids=str,
)
def test_a_step_moves_between_devices_only_what_sgd_moves(way, kind):
    spread, optimizer = Spread(way, kind), all_storages()
    with jax.set_mesh(spread.mesh):
        state = optimizer.init(jax.device_put(params(), spread.state))
        program = spread.program(optimizer, state)
        p, xy = spread.arguments()
        p, _ = train(program, p, state, xy)
    assert READER.collectives(program.as_text()) == of_sgd(way, kind)
    assert_trained(jax.device_get(p))
    if "ZeRO-1" in way:
        # One more operation for each leaf of which a device has a part of the state.
        plain = of_sgd("data and tensor parallel" if "tensor" in way else "data parallel", kind)
        assert of_sgd(way, kind) - plain == collections.Counter(
            ("all-gather", "f32", spread.params[name].shard_shape(shape))
            for name, shape in SHAPES.items()
            if spread.state[name] != spread.params[name]
        )
        assert plain - of_sgd(way, kind) == collections.Counter()
