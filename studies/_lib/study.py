"""How every study runs: its options, its measurements, and its tables and pictures in a page."""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from studies._lib import data, stamps
from studies._lib.results import (
    DOCS,
    RESULTS,
    Report,
    Reports,
    Results,
    filled,
    load_all,
    provenance,
    read_pages,
)

SMOKE_SEEDS = 2


class Study(NamedTuple):
    """A script that measures something and says it in the documentation.

    Attributes:
      name: the name of its module.
      about: what `--help` says first.
      folder: the name of a page. Pictures go into the folder of docs/ with that name.
      measure: a function of the options and the `Results`, which saves what it measured.
      tables: a function of all reports that returns Markdown by the marks that it goes between.
      pictures: a function of all reports that returns figures by name.
      options: a function that adds options to a parser.
      files: the names of its files of results, with wildcards; by default its own name.
      missing: a function of all reports that says what must still be measured.
    """

    name: str
    about: str
    folder: str
    measure: Callable[[argparse.Namespace, Results], None]
    tables: Callable[[Reports], dict[str, str]]
    pictures: Callable[[Reports], dict[str, Figure]] = lambda reports: {}
    options: Callable[[argparse.ArgumentParser], Any] = lambda parser: None
    files: str = ""
    missing: Callable[[Reports], list[str]] = lambda reports: []

    @property
    def pattern(self) -> str:
        """Returns the names of the files of results, with wildcards."""
        return self.files or self.name


def parser_of(study: Study) -> argparse.ArgumentParser:
    """Returns the parser of the options."""
    parser = argparse.ArgumentParser(
        prog=f"python -m studies.{study.name}",
        description=study.about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    text = "folder for numbers and pictures, which then leaves the documentation as it is"
    text += " (default: studies/results and docs; with --smoke, results)"
    parser.add_argument("--output", type=Path, help=text)
    text = "measure nothing; make tables and pictures of the results (default: off)"
    parser.add_argument("--draw-only", action="store_true", help=text)
    parser.add_argument("--smoke", action="store_true", help="check at small sizes (default: off)")
    study.options(parser)
    return parser


def run(study: Study) -> None:
    """Runs the study. A missing package and Ctrl-C end it with one line."""
    try:
        _run(study)
    except ModuleNotFoundError as error:
        line = f'{error.name} is not installed. Run: pip install -e ".[examples]"'
        raise SystemExit(line) from None
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        raise SystemExit(130) from None


def _run(study: Study) -> None:
    parser = parser_of(study)
    given = parser.parse_args()
    folder = given.output or (Path("results") if given.smoke else RESULTS)
    if not given.draw_only:
        study.measure(given, Results(folder, lambda: provenance(parser, given)))
    reports = load_all(study.pattern, folder)
    if not reports:
        raise SystemExit(f"There is no {study.pattern}.json in {folder}. Measure first.")
    print(f"Numbers: {folder}")
    if missing := study.missing(reports):
        print(f"There are no tables and pictures yet. Not finished: {', '.join(missing)}")
        return
    tables = study.tables(reports)
    for title, table in tables.items():
        print(f"{title}\n\n{table}\n")
    committed = folder == RESULTS
    place = DOCS / study.folder if committed else folder
    for name, figure in study.pictures(reports).items():
        place.mkdir(exist_ok=True)
        figure.savefig(place / f"{name}.png")
        stamps.write(place / f"{name}.png", stamps.of_figure(figure))
        print(f"Picture: {place / name}.png")
    if committed:
        pages = read_pages()
        for page, text in filled(pages, tables).items():
            if text != pages[page]:
                page.write_text(text, encoding="utf-8")
                print(f"Tables: {page}")


def in_parts(
    name: str,
    about: str,
    folder: str,
    *,
    epochs: Mapping[str, int],
    smoke_epochs: int,
    load: Callable[[argparse.Namespace], Any],
    make: Callable[[str, Any, argparse.Namespace], Report],
    tables: Callable[[Report], dict[str, str]],
    pictures: Callable[[Report], dict[str, Figure]],
) -> Study:
    """Returns a study that trains networks with several seeds, in parts that are saved when done.

    `load` is a function of the options that returns the data, `make` one of a part's name, the data
    and the options that returns its results. `tables` and `pictures` get those of all parts.
    """

    def options(parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        text = f"parts to run, of {', '.join(epochs)}; the others stay as they are (default: all)"
        add("--only", nargs="+", choices=epochs, default=list(epochs), metavar="PART", help=text)
        text = "runs of each setting, with different seeds (default: %(default)s)"
        add("--seeds", type=at_least(1), default=5, help=text)
        text = "upper limit of the passes over the training data (default: no limit)"
        add("--epochs", type=at_least(1), help=text)
        data.add_options(parser)

    def measure(given: argparse.Namespace, results: Results) -> None:
        report = results.load(name)
        loaded = load(given)
        for part in given.only:
            seeds, most = given.seeds, min(epochs[part], given.epochs or epochs[part])
            if given.smoke:
                seeds, most = min(seeds, SMOKE_SEEDS), min(most, smoke_epochs)
            sizes = {"seeds": seeds, "epochs": most}
            made = make(part, loaded, argparse.Namespace(**vars(given) | sizes))
            report[part] = {**results.made, **sizes, **made}
            results.save(name, report)

    return Study(
        name,
        about,
        folder,
        measure,
        tables=lambda reports: tables(reports[name]),
        pictures=lambda reports: pictures(reports[name]),
        options=options,
        missing=lambda reports: [part for part in epochs if part not in reports[name]],
    )


def at_least(least: int) -> Callable[[str], int]:
    """Returns the type of an option whose number must not be smaller."""

    def number(text: str) -> int:
        if (given := int(text)) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return given

    return number
