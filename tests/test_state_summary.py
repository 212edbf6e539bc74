"""The table of docs/memory.md, made from the results of two benchmarks."""

import scripts

MODULE = scripts.module("studies.state_summary")


def steps(machine, ratios):
    forms = ("float32", "16 bits", "8 bits", "optax")
    bytes_each = dict(zip(forms, (8, 4, 2, 8), strict=True))
    return {
        "machine": machine,
        "cases": {
            str(ratio): {
                form: {
                    "seconds": ratio if form == "8 bits" else 1,
                    "state bytes per parameter": size,
                }
                for form, size in bytes_each.items()
            }
            for ratio in ratios
        },
    }


def test_a_row_has_the_range_of_every_machine():
    percent = {"mixed": {"rho 0.95": {"percent": 2.04}}, "rows": {"rho 0.95": {"percent": 3.16}}}
    codes = {"bytes per parameter": 2, "shipped": True, **percent}
    errors = {"results": {"state_bits=16": codes, "state_bits=8": codes}}
    reports = [steps("x86, 2 cores, One", (1.5, 2)), steps("x86, 2 cores, One", (1.75,))]
    lines = MODULE.table(errors, [*reports, steps("x86, Other", (0.5,))]).splitlines()
    assert lines[0].endswith("| time of a step, One | time of a step, Other |")
    assert lines[4] == "| `adadelta(state_bits=8)` | 2 | 2 to 3.2 | 1.5 to 2 | 0.5 |"
    assert lines[5] == "| `optax.adadelta` | 8 | - | 1 | 1 |"
    assert len(lines) == 2 + 6


def test_the_page_shows_the_committed_results():
    page = MODULE.PAGE.read_text("utf-8")
    assert MODULE.with_table(page, *MODULE.results()) == page
