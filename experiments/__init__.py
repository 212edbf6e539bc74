"""Experiments of the paper and the textbook, and a comparison. Run them from the repository root.

For example `python -m experiments.airfoil`.
"""

from benchmarks import require

require("matplotlib", "pooch", "tqdm")
