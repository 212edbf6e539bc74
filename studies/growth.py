"""How the cost of a step grows with the model and with the number of devices.

A step is the update and its application, with parameters and state donated and gradients given. The
model has the leaves of a transformer without embeddings, `12 * layers * width^2` parameters and
a few more. Both the layers and the width grow. Every leaf, and with it the state, is split over all
devices along its first axis (FSDP).

The devices are virtual ones on the CPU. They share its cores and its memory bandwidth, so more of
them bring no more computing power. The meshes of 1, 2, 4 and 8 of them take turns in one process,
with the three storages and optax.adadelta. In each turn the parameters and the state are made anew,
and the first step does not count.

    pip install -e ".[examples]" && python -m studies.growth

It takes six minutes and 9 GB, on a machine that does nothing else.
"""

import gc
import math
import os
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from studies._lib.trees import Shape
from studies._lib.programs import read_program
from studies._growth_report import PAGE, PICTURE, draw, with_tables
from studies._lib.report import RESULTS, check_writable, load, options, provenance, run, save
from studies.state_step import RULES, repeated, stepper

DEVICES = (1, 2, 4, 8)
MODELS = {"1M": (4, 144), "3M": (6, 208), "10M": (8, 320), "30M": (12, 456), "100M": (16, 720)}
SMOKE = {"smoke": (1, 16)}
SMOKE_DEVICES = (1, 4)


def transformer(layers: int, width: int) -> list[Shape]:
    """Returns the shapes of a transformer's leaves, without embeddings."""
    norm: list[Shape] = [(width,), (width,)]
    attention: list[Shape] = [(width, 3 * width), (3 * width,), (width, width), (width,)]
    mlp: list[Shape] = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [*layers * [*norm, *attention, *norm, *mlp], *norm]


def largest_part(tree: Any) -> int:
    """Returns the bytes of the tree on the device that has the most of them."""
    held: dict[jax.Device, int] = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return max(held.values())


def begun(rule: str, grads: list[jax.Array]) -> tuple[Any, Any]:
    """Returns new parameters and their state, where the gradients are."""
    params = [jnp.zeros_like(g) for g in grads]
    return jax.block_until_ready((params, RULES[rule].init(params)))


def built(rule: str, grads: list[jax.Array]) -> tuple[Any, dict[str, Any]]:
    """Returns the compiled step, and what is known of it before it runs."""
    params, state = begun(rule, grads)
    jax.clear_caches()
    wall, cpu = time.perf_counter(), time.process_time()
    program = stepper(RULES[rule]).lower(params, state, grads).compile()
    facts = {
        "compile CPU seconds": time.process_time() - cpu,
        "compile wall seconds": time.perf_counter() - wall,
        "state bytes on a device": largest_part(state),
        "collectives": read_program(program.as_text(), ())["collectives"],
    }
    return program, facts


def measure(
    shapes: list[Shape], counts: tuple[int, ...], rounds: int, progress: tqdm
) -> dict[str, Any]:
    """Returns the measurements of one model; in each round every mesh and rule has a turn."""
    rng, size = np.random.default_rng(0), sum(map(math.prod, shapes))
    gradients = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    grads, programs = {}, {}
    report: dict[str, Any] = {"parameters": size, "leaves": len(shapes), "devices": {}}
    for count in counts:
        mesh = Mesh(jax.devices()[:count], ("data",))
        grads[count] = jax.device_put(gradients, NamedSharding(mesh, PartitionSpec("data")))
        found = report["devices"][str(count)] = {}
        for rule in RULES:
            programs[count, rule], found[rule] = built(rule, grads[count])
            progress.update()
    del gradients
    times: dict[tuple[int, str], list[float]] = {case: [] for case in programs}
    for _ in range(rounds):
        for (count, rule), program in programs.items():
            steps = repeated(program, begun(rule, grads[count]), grads[count])
            steps(1)
            times[count, rule].append(steps(min(20, max(2, 40_000_000 // size))))
            del steps
            progress.update()
    for (count, rule), taken in times.items():
        low, median, high = statistics.quantiles(taken, n=4, method="inclusive")
        facts = {"seconds": median, "quartiles": [low, high], "least": min(taken)}
        report["devices"][str(count)][rule] |= facts
    return report


def main() -> None:
    """Reads the options, measures, writes, and prints the results."""
    parser = options(__spec__.name, __doc__, "growth.json", PAGE)
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="turns of each, at least 2 (default: %(default)s)")
    text = "virtual devices of the largest mesh (default: %(default)s)"
    add("--devices", type=int, choices=DEVICES, default=DEVICES[-1], help=text)
    given = parser.parse_args()
    if given.rounds < 2:
        parser.error("--rounds must be at least 2, for quartiles")
    if given.table:
        report, accelerators = load(given.output), load(RESULTS / "accelerators.json")
        page = with_tables(PAGE.read_text("utf-8"), report, accelerators)
        PAGE.write_text(page, encoding="utf-8")
        draw(report, PICTURE)
        print(f"{given.output} is in {PAGE} and {PICTURE}")
        return

    check_writable(given.output)
    models, counts, rounds = MODELS, DEVICES, given.rounds
    if given.smoke:
        models, counts, rounds = SMOKE, SMOKE_DEVICES, 2
    counts = tuple(count for count in counts if count <= given.devices)
    # JAX reads the flag when it is first asked for devices.
    flag = f"--xla_force_host_platform_device_count={given.devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    jax.config.update("jax_platforms", "cpu")
    report = provenance(parser, given) | {"rounds": rounds, "models": {}}
    jax.jit(jnp.negative).lower(jnp.zeros(8)).compile()  # The first program takes longer.
    turns = len(models) * len(counts) * len(RULES) * (1 + rounds)
    with tqdm(total=turns, unit="turn") as progress:
        for name, (layers, width) in models.items():
            progress.set_description(name)
            shapes = transformer(layers, width)
            found = measure(shapes, counts, rounds, progress)
            report["models"][name] = {"layers": layers, "width": width} | found
            gc.collect()
            save(given.output, report)
    for name, model in report["models"].items():
        for count, rules in model["devices"].items():
            for rule, facts in rules.items():
                print(
                    f"{name}, {count} devices, {rule}: {1e3 * facts['seconds']:.3g} ms,"
                    f" {1e-6 * facts['state bytes on a device']:.4g} MB of state on a device,"
                    f" compiled in {facts['compile CPU seconds']:.2f} CPU s"
                )
    print(f"All of it: {given.output}")


if __name__ == "__main__":
    run(main)
