"""Runs the examples of docs/gallery.md, each in full, and stamps their pictures.

It takes three minutes. The other pictures of that page come from airfoil.py, mnist_tables.py and
mnist_figures.py.
"""

import argparse
import subprocess
import sys

from studies._lib import stamps
from studies._lib.results import DOCS, RESULTS, ROOT, Reports, Results, markdown
from studies._lib.study import Study, run

EXAMPLES = ("digits", "linear_regression", "speaker", "trajectories")


def measure(given: argparse.Namespace, results: Results) -> None:
    folder = DOCS / "gallery" if results.folder == RESULTS else results.folder
    for name in given.only:
        print(f"=== {name}", flush=True)
        program, picture = ROOT / "examples" / f"{name}.py", folder / f"{name}.png"
        words = [sys.executable, program, "--output", picture, *["--smoke"] * given.smoke]
        if name == "speaker":
            words += ["--results", results.path(name)]
            words += ["--data-dir", given.data_dir] if given.data_dir else []
        done = subprocess.run(words)
        if done.returncode:
            raise SystemExit(f"{name} failed with exit status {done.returncode}.")
        for path in (picture, picture.with_suffix(".gif")):
            if path.exists():
                stamps.write(path, stamps.of_program(program))


def tables(reports: Reports) -> dict[str, str]:
    percent = [100 * accuracy for accuracy in reports["speaker"]["accuracies"]]
    row = [f"{sum(percent) / len(percent):.1f}", *(f"{value:.1f}" for value in percent)]
    seeds = [f"seed {i}" for i in range(len(percent))]
    return {"speaker": markdown(["", "mean", *seeds], [["test accuracy, %", *row]])}


def options(parser: argparse.ArgumentParser) -> None:
    text = f"which to run, of {', '.join(EXAMPLES)} (default: all)"
    names = {"nargs": "+", "choices": EXAMPLES, "default": EXAMPLES, "metavar": "NAME"}
    parser.add_argument("--only", help=text, **names)
    parser.add_argument("--data-dir", help="folder that has the speakers (default: download)")


STUDY = Study("gallery", __doc__, "gallery", measure, tables, options=options, files="speaker")

if __name__ == "__main__":
    run(STUDY)
