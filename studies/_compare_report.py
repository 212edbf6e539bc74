"""Tables and the picture of compare.py.

A method is shown as soon as it has been trained on every task of a table.
"""

import numpy as np
from matplotlib.figure import Figure

from studies._lib.methods import FORMER_IDEAS, FORMER_NADADELTA, METHODS, TUNED
from studies._lib.results import Report, Reports, markdown

# Every error is divided by this method's, on the same task.
REFERENCE = "Prodigy, linear"
# The methods of the page and of the picture, by their names in the results.
SHOWN = {
    "nadadelta": "nadadelta, known steps",
    "nadadelta, averaged": "nadadelta, averaged",
    "Prodigy, linear": "Prodigy, linear decay",
    "Prodigy": "Prodigy",
    "Adam, cosine, tuned": "Adam, cosine, tuned",
    "AdamW, warm-up, 3e-3": "AdamW, warm-up, 0.003",
    "AdamW, warm-up, 1e-2": "AdamW, warm-up, 0.01",
    "SGD, momentum, clipped": "SGD, momentum, clip, 0.1",
    "SGD, momentum": "SGD, momentum, 0.1",
    "NAdam": "NAdam, 0.001",
    "Schedule-free AdamW": "Schedule-free AdamW",
    "Adadelta": "adadelta()",
    "Adam": "Adam, 0.001",
}
COLORS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#777777")
MARKERS = "osD^vPX"
LEAST_DRAWN, MOST_DRAWN = 0.6, 10.0  # Ratios. Larger ones are drawn at the edge.
Group = dict[str, list[Report]]  # From a method to its results on each task.


def trained(found: Reports) -> Group:
    """Returns the methods that were trained on every task, without and with tuning."""
    tasks = [
        report["methods"] | {f"{name}, tuned": result for name, result in report["tuned"].items()}
        for report in found.values()
    ]
    names = [*METHODS, *FORMER_IDEAS, *FORMER_NADADELTA, *(f"{name}, tuned" for name in TUNED)]
    everywhere = [name for name in names if all(name in results for results in tasks)]
    return {name: [results[name] for results in tasks] for name in everywhere}


def means(group: Group) -> np.ndarray:
    """Returns [methods, tasks] mean errors, which are infinite where a seed diverged."""
    runs = [[np.mean(np.array(r["test error"], float)) for r in rs] for rs in group.values()]
    return np.nan_to_num(runs, nan=np.inf)


def geometric(ratios: np.ndarray) -> np.ndarray:
    """Returns the geometric mean over the tasks, the last axis."""
    return np.exp(np.log(ratios).mean(axis=-1))


def number(value: float) -> str:
    """Returns a number with three digits."""
    if not np.isfinite(value):
        return "diverged"
    return f"{value:.{max(0, 2 - int(np.floor(np.log10(value))))}f}"


def spread(runs: list[float | None]) -> str:
    """Returns the mean and the standard deviation of the seeds, with as many decimals."""
    if None in runs or len(runs) == 1:
        return "diverged" if None in runs else number(runs[0])
    mean = number(np.mean(runs))
    return f"{mean} ±{np.std(runs, ddof=1):.{len(mean.partition('.')[2])}f}"


def ratios_to_reference(group: Group, everything: Group) -> np.ndarray:
    """Returns [methods, tasks] mean errors, divided by those of the reference."""
    return means(group) / means({REFERENCE: everything[REFERENCE]})


def table_of_errors(found: Reports, names: dict[str, str] | None = None) -> str:
    """Returns the means of these methods, or the means and spreads of all; the best come first."""
    everything = trained(found)
    names = names or {name: name for name in everything}
    group = {name: everything[name] for name in names if name in everything}
    errors, ratios, rows = means(group), ratios_to_reference(group, everything), []
    for line in np.argsort(geometric(ratios), kind="stable"):
        name = list(group)[line]
        runs = [result["test error"] for result in group[name]]
        cells = map(number, errors[line]) if names is SHOWN else map(spread, runs)
        mean = geometric(ratios[line])
        rows.append([names[name], f"{mean:.2f}" if np.isfinite(mean) else "-", *cells])
    return markdown(["", "error / Prodigy's", *found], rows)


def table_of_tasks(found: Reports) -> str:
    """Returns what the tasks are."""
    rows = []
    for name, report in found.items():
        task = report["task"]
        sizes = [
            f"{task['examples'][0]:,}",
            *(f"{task[k]:,}" for k in ("parameters", "batch", "steps")),
        ]
        rows.append([name, task["model"], task["error"], *sizes])
    return markdown(["", "model", "error", "examples", "parameters", "batch", "steps"], rows)


def draw(found: Reports) -> Figure:
    """Draws a line for each method with a mark for each task, the best mean at the top."""
    everything = trained(found)
    group = {label: everything[name] for name, label in SHOWN.items() if name in everything}
    ratios = ratios_to_reference(group, everything).clip(LEAST_DRAWN, MOST_DRAWN)
    order = np.argsort(-geometric(ratios))
    lines = np.arange(len(order))
    figure = Figure(figsize=(8, 1.7 + 0.36 * len(order)), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.hlines(lines, LEAST_DRAWN, MOST_DRAWN, color="#E6E6E6", linewidth=1, zorder=0)
    axes.axvline(1, color="#999999", linewidth=1, zorder=0)
    for task, color, marker, column in zip(found, COLORS, MARKERS, ratios[order].T, strict=True):
        axes.plot(column, lines, marker, color=color, markersize=8, alpha=0.85, label=task)
    middle = geometric(ratios)[order]
    axes.plot(middle, lines, "|k", markersize=20, markeredgewidth=3.5, label="geometric mean")
    axes.set_yticks(lines, [list(group)[line] for line in order], fontsize=13)
    for label in axes.get_yticklabels():
        label.set_weight("bold" if "adadelta" in label.get_text() else "normal")
    ticks = [0.7, 1, 1.5, 2, 3, 5, 7, MOST_DRAWN]
    axes.set(xscale="log", xlim=(LEAST_DRAWN, 1.05 * MOST_DRAWN))
    axes.set_xticks(ticks, [*(f"{tick:g}" for tick in ticks[:-1]), "10+"], fontsize=12)
    axes.set_xticks([], minor=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(
        "test error / that of Prodigy with a linear decay (left is better)", fontsize=13
    )
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=12)
    return figure
