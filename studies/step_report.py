"""The tables and the picture of docs/performance.md, from the results of step.py.

pip install -e ".[plot]" && python -m studies.step_report
"""

from pathlib import Path
from typing import Any

from studies._lib.stamps import stamp
from studies._lib.report import DOCS, RESULTS, filled, load_all, markdown, options, run

PAGE = DOCS / "performance.md"
PICTURE = DOCS / "performance" / "step.png"
WHO = (
    "optax_adadelta",
    "optax",
    "keras",
    "torch for-loop",
    "torch foreach",
    "torch compiled",
    "floor",
)
FEW = 1000  # parameters, of which nanoseconds per parameter say nothing


def versions(report: dict[str, Any]) -> str:
    """Returns what was measured, on what."""
    given = report["versions"]
    names = [n for n in ("jax", "optax", "keras", "torch", "python") if n in given]
    return ", ".join(f"{name} {given[name]}" for name in names) + f"; {report['machine']}"


def nanoseconds(case: dict[str, Any], setting: str, who: str) -> float:
    """Returns the nanoseconds per parameter of a step."""
    return 1e9 * case[setting][who]["seconds"] / case["parameters"]


def sizeable(report: dict[str, Any]) -> dict[str, Any]:
    """Returns the cases with parameters enough to speak of nanoseconds per parameter."""
    return {name: case for name, case in report["cases"].items() if case["parameters"] >= FEW}


def step_table(report: dict[str, Any], setting: str) -> str:
    """Returns nanoseconds per parameter and ratios."""
    cases = sizeable(report)
    # The floor's loop does not clip.
    compared = WHO if setting == "alone" else WHO[:-1]
    who = [w for w in compared if any(w in case[setting] for case in cases.values())]
    head = ["case", *who, "times as fast as optax"]
    if "floor" in who:
        head.append("times the floor")
    rows = []
    for name, case in cases.items():
        measured = case[setting]
        row = [
            name,
            *(f"{nanoseconds(case, setting, w):.2f}" if w in measured else "" for w in who),
        ]
        ours = measured["optax_adadelta"]["seconds"]
        row.append(f"{measured['optax']['seconds'] / ours:.1f}")
        if "floor" in who:
            row.append(f"{ours / measured['floor']['seconds']:.1f}")
        rows.append(row)
    return markdown(head, rows)


COLUMNS = (
    ("step, ms", "seconds", 1e3, ".2f"),
    ("of it until the call returns", "seconds until begun", 1e3, ".2f"),
    ("peak, MB", "peak bytes", 1e-6, ".0f"),
    ("bytes per parameter", "bytes per parameter", 1, ".0f"),
    ("scratch", "scratch bytes per parameter", 1, ".0f"),
    ("loops", "kernels", 1, "d"),
    ("trace, s", "trace", 1, ".2f"),
    ("lower, s", "lower", 1, ".2f"),
    ("compile, s", "compile", 1, ".2f"),
)


def program_table(report: dict[str, Any]) -> str:
    """Returns what the compiled programs are, ours before optax's."""
    rows = []
    for name, case in report["cases"].items():
        cells = [
            " / ".join(
                "?"
                if case["alone"][who][key] is None
                else f"{scale * case['alone'][who][key]:{form}}"
                for who in ("optax_adadelta", "optax")
            )
            for _, key, scale, form in COLUMNS
        ]
        rows.append([name, *cells])
    return markdown(["case", *(head for head, *_ in COLUMNS)], rows)


def seconds_table(measured: dict[str, Any]) -> str:
    """Returns milliseconds a step."""
    rows = [
        [
            who,
            f"{1e3 * facts['seconds']:.2f}",
            " to ".join(f"{1e3 * q:.2f}" for q in facts["quartiles"]),
        ]
        for who, facts in measured.items()
        if who != "floor"
    ]
    return markdown(["", "ms", "quartiles"], rows)


def parts(reports: list[dict[str, Any]]) -> dict[str, str]:
    """Returns the page's generated parts by name."""
    made = {}
    for report in reports:
        jax = ".".join(report["versions"]["jax"].split(".")[:2])
        said = f"{versions(report)}. Made by `{report['command']}`."
        made[f"alone {jax}"] = f"{said}\n\n{step_table(report, 'alone')}"
        made[f"clipped {jax}"] = step_table(report, "clipped")
        made[f"program {jax}"] = program_table(report)
        made[f"training {jax}"] = seconds_table(report["training"])
        made[f"eager {jax}"] = seconds_table(report["cases"]["784-500-300-10"]["eager"])
    return made


def with_parts(page: str, made: dict[str, str]) -> str:
    """Returns the page with those of the parts that it has marks for."""
    for name, text in made.items():
        if f"<!-- {name} -->" in page:
            page = filled(page, name, text)
    return page


def draw(reports: list[dict[str, Any]], picture: Path) -> None:
    """Draws nanoseconds per parameter of every case and contender."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        1,
        len(reports),
        figsize=(6.2 * len(reports), 4.6),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    panels = panels[0]
    styles = dict(zip(WHO, ("D", "o", "s", "^", "v", "P", "|"), strict=True))
    colors = dict(zip(WHO, ("C3", "C0", "C4", "C1", "C8", "C2", "black"), strict=True))
    for panel, report in zip(panels, reports, strict=True):
        cases = sizeable(report)
        for place, who in enumerate(WHO):
            points = [
                (
                    nanoseconds(case, "alone", who),
                    i + (0 if who == "floor" else 0.09 * (place - 2.5)),
                )
                for i, case in enumerate(cases.values())
                if who in case["alone"]
            ]
            if points:
                panel.scatter(
                    *zip(*points, strict=True),
                    marker=styles[who],
                    color=colors[who],
                    s=420 if who == "floor" else 42,
                    label=who,
                    zorder=3,
                )
        panel.set_yticks(range(len(cases)), cases)
        panel.set_xscale("log")
        ticks = [0.3, 0.5, 1, 2, 3, 5, 10]
        panel.set_xticks(ticks, [str(t) for t in ticks])
        panel.minorticks_off()
        panel.grid(axis="x", alpha=0.4)
        panel.set_xlabel("nanoseconds per parameter, median (lower is better)")
        panel.set_xlim(0.25, 12)
        cores = report["machine"].split(",")[1].strip()
        panel.set_title(f"jax {report['versions']['jax']}, CPU, {cores}")
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=7)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=140)
    stamp(picture, Path(__file__), *reports)
    plt.close(figure)


def main() -> None:
    """Reads the options, writes the page and the picture."""
    parser = options(__spec__.name, __doc__)
    add = parser.add_argument
    text = "folder of step-*.json (default: studies/results)"
    add("--results", type=Path, default=RESULTS, help=text)
    add("--page", type=Path, default=PAGE, help="page to fill (default: docs/performance.md)")
    text = "where to draw (default: docs/performance/step.png)"
    add("--picture", type=Path, default=PICTURE, help=text)
    given = parser.parse_args()
    reports = load_all("step-cpu-*.json", given.results)
    if not reports:
        raise SystemExit(f"There are no step-cpu-*.json in {given.results}. Run studies.step.")
    made = parts(reports)
    page = given.page.read_text(encoding="utf-8")
    given.page.write_text(with_parts(page, made), encoding="utf-8")
    draw(reports, given.picture)
    print(f"{len(made)} parts for {given.page}, drawn: {given.picture}")


if __name__ == "__main__":
    run(main)
