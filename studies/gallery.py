"""Make all numbers, pictures and tables of docs/gallery.md.

Runs the examples and experiments one after the other, each in full, into one folder. That takes an
hour and a half on two cores, nearly all of it for the MNIST tables and figures. With --draw-only
the experiments are not trained again, only drawn, which takes a minute. Then the tables go into
docs/gallery.md, if the folder is docs/gallery.

Needs: pip install -e ".[examples]"
"""

import argparse
import subprocess
import sys
from pathlib import Path

from studies._lib import report as _report
from studies._lib.stamps import ROOT, stamp
from studies import airfoil, mnist_figures, mnist_tables
from studies._lib import data as _data

FOLDER, PAGE = _report.DOCS / "gallery", _report.DOCS / "gallery.md"
EXAMPLES = ("digits", "linear_regression", "speaker", "trajectories")
EXPERIMENTS = {
    "airfoil": airfoil.EXPERIMENT,
    "mnist_tables": mnist_tables.EXPERIMENT,
    "mnist_figures": mnist_figures.EXPERIMENT,
}


def command(name: str, options: argparse.Namespace) -> list[str]:
    """Returns the command that runs an example or an experiment into the folder."""
    if name in EXAMPLES:
        words = [str(ROOT / "examples" / f"{name}.py"), "--output", str(picture(name, options))]
        if name == "speaker":
            words += ["--results", str(picture(name, options).with_suffix(".json"))]
    else:
        words = ["-m", f"experiments.{name}", "--output", str(options.output)]
        words += ["--draw-only"] * options.draw_only
        if options.data_url:
            words += ["--data-url", options.data_url]
    if options.data_dir and (name == "speaker" or name in EXPERIMENTS):
        words += ["--data-dir", str(options.data_dir)]
    return [sys.executable, *words, *["--smoke"] * options.smoke]


def picture(name: str, options: argparse.Namespace) -> Path:
    """Returns where an example writes its picture."""
    return options.output / f"{name}{'-smoke' * options.smoke}.png"


def with_tables(page: str, folder: Path = FOLDER) -> str:
    """Returns the page with the tables of the results in the folder."""
    for name, experiment in EXPERIMENTS.items():
        for title, table in experiment.tables(_report.load(folder / f"{name}.json")).items():
            page = _report.filled(page, title, table)
    return _report.filled(page, "speaker", speaker_table(_report.load(folder / "speaker.json")))


def speaker_table(results: dict) -> str:
    """Returns the test accuracies of examples/speaker.py."""
    percent = [100 * accuracy for accuracy in results["accuracies"]]
    row = [f"{sum(percent) / len(percent):.1f}", *(f"{value:.1f}" for value in percent)]
    seeds = [f"seed {i}" for i in range(len(percent))]
    return _report.markdown(["", "mean", *seeds], [["test accuracy, %", *row]])


def main() -> None:
    """Reads the options, and runs the examples and experiments."""
    parser = _report.options(__spec__.name, __doc__)
    add, names = parser.add_argument, [*EXAMPLES, *EXPERIMENTS]
    text = f"which to run, of {', '.join(names)} (default: all)"
    add("--only", nargs="+", choices=names, default=names, metavar="NAME", help=text)
    text = "the folder for numbers and pictures (default: docs/gallery)"
    add("--output", type=Path, default=FOLDER, help=text)
    add("--draw-only", action="store_true", help="train no experiment (default: off)")
    add("--smoke", action="store_true", help="quick check at small sizes (default: off)")
    _data.add_options(parser)
    options = parser.parse_args()

    for name in options.only:
        print(f"=== {name}", flush=True)
        try:
            done = subprocess.run(command(name, options))
        except KeyboardInterrupt:
            raise SystemExit(130) from None  # The example has said so.
        if done.returncode:
            raise SystemExit(f"{name} failed with exit status {done.returncode}.")
        if name in EXAMPLES:
            made = picture(name, options)
            for path in filter(Path.exists, (made, made.with_suffix(".gif"))):
                stamp(path, ROOT / "examples" / f"{name}.py")
    if options.output.resolve() == FOLDER and not options.smoke:
        PAGE.write_text(with_tables(PAGE.read_text("utf-8")), encoding="utf-8")
        print(f"Tables: {PAGE}")
    print(f"Numbers and pictures: {options.output}")


if __name__ == "__main__":
    _report.run(main)
