"""The tables and the picture of what growth.py measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from studies import _estimate
from studies._lib.stamps import stamp
from studies._lib.report import DOCS, filled, markdown
from studies.step_report import versions

PAGE = DOCS / "scaling.md"
PICTURE = DOCS / "scaling" / "growth.png"
# The color, the marker and its size; where float32 and optax coincide, one is inside the other.
STYLES = {
    "optax": ("#CC79A7", "o", 9),
    "float32": ("#0072B2", "D", 4.5),
    "16 bits": ("#009E73", "s", 5.5),
    "8 bits": ("#D55E00", "^", 6),
}
LABELS = {"optax": "optax.adadelta", "float32": "adadelta, float32"}
LABELS |= {form: f"adadelta, {form}" for form in ("16 bits", "8 bits")}
ORDER = ("float32", "16 bits", "8 bits", "optax")


def nanoseconds(model: dict[str, Any], facts: dict[str, Any]) -> list[float]:
    """Returns the median and the quartiles of a step, per parameter."""
    return [1e9 * s / model["parameters"] for s in (facts["seconds"], *facts["quartiles"])]


def size_of(model: dict[str, Any]) -> tuple[str, str]:
    """Returns the parameters and the leaves of the model."""
    return f"{1e-6 * model['parameters']:.3g}M", f"{model['leaves']}"


def table_of(report: dict[str, Any], cell: Callable[[dict, dict], str]) -> str:
    """Returns a table of each model on the smallest and the largest mesh."""
    rows = []
    for model in report["models"].values():
        counts = list(model["devices"])
        for count in dict.fromkeys((counts[0], counts[-1])):
            rules = model["devices"][count]
            rows.append([*size_of(model), count, *(cell(model, rules[rule]) for rule in ORDER)])
    return markdown(["parameters", "leaves", "devices", *ORDER], rows)


def step_table(report: dict[str, Any]) -> str:
    """Returns nanoseconds per parameter, with quartiles."""
    return table_of(report, lambda *case: "{:.3g} ({:.3g} to {:.3g})".format(*nanoseconds(*case)))


def state_table(report: dict[str, Any]) -> str:
    """Returns the state of the largest model on each device."""
    model = list(report["models"].values())[-1]
    rows = [
        [count, *(f"{1e-6 * rules[rule]['state bytes on a device']:.2f}" for rule in ORDER)]
        for count, rules in model["devices"].items()
    ]
    return markdown(["devices", *ORDER], rows)


def compile_table(report: dict[str, Any]) -> str:
    """Returns the seconds of compiling."""
    text = "{compile CPU seconds:.2f} / {compile wall seconds:.2f}"
    return table_of(report, lambda _, facts: text.format(**facts))


def tables(report: dict[str, Any]) -> str:
    """Returns all that was measured as Markdown."""
    last = 1e-6 * list(report["models"].values())[-1]["parameters"]
    said = f"{versions(report)}. Made by `{report['command']}`, {report['rounds']} turns of each."
    parts = {
        f"{said}\n\nA step, nanoseconds per parameter (quartiles):": step_table(report),
        f"State on each device, MB, for {last:.4g}M parameters:": state_table(report),
        "Compile time, CPU seconds / seconds by the clock:": compile_table(report),
    }
    return "\n\n".join(f"{head}\n\n{table}" for head, table in parts.items())


def with_tables(page: str, report: dict[str, Any], accelerators: dict[str, Any]) -> str:
    """Returns the page with its tables made anew."""
    page = filled(page, "growth", tables(report))
    return filled(page, "estimate", _estimate.tables(accelerators))


def draw(report: dict[str, Any], picture: Path) -> None:
    """Draws the time of a step, the state on each device, and the time of compiling."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    figure = Figure(figsize=(12.8, 4.8), dpi=100, layout="constrained")
    steps, states, compiling = figure.subplots(1, 3)
    models = report["models"]
    sizes = [model["parameters"] for model in models.values()]
    counts = list(next(iter(models.values()))["devices"])
    last = list(models.values())[-1]

    def of(rule: str, count: str, key: str) -> list[float]:
        return [model["devices"][count][rule][key] for model in models.values()]

    for rule, (color, marker, size) in STYLES.items():
        style = {"color": color, "marker": marker, "markersize": size}
        for count, line in dict.fromkeys(((counts[0], "-"), (counts[-1], ":"))):
            label = LABELS[rule] if line == "-" else None
            found = [nanoseconds(m, m["devices"][count][rule]) for m in models.values()]
            medians, *quartiles = zip(*found, strict=True)
            fill = color if line == "-" else "white"
            steps.plot(sizes, medians, linestyle=line, markerfacecolor=fill, label=label, **style)
            if line == "-":
                steps.fill_between(sizes, *quartiles, color=color, alpha=0.15, linewidth=0)
        held = [last["devices"][c][rule]["state bytes on a device"] / 1e6 for c in counts]
        states.plot(list(map(int, counts)), held, **style)
        compiling.plot(sizes, of(rule, counts[0], "compile CPU seconds"), **style)
    steps.set_title("Step time")
    steps.set_ylabel("nanoseconds per parameter")
    states.set_title(f"State, model of {1e-6 * last['parameters']:.3g}M parameters")
    states.set_ylabel("MB on each device")
    states.set_xlabel("devices")
    states.set_xscale("log", base=2)
    states.set_xticks(list(map(int, counts)), counts)
    compiling.set_title("Compile time, 1 device")
    compiling.set_ylabel("CPU seconds")
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
    said = {"-": f"{counts[0]} device, band: quartiles", ":": f"{counts[-1]} devices"}
    handles += [Line2D([], [], color="black", linestyle=n, label=said[n]) for n in said]
    figure.legend(handles=handles, loc="outside lower center", ncols=6)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)
    stamp(picture, Path(__file__), report)
