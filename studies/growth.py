"""How the cost of a step grows with the model and with the number of devices.

A step is the update and its application, with parameters and state donated and gradients given. The
model has the leaves of a transformer without embeddings, `12 * layers * width^2` parameters and
a few more. Both the layers and the width grow. Every leaf, and with it the state, is split over all
devices along its first axis (FSDP).

The devices are virtual ones on the CPU. They share its cores and its memory bandwidth, so more of
them bring no more computing power. The meshes of 1, 2, 4 and 8 of them take turns in one process,
with the storages and optax.adadelta. In each turn the parameters and the state are made anew, and
the first step does not count.

It takes six minutes and 9 GB, on a machine that does nothing else. The tables of the estimate for a
large model are made from the programs of accelerators.py.
"""

import argparse
import gc
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from tqdm import tqdm

from studies import _estimate
from studies._lib import cases
from studies._lib.cases import Shape, transformer
from studies._lib.contenders import gradients_of, step_of
from studies._lib.results import RESULTS, Report, Reports, Results, load, markdown, said
from studies._lib.storages import RULES, STORAGES
from studies._lib.study import Study, run
from studies._lib.timing import Contender, Run, compiled, in_turns, repeated

DEVICES = (1, 2, 4, 8)
MODELS = {"1M": (4, 144), "3M": (6, 208), "10M": (8, 320), "30M": (12, 456), "100M": (16, 720)}
SMOKE, SMOKE_DEVICES = {"smoke": (1, 16)}, (1, 4)
# Where float32 and optax coincide, one mark is inside the other.
STYLES = (("#CC79A7", "o", 9), ("#0072B2", "D", 4.5), ("#009E73", "s", 5.5), ("#D55E00", "^", 6))


def largest_part(tree: Any) -> int:
    """Returns the bytes of the tree on the device that has the most of them."""
    held: dict[jax.Device, int] = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return max(held.values())


def sharded(rule: str, grads: list[jax.Array]) -> Contender:
    """Returns the step of these gradients, which makes its parameters and state in each turn."""

    def made() -> tuple[Any, Any]:
        params = [jnp.zeros_like(g) for g in grads]
        return jax.block_until_ready((params, RULES[rule].init(params)))

    params, state = made()
    program, facts = compiled(step_of(RULES[rule]), params, state, grads)
    facts["state bytes on a device"] = largest_part(state)

    def begin() -> Run:
        return repeated(program, made(), grads)

    return Contender(begin, facts)


