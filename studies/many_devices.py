"""Compiles training steps for 8 H100s and 16 TPUs v5e without having them, and reads the programs.

A step is the gradient of a network of two layers, the update and its application, in one jit, with
parameters and state donated. For each card, each way to spread it and each storage, this compares
the program with that of SGD, which has no state: the operations between devices, the copies of
leaves, and the bytes that each device stores and moves. These are properties of the program.
Nothing runs, so nothing is said of time on the card.

Needs: the extra `accelerators`, as README.md says
"""

import argparse
import math
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from studies._lib import workers
from studies._lib.cards import CARDS, devices_of
from studies._lib.programs import collectives, read_program
from studies._lib.results import Report, Reports, Results, markdown, said
from studies._lib.storages import RULES as ALL
from studies._lib.storages import STORAGES
from studies._lib.study import Study, run

DEVICES = {"H100": 8, "TPU v5e": 16}
MODEL = {"H100": 2, "TPU v5e": 4}  # devices along the axis "model" where there are two axes
RULES = {"sgd": optax.sgd(0.1), **{name: ALL[name] for name in STORAGES}}
WIDTH, HIDDEN, BATCH = 1024, 4096, 4096
Specs = dict[str, P]
WHOLE: Specs = {"in": P(None, None), "bias": P(None), "out": P(None, None)}
ROWS: Specs = {"in": P("data", None), "bias": P("data"), "out": P("data", None)}
TENSOR: Specs = {"in": P(None, "model"), "bias": P("model"), "out": P("model", None)}
BOTH: Specs = {"in": P("data", "model"), "bias": P("model"), "out": P("model", "data")}


class Way(NamedTuple):
    """Where the parameters and the averages are; `axes` says which axes have several devices."""

    axes: str
    params: Specs
    averages: Specs


WAYS = {
    "data parallel": Way("data", WHOLE, WHOLE),
    "fully sharded": Way("data", ROWS, ROWS),
    "tensor parallel": Way("model", TENSOR, TENSOR),
    "fully sharded and tensor parallel": Way("both", BOTH, BOTH),
    "ZeRO-1": Way("data", WHOLE, ROWS),
}


def compile_step(card: str, name: str, rule: str) -> Report:
    """Returns the facts of a compiled step of training."""
    way, optimizer, count = WAYS[name], RULES[rule], DEVICES[card]
    model = {"data": 1, "model": count, "both": MODEL[card]}[way.axes]
    devices = devices_of(card, count).reshape(count // model, model)
    mesh = Mesh(devices, ("data", "model"))
    shapes = {"in": (WIDTH, HIDDEN), "bias": (HIDDEN,), "out": (HIDDEN, WIDTH)}

    def abstract(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def tree(specs):
        return {key: abstract(shape, jnp.float32, specs[key]) for key, shape in shapes.items()}

    params = tree(way.params)
    state = optax.tree_map_params(
        optimizer,
        lambda leaf, place: abstract(leaf.shape, leaf.dtype, place.sharding.spec),
        jax.eval_shape(optimizer.init, params),
        tree(way.averages),
        transform_non_params=lambda leaf: abstract(leaf.shape, leaf.dtype, P()),
    )
    x, y = (abstract((BATCH, WIDTH), jnp.float32, P("data", None)) for _ in range(2))

    def placed(tree, specs):
        places = {key: NamedSharding(mesh, spec) for key, spec in specs.items()}
        return jax.lax.with_sharding_constraint(tree, places)

    def loss(params, x, y):
        hidden = jax.nn.relu(x @ params["in"] + params["bias"])
        return jnp.mean((hidden @ params["out"] - y) ** 2)

    def step(params, state, x, y):
        grads = jax.grad(loss)(params, x, y)
        updates, state = optimizer.update(placed(grads, way.averages), state)
        updates = placed(updates, way.params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    program = jitted.lower(params, state, x, y).compile()
    text, averages = program.as_text(), list(tree(way.averages).values())
    leaves = [*jax.tree.leaves(params), *averages]
    sizes = {math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves}
    facts = read_program(text, sizes)
    found = sorted(collectives(text).items())
    return {
        "parameters": sum(map(math.prod, shapes.values())),
        "on a device": sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in averages),
        "collectives": {f"{op} {dtype}{list(shape)}": times for (op, dtype, shape), times in found},
        "copies": facts["copies"],
        "moved": facts["bytes"],
        "stored": sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(state)
            if leaf.ndim
        ),
    }


def measure(given: argparse.Namespace, results: Results) -> None:
    ways = ("ZeRO-1",) if given.smoke else WAYS
    cases = [(card, way, rule) for card in CARDS for way in ways for rule in RULES]
    workers.measure("many_devices", [(case, case) for case in cases], results, together=True)


def table(card: str, found: Report) -> str:
    """Returns what was found for a card as Markdown."""
    rows = []
    storages = [storage for storage in STORAGES if storage in next(iter(found.values()))]
    for way, case in found.items():
        failed = [rule for rule, facts in case.items() if "failed" in facts]
        if failed:
            rows.append([way, *(f"fails with {', '.join(failed)}" for _ in range(4))])
            continue
        sgd, ours = case["sgd"], [case[rule] for rule in storages]
        kinds = Counter()
        for name, times in sgd["collectives"].items():
            kinds[name.partition(" ")[0]] += times
        more = [(Counter(o["collectives"]) - Counter(sgd["collectives"])).total() for o in ours]
        rows.append(
            [
                way,
                ", ".join(f"{times} {kind}" for kind, times in sorted(kinds.items())),
                " / ".join(f"{n}" for n in more),
                " / ".join(f"{o['copies'] - sgd['copies']}" for o in ours),
                " / ".join(f"{o['stored'] / o['parameters']:.3g}" for o in ours),
                " / ".join(f"{(o['moved'] - sgd['moved']) / o['on a device']:.1f}" for o in ours),
            ]
        )
    head = ["training", "operations between devices of SGD", "more of them", "more copies"]
    head += ["state bytes per parameter on each device", "more bytes moved, per element of state"]
    return f"{DEVICES[card]} {card}, {' / '.join(storages)}:\n\n{markdown(head, rows)}"


def tables(reports: Reports) -> dict[str, str]:
    report = reports["many_devices"]
    parts = [table(card, found) for card, found in report["cards"].items()]
    return {"many devices": "\n\n".join([f"{said(report)}.", *parts])}


STUDY = Study("many_devices", __doc__, "scaling", measure, tables)

if __name__ == "__main__":
    workers.work(compile_step) if workers.is_worker() else run(STUDY)
