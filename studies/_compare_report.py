"""Tables and the picture of compare.py."""

from itertools import cycle

import numpy as np
from matplotlib.figure import Figure

from studies._lib.methods import IDEAS, LONGER, METHODS, TUNED, UNTUNED
from studies._lib.results import Report, Reports, markdown

ADADELTAS = ("Adadelta", "Adadelta, cosine", "Adadelta, eps 1e-4")
NOT_TUNED = {
    "Adadelta": "Adadelta (not tuned)",
    "Adadelta, cosine": "Adadelta, cosine (not tuned)",
    "eps 1e-4, cosine": "Adadelta, eps 1e-4, cosine (not tuned)",
    "eps 1e-4, cosine over the last half": "Adadelta, eps 1e-4, cosine at the end (not tuned)",
}
COLORS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#777777")
MARKERS = "osD^vPX"
WORST_DRAWN = 20.0  # Times the best error. Worse ones are drawn there.
Group = dict[str, list[Report]]  # From a method to its results on each task.


def untuned(found: Reports) -> Group:
    """Returns the methods with their usual settings that were trained on every task."""
    everywhere = [
        name for name in UNTUNED if all(name in report["methods"] for report in found.values())
    ]
    return {name: [report["methods"][name] for report in found.values()] for name in everywhere}


def ideas(found: Reports) -> Group:
    """Returns Adadelta with its usual settings and with each idea."""
    names = (*ADADELTAS, *IDEAS)
    return {name: [report["methods"][name] for report in found.values()] for name in names}


def tuned(found: Reports) -> Group:
    """Returns the methods with tuned learning rates, and Adadelta without tuning."""
    group = {name: [report["tuned"][name] for report in found.values()] for name in TUNED}
    usual = untuned(found) | ideas(found)
    return group | {label: usual[name] for name, label in NOT_TUNED.items()}


def means(group: Group, what: str = "test error") -> np.ndarray:
    """Returns [methods, tasks] means of the seeds. They are infinite where a seed diverged."""
    runs = [[np.mean(np.array(r[what], float)) for r in results] for results in group.values()]
    return np.nan_to_num(runs, nan=np.inf)


def ranks(values: np.ndarray) -> np.ndarray:
    """Returns [methods, tasks] ranks, from 1 for the smallest. Equal values share their ranks."""
    smaller = (values[None] < values[:, None]).sum(axis=1)
    equal = (values[None] == values[:, None]).sum(axis=1)
    return smaller + (equal + 1) / 2


