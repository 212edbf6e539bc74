"""Fills the table of docs/memory.md from the results of state_error.py and state_step.py.

It measures nothing.
"""

from studies._lib.results import Report, Reports, markdown
from studies._lib.storages import STORAGES
from studies._lib.study import Study, run

# Computed from the documented block sizes, one float32 per block and average; not measured here.
OTHERS = {
    "`optax.adadelta`, bfloat16 parameters": "4, but small changes of the averages are lost",
    "8-bit Adam of bitsandbytes and torchao": "2.03, in blocks of 256",
}


def span(values: list[float]) -> str:
    """Returns the least and the largest of the values with two digits."""
    low, high = (f"{f(values):.2g}" for f in (min, max))
    return low if low == high else f"{low} to {high}"


def tables(reports: Reports) -> dict[str, str]:
    """Returns a row for each storage: its bytes, its error and its time."""
    reports = dict(reports)
    errors = reports.pop("state_error")["results"]
    backends: dict[str, list[Report]] = {}
    for report in reports.values():
        cases = backends.setdefault(report["machine"].rpartition(", ")[2], [])
        cases += report["cases"].values()
    codes = {name: f"state_bits={bits}" if bits else "" for name, bits in STORAGES.items()}
    states = {name: f"`adadelta({code})`" for name, code in codes.items()}
    rows = []
    for name, state in (states | {"optax": "`optax.adadelta`"}).items():
        first = next(iter(backends.values()))[0]
        size = first.get(name, first["float32"])["state bytes per parameter"]
        measured = errors.get(codes.get(name), {}).values()
        percent = [rhos["rho 0.95"]["percent"] for rhos in measured if isinstance(rhos, dict)]
        times = [
            span([case[name]["seconds"] / case["float32"]["seconds"] for case in cases])
            for cases in backends.values()
        ]
        rows.append([state, f"{size:.3g}", span(percent) if percent else "-", *times])
    rows += [[name, size, *["-"] * (1 + len(backends))] for name, size in OTHERS.items()]
    head = ["state", "bytes per parameter", "error of a path at rho 0.95, %"]
    return {"storages": markdown([*head, *(f"time of a step, {name}" for name in backends)], rows)}


STUDY = Study(
    "state_summary",
    __doc__,
    "memory",
    measure=lambda given, results: None,
    tables=tables,
    files="state_[es]*",  # Of state_error and state_step.
)

if __name__ == "__main__":
    run(STUDY)
