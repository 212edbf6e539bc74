"""How every experiment runs: options, parts that are saved when they are done, and pictures."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from studies._lib import report as _report
from studies._lib.stamps import stamp
from studies._lib import data as _data

MOST_SMOKE_SEEDS = 2


class Experiment(NamedTuple):
    """An experiment, in parts that can be made one at a time.

    Attributes:
      module: the name of its module.
      description: what `--help` says first.
      epochs: for each part, the epochs of a full run.
      load: a function of the options that returns the data.
      make: a function of a part's name, the data and the options that returns the results to save.
      pictures: a function of all results that returns figures by name.
      tables: a function of all results that returns Markdown tables by name.
    """

    module: str
    description: str
    epochs: Mapping[str, int]
    load: Callable[[argparse.Namespace], Any]
    make: Callable[[str, Any, argparse.Namespace], dict[str, Any]]
    pictures: Callable[[dict[str, Any]], dict[str, Any]]
    tables: Callable[[dict[str, Any]], dict[str, str]]
    smoke_epochs: int


def parser_of(experiment: Experiment) -> argparse.ArgumentParser:
    """Returns the parser of the options."""
    parser = _report.options(experiment.module, experiment.description)
    add = parser.add_argument
    parts = list(experiment.epochs)
    text = f"parts to run, of {', '.join(parts)}; the others stay as they are (default: all)"
    add("--only", nargs="+", choices=parts, default=parts, metavar="PART", help=text)
    text = "runs of each setting, with different seeds (default: %(default)s)"
    add("--seeds", type=int, default=5, help=text)
    text = "upper limit of the passes over the training data (default: no limit)"
    add("--epochs", type=int, help=text)
    text = "folder for numbers and pictures (default: %(default)s)"
    add("--output", type=Path, default=Path("results"), help=text)
    text = "train nothing; draw and print again the results in --output (default: off)"
    add("--draw-only", action="store_true", help=text)
    text = f"quick check: little data, {MOST_SMOKE_SEEDS} seeds, few epochs (default: off)"
    add("--smoke", action="store_true", help=text)
    _data.add_options(parser)
    return parser


def run(experiment: Experiment) -> None:
    """Reads the options, runs the parts, saves each when it is done, draws, and prints tables."""
    parser = parser_of(experiment)
    options = parser.parse_args()
    if options.seeds < 1 or (options.epochs is not None and options.epochs < 1):
        parser.error("--seeds and --epochs must be at least 1")

    name, suffix = experiment.module.rpartition(".")[2], "-smoke" * options.smoke
    file = options.output / f"{name}{suffix}.json"
    if not options.draw_only:
        _report.check_writable(file)
        made = _report.provenance(parser, options)
        before = _report.load(file) if file.exists() else {}
        saved = {part: before[part] for part in experiment.epochs if part in before}
        data = experiment.load(options)
        for part in options.only:
            given = argparse.Namespace(**vars(options))
            given.epochs = min(experiment.epochs[part], options.epochs or experiment.epochs[part])
            if options.smoke:
                given.seeds = min(options.seeds, MOST_SMOKE_SEEDS)
                given.epochs = min(given.epochs, experiment.smoke_epochs)
            sizes = {"seeds": given.seeds, "epochs": given.epochs}
            saved[part] = {**made, **sizes, **experiment.make(part, data, given)}
            _report.save(file, saved)
    saved = _report.load(file)
    found = {part: saved[part] for part in experiment.epochs if part in saved}
    if missing := [part for part in experiment.epochs if part not in found]:
        print(f"There are no tables and pictures yet. Run also: --only {' '.join(missing)}")
    else:
        for title, table in experiment.tables(found).items():
            print(f"{title}\n\n{table}\n")
        for title, figure in experiment.pictures(found).items():
            picture = options.output / f"{title}{suffix}.png"
            figure.savefig(picture)
            stamp(picture, Path(__file__).with_name(f"{name}.py"), found)
            print(f"Picture: {picture}")
    print(f"Numbers: {file}")