def relative(values: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Returns the geometric mean over the tasks, for each method, of the values divided by `to`."""
    return np.exp(np.log(values / to).mean(axis=1))


def spread(runs: list[float | None]) -> str:
    """Returns the mean and the standard deviation of the seeds."""
    if None in runs:
        return "diverged"
    if len(runs) == 1:
        return f"{runs[0]:.3g} (one seed)"
    mean, deviation = np.mean(runs), np.std(runs, ddof=1)
    if mean < 0.01:
        return f"{mean:.1e} ± {deviation:.1e}"
    digits = max(0, 2 - int(np.floor(np.log10(mean))))
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def ranked(found: Reports, group: Group, what: str) -> str:
    """Returns the table of ranks and values, the best mean rank first."""
    order = ranks(means(group, what))
    rows = []
    for line in np.argsort(order.mean(axis=1), kind="stable"):
        name = list(group)[line]
        cells = [
            f"{spread(result[what])} ({rank:g})"
            for result, rank in zip(group[name], order[line], strict=True)
        ]
        rows.append([name, f"{order[line].mean():.1f}", f"{order[line].max():g}", *cells])
    return markdown(["", "mean rank", "worst", *found], rows)


def table_of_ideas(found: Reports) -> str:
    """Returns the table of ideas, each compared with the default."""
    group = ideas(found)
    values = means(group)
    (default, *_), names = values, list(group)
    ratios = relative(values, default)
    rows = []
    for line in np.argsort(ratios, kind="stable"):
        better = "" if line == 0 else f"{(values[line] < default).sum()} of {len(default)}"
        cells = [spread(result["test error"]) for result in group[names[line]]]
        rows.append([names[line], f"{ratios[line]:.2f}", better, *cells])
    return markdown(["", "error / default's", "better on", *found], rows)


def table_of_longer(found: Reports) -> str:
    """Returns the errors after more steps, after those of the usual ones."""
    tasks = {name: report for name, report in found.items() if report["longer"]}
    head = [f"{name}, {how}" for name in tasks for how in ("usual steps", "five times the steps")]
    rows = []
    for name in LONGER:
        results = [
            report[part][name] for report in tasks.values() for part in ("methods", "longer")
        ]
        rows.append([name, *(spread(result["test error"]) for result in results)])
    return markdown(["", *head], rows)


def table_of_rates(found: Reports) -> str:
    """Returns the table of the chosen learning rates. A star marks an end of the range tried."""
    rows = []
    for name in TUNED:
        row = [name]
        for report in found.values():
            result = report["tuned"][name]
            tried = result["tried"]["learning rates"]
            at_end = result["learning rate"] in (min(tried), max(tried))
            row.append(f"{result['learning rate']:.2g}{'*' * at_end}")
        rows.append(row)
    return markdown(["", *found], rows)


def table_of_tasks(found: Reports) -> str:
    """Returns what the tasks are."""
    rows = []
    for name, report in found.items():
        task = report["task"]
        sizes = ", ".join(f"{n:,}" for n in task["examples"])
        numbers = [f"{task[key]:,}" for key in ("parameters", "batch", "steps")]
        rows.append([name, task["model"], task["error"], sizes, *numbers])
    head = ["", "model", "error", "training, validation, test"]
    return markdown([*head, "parameters", "batch", "steps"], rows)


def tables(found: Reports) -> dict[str, str]:
    methods = [[name, f"`{method.code}`", f"{method.rate:g}"] for name, method in METHODS.items()]
    return {
        "untuned": ranked(found, untuned(found), "test error"),
        "tuned": ranked(found, tuned(found), "test error"),
        "ideas": table_of_ideas(found),
        "rates": table_of_rates(found),
        "longer": table_of_longer(found),
        "untuned losses": ranked(found, untuned(found), "training loss"),
        "tuned losses": ranked(found, tuned(found), "training loss"),
        "tasks": table_of_tasks(found),
        "methods": markdown(["", "settings", "rate"], methods),
    }


def draw(found: Reports) -> Figure:
    groups = {
        "Usual settings": untuned(found),
        "Tuned learning rate": tuned(found),
        "Ideas for Adadelta": ideas(found),
    }
    best = np.concatenate([means(group) for group in groups.values()]).min(axis=0)
    figure = Figure(figsize=(11, 6.2), dpi=120, layout="constrained")
    places = figure.subplot_mosaic(
        [["Usual settings", "Tuned learning rate"], ["Usual settings", "Ideas for Adadelta"]],
        height_ratios=[len(groups["Tuned learning rate"]), len(groups["Ideas for Adadelta"])],
        sharex=True,
    )
    for title, group in groups.items():
        draw_group(places[title], title, group, best, list(found))
    handles, labels = places["Usual settings"].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def draw_group(axes, title: str, group: Group, best: np.ndarray, tasks: list[str]) -> None:
    """Draws a line for each method, with a mark for each task, the best mean at the top."""
    ratios = np.minimum(means(group) / best, WORST_DRAWN)
    middle = relative(ratios, np.ones(len(best)))
    order = np.argsort(middle)
    lines = np.arange(len(order))
    axes.hlines(lines, 1, WORST_DRAWN, color="#E6E6E6", linewidth=0.8, zorder=0)
    styles = zip(cycle(COLORS), cycle(MARKERS + "*"), strict=False)
    for task, (color, marker), column in zip(tasks, styles, ratios[order].T, strict=False):
        axes.plot(column, lines, marker, color=color, markersize=5, alpha=0.85, label=task)
    axes.plot(
        middle[order], lines, "|", color="black", markersize=13, markeredgewidth=2, label="mean"
    )
    axes.set_yticks(lines, [list(group)[line] for line in order], fontsize=9)
    for label in axes.get_yticklabels():
        if label.get_text().startswith("Adadelta"):
            label.set_weight("bold")
    ticks = [1, 2, 3, 5, 10, WORST_DRAWN]
    axes.set(title=title, xscale="log", xlim=(0.93, WORST_DRAWN * 1.1))
    axes.invert_yaxis()
    axes.set_xticks(ticks, [*(f"{tick:g}" for tick in ticks[:-1]), f"{WORST_DRAWN:g}+"])
    axes.set_xticks([], minor=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("error / best error on the task (left is better)")