def measure_model(shapes: list[Shape], counts: tuple[int, ...], rounds: int) -> Report:
    """Returns the measurements of one model on every mesh."""
    gradients, size = gradients_of(shapes), sum(map(math.prod, shapes))
    contenders = {}
    for count in counts:
        mesh = Mesh(jax.devices()[:count], ("data",))
        grads = jax.device_put(gradients, NamedSharding(mesh, PartitionSpec("data")))
        contenders |= {(count, rule): sharded(rule, grads) for rule in RULES}
    times = in_turns(contenders, rounds, steps=min(20, max(2, 40_000_000 // size)))
    devices = {str(count): {rule: times[count, rule] for rule in RULES} for count in counts}
    return {"parameters": size, "leaves": len(shapes), "devices": devices}


def measure(given: argparse.Namespace, results: Results) -> None:
    # JAX reads the flag when it is first asked for devices.
    flag = f"--xla_force_host_platform_device_count={given.devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    jax.config.update("jax_platforms", "cpu")
    models, counts, rounds = MODELS, DEVICES, given.rounds
    if given.smoke:
        models, counts, rounds = SMOKE, SMOKE_DEVICES, 2
    counts = tuple(count for count in counts if count <= given.devices)
    results.load("growth")
    report = {**results.made, "rounds": rounds, "models": {}}
    jax.jit(jnp.negative).lower(jnp.zeros(8)).compile()  # The first program takes longer.
    for name, (layers, width) in (bar := tqdm(models.items(), unit="model")):
        bar.set_description(name)
        found = measure_model(transformer(layers, width), counts, rounds)
        report["models"][name] = {"layers": layers, "width": width, **found}
        gc.collect()
        results.save("growth", report)


def table_of(report: Report, cell: Callable[[Report, Report], str]) -> str:
    """Returns a table of each model on the smallest and the largest mesh."""
    rows = []
    for model in report["models"].values():
        counts = list(model["devices"])
        sizes = [f"{1e-6 * model['parameters']:.3g}M", f"{model['leaves']}"]
        for count in dict.fromkeys((counts[0], counts[-1])):
            rules = model["devices"][count]
            rows.append([*sizes, count, *(cell(model, rules[rule]) for rule in RULES)])
    return markdown(["parameters", "leaves", "devices", *RULES], rows)


def nanoseconds(model: Report, facts: Report) -> list[float]:
    """Returns the median and the quartiles of a step, per parameter."""
    return [1e9 * s / model["parameters"] for s in (facts["seconds"], *facts["quartiles"])]


def tables(reports: Reports) -> dict[str, str]:
    report = reports["growth"]
    model = list(report["models"].values())[-1]
    steps = table_of(report, lambda *case: "{:.3g} ({:.3g} to {:.3g})".format(*nanoseconds(*case)))
    rows = [
        [count, *(f"{1e-6 * rules[rule]['state bytes on a device']:.2f}" for rule in RULES)]
        for count, rules in model["devices"].items()
    ]
    text = "{compile CPU seconds:.2f} / {compile:.2f}"
    parts = {
        f"{said(report)}, {report['rounds']} turns of each.\n\n"
        "A step, nanoseconds per parameter (quartiles):": steps,
        f"State on each device, MB, for {1e-6 * model['parameters']:.4g}M parameters:": markdown(
            ["devices", *RULES], rows
        ),
        "Compile time, CPU seconds / seconds by the clock:": table_of(
            report, lambda _, facts: text.format(**facts)
        ),
    }
    return {
        "growth": "\n\n".join(f"{head}\n\n{table}" for head, table in parts.items()),
        "estimate": _estimate.table(load(RESULTS / "accelerators.json")),
    }


def draw(reports: Reports) -> dict[str, Figure]:
    figure = Figure(figsize=(12.8, 4.8), dpi=100, layout="constrained")
    steps, states, compiling = figure.subplots(1, 3)
    models = reports["growth"]["models"]
    sizes = [model["parameters"] for model in models.values()]
    last = list(models.values())[-1]
    counts = list(last["devices"])
    labels = {"optax": "optax.adadelta", **{name: f"adadelta, {name}" for name in STORAGES}}
    for (rule, label), (color, marker, size) in zip(labels.items(), STYLES, strict=False):
        style = {"color": color, "marker": marker, "markersize": size}
        for count, line in dict.fromkeys(((counts[0], "-"), (counts[-1], ":"))):
            found = [nanoseconds(m, m["devices"][count][rule]) for m in models.values()]
            medians, *quartiles = zip(*found, strict=True)
            is_first = line == "-"
            fill, text = (color, label) if is_first else ("white", None)
            steps.plot(sizes, medians, linestyle=line, markerfacecolor=fill, label=text, **style)
            if is_first:
                steps.fill_between(sizes, *quartiles, color=color, alpha=0.15, linewidth=0)
        held = [last["devices"][c][rule]["state bytes on a device"] / 1e6 for c in counts]
        states.plot(list(map(int, counts)), held, **style)
        taken = [m["devices"][counts[0]][rule]["compile CPU seconds"] for m in models.values()]
        compiling.plot(sizes, taken, **style)
    steps.set(title="Step time", ylabel="nanoseconds per parameter")
    states.set(title=f"State, model of {1e-6 * last['parameters']:.3g}M parameters")
    states.set(ylabel="MB on each device", xlabel="devices")
    states.set_xscale("log", base=2)
    states.set_xticks(list(map(int, counts)), counts)
    compiling.set(title="Compile time, 1 device", ylabel="CPU seconds")
    for panel in (steps, states, compiling):
        panel.grid(alpha=0.4)
    for panel in (steps, compiling):
        panel.set_xscale("log")
        panel.set_xticks(sizes, list(models))
        panel.minorticks_off()
        panel.set_xlabel("parameters")
        panel.set_ylim(bottom=0)
    states.set_yscale("log")
    states.margins(y=0.1)
    states.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    states.yaxis.set_minor_locator(NullLocator())
    states.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    handles, _ = steps.get_legend_handles_labels()
    ends = {"-": f"{counts[0]} device, band: quartiles", ":": f"{counts[-1]} devices"}
    handles += [Line2D([], [], color="black", linestyle=n, label=ends[n]) for n in ends]
    figure.legend(handles=handles, loc="outside lower center", ncols=6)
    return {"growth": figure}


def options(parser: argparse.ArgumentParser) -> None:
    cases.options(parser, rounds=5, cases=False)
    text = "virtual devices of the largest mesh (default: %(default)s)"
    parser.add_argument("--devices", type=int, choices=DEVICES, default=DEVICES[-1], help=text)


STUDY = Study("growth", __doc__, "scaling", measure, tables, draw, options)

if __name__ == "__main__":
    run(STUDY)
