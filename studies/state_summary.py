"""Fills the table of docs/memory.md from the results of state_error.py and state_step.py.

python -m studies.state_summary
"""

from typing import Any

from studies._lib.report import DOCS, RESULTS, filled, load, load_all, markdown, run

PAGE = DOCS / "memory.md"
PART = "storages"
# Each storage with the names that the results have for it.
STORAGES = {
    "`adadelta()`": ("float32", None),
    "`adadelta(state_bits=16)`": ("16 bits", "state_bits=16"),
    "`adadelta(state_bits=8)`": ("8 bits", "state_bits=8"),
    "`optax.adadelta`": ("optax", None),
}
# Computed from the documented block sizes, one float32 per block and average; not measured here.
OTHERS = {
    "`optax.adadelta`, bfloat16 parameters": "4, but small changes of the averages are lost",
    "8-bit Adam of bitsandbytes and torchao": "2.03, in blocks of 256",
}


def span(values: list[float]) -> str:
    """Returns the least and the largest of the values with two digits."""
    low, high = (f"{f(values):.2g}" for f in (min, max))
    return low if low == high else f"{low} to {high}"


def table(errors: dict[str, Any], steps: list[dict[str, Any]]) -> str:
    """Returns a row for each storage: its bytes, its error and its time."""
    backends: dict[str, list[dict[str, Any]]] = {}
    for report in steps:
        backends.setdefault(report["machine"].rpartition(", ")[2], []).append(report)
    head = ["state", "bytes per parameter", "error of a path at rho 0.95, %"]
    head += [f"time of a step, {name}" for name in backends]
    rows = []
    for storage, (form, code) in STORAGES.items():
        cases = [case for report in steps for case in report["cases"].values()]
        size = cases[0].get(form, cases[0]["float32"])["state bytes per parameter"]
        found = errors["results"].get(code)
        measured = [] if found is None else found.values()
        percent = [rhos["rho 0.95"]["percent"] for rhos in measured if isinstance(rhos, dict)]
        row = [storage, f"{size:.3g}", span(percent) if percent else "-"]
        for reports in backends.values():
            of_backend = [case for report in reports for case in report["cases"].values()]
            ratios = [c[form]["seconds"] / c["float32"]["seconds"] for c in of_backend]
            row.append(span(ratios) if form != "float32" else "1")
        rows.append(row)
    rows += [[name, size, *["-"] * (1 + len(backends))] for name, size in OTHERS.items()]
    return markdown(head, rows)


def with_table(page: str, errors: dict[str, Any], steps: list[dict[str, Any]]) -> str:
    """Returns the page with its table made anew."""
    return filled(page, PART, table(errors, steps))


def results() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the committed results of both benchmarks."""
    return load(RESULTS / "state_error.json"), load_all("state_step-*.json")


def main() -> None:
    """Fills the page."""
    PAGE.write_text(with_table(PAGE.read_text("utf-8"), *results()), encoding="utf-8")
    print(f"The table is in {PAGE}")


if __name__ == "__main__":
    run(main)
