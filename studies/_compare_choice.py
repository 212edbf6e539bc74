"""How the settings of nadadelta were chosen and verified, and the tables of that.

The rule was written down before the first run. Everything is chosen on the seven tasks of
`compare.py`, from the test errors of its five seeds: the share, k, the learning rate, the form,
Nesterov or plain momentum, and the momentum itself.

1. No seed fails, also with twice the learning rate. A seed fails if its test error is not finite,
   is no better than a prediction that ignores the input, or is above twice the median of the
   seeds. Where errors are counted, it must also be above the median count by more than three times
   that count's square root, because the counts are small on digits and vowels.
2. The smallest worst ratio: the mean test error of a task divided by that of the best untuned
   method. Ratios that differ by less than 0.05 count as equal.
3. The smallest geometric mean of these ratios. Means that differ by less than 0.01 count as equal.
4. Then A before B, the smaller k, Nesterov before plain, and the smaller share.

A k that makes training depend on the scale of the loss is reported, but not used. Form C was added
later, because of the results on vowels.

Then the choice was verified once, on tasks that were not used. Nothing was chosen there.

The candidates are trained no more; their results stay. They have a share of 5e-6 unless their name
says another. With A and C, a rate of s is the same as a share of 5e-6 s^2.
"""

import numpy as np

from studies._compare_report import geometric, means, number
from studies._lib.methods import FORMER_IDEAS, IDEAS, UNTUNED
from studies._lib.results import Report, Reports, markdown

# Their rates were found by others' tuning, so they are no untuned methods.
TUNED_BY_HAND = ("AdamW, warm-up, 3e-3", "AdamW, warm-up, 1e-2")
COUNTED = "errors in %"


def failures(result: Report, task: Report) -> int:
    """Returns how many seeds failed."""
    errors = np.nan_to_num(np.array(result["test error"], float), nan=np.inf)
    median = np.median(errors)
    bound = 2 * median
    if task["error"] == COUNTED:
        count = median / 100 * task["examples"][-1]
        bound = max(bound, (count + 3 * np.sqrt(count)) / task["examples"][-1] * 100)
    return int(np.sum((errors > bound) | ~np.isfinite(errors)))


def best_untuned(found: Reports) -> np.ndarray:
    """Returns the smallest mean error of a method with its usual settings, [tasks]."""
    names = [name for name in UNTUNED if name not in TUNED_BY_HAND]
    return np.nanmin([means_of(found, name) for name in names], axis=0)


def means_of(found: Reports, name: str) -> np.ndarray:
    """Returns the mean errors of a method, [tasks]. They are NaN where it was not trained."""
    return np.array(
        [
            means({name: [report["methods"][name]]})[0, 0] if name in report["methods"] else np.nan
            for report in found.values()
        ]
    )


def table_of_choice(found: Reports) -> str:
    """Returns the candidates, sorted by failed seeds and then by the worst ratio."""
    best, rows = best_untuned(found), []
    trained = {name for report in found.values() for name in report["methods"]}
    for name in trained - {*UNTUNED, *IDEAS, *FORMER_IDEAS}:
        errors = means_of(found, name)
        known = ~np.isnan(errors)
        tried = [report for report in found.values() if name in report["methods"]]
        failed = sum(failures(report["methods"][name], report["task"]) for report in tried)
        ratios = (errors / best)[known]
        cells = [number(error) if there else "" for error, there in zip(errors, known, strict=True)]
        rows.append((failed, ratios.max(), geometric(ratios), name, cells))
    rows = [
        [shown(name), f"{failed}", f"{worst:.2f}", f"{mean:.2f}", *cells]
        for failed, worst, mean, name, cells in sorted(rows)
    ]
    return markdown(["", "failed", "worst", "mean", *found], rows)


def shown(name: str) -> str:
    """Returns a candidate's name in words. No line breaks inside its numbers."""
    return name.replace("nesterov=False", "plain").replace("=", " ").replace("e-", "e\u2011")
