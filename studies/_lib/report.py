"""What every benchmark and experiment needs: its options, its results and its errors."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from studies._lib.stamps import of_arithmetic

RESULTS = Path(__file__).parents[1] / "results"
DOCS = Path(__file__).parents[2] / "docs"
PACKAGES = ("optax_adadelta", "jax", "jaxlib", "optax", "numpy")
# Options that change no number.
PLACES = ("data_dir", "data_url", "output", "draw_only", "table")


def options(
    module: str, description: str, output: str | None = None, page: Path | None = None
) -> argparse.ArgumentParser:
    """Returns the parser of a script that is run as `python -m module`.

    With `output`, the name of a file of results, it has `--output` and `--smoke`. With `page` it
    has `--table`, which fills the tables of that page.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if output is not None:
        default = None if output.endswith("VERSION.json") else RESULTS / output
        text = f"where to write JSON (default: studies/results/{output})"
        parser.add_argument("--output", type=Path, default=default, help=text)
        text = "quick check at small sizes (default: off)"
        parser.add_argument("--smoke", action="store_true", help=text)
    if page is not None:
        text = f"measure nothing; put the results into docs/{page.name} (default: off)"
        parser.add_argument("--table", action="store_true", help=text)
    return parser


def run(main: Callable[[], None]) -> None:
    """Runs the script; a missing package and Ctrl-C end it with one line."""
    try:
        main()
    except ModuleNotFoundError as error:
        line = f'{error.name} is not installed. Run: pip install -e ".[examples]"'
        raise SystemExit(line) from None
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        raise SystemExit(130) from None


def provenance(
    parser: argparse.ArgumentParser,
    given: argparse.Namespace,
    packages: tuple[str, ...] = PACKAGES,
) -> dict[str, Any]:
    """Returns the command, the date, the machine, the versions and the arithmetic."""
    words = []
    for name, value in vars(given).items():
        if name not in PLACES and value != parser.get_default(name):
            values = value if isinstance(value, list) else [] if value is True else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0].device_kind
    if device == "cpu":
        device = _processor() or device
    return {
        "command": " ".join([parser.prog, *([shlex.join(words)] if words else [])]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {device}",
        "versions": versions,
        "arithmetic": of_arithmetic(),
    }


def _processor() -> str | None:
    """Returns the processor's name, where Linux tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else None


def check_writable(path: Path) -> None:
    """Makes the file's folder, and exits if the file cannot be written."""
    new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise SystemExit(f"Cannot write --output {path}: {error.strerror}.") from None
    if new:
        path.unlink()


def save(path: Path, report: dict[str, Any]) -> None:
    """Writes the report, whole or not at all."""
    part = path.with_name(path.name + ".part")
    # Numbers go on one line; no string has a line break that is not escaped.
    text = re.sub(r"\n *(?=[-\d\]])", " ", json.dumps(report, indent=1))
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


def load(path: Path) -> dict[str, Any]:
    """Returns the report in the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SystemExit(f"There is no {path}. Run the script without options first.") from None
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} is not a file of results: {error}") from None


def load_all(pattern: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Returns the reports in the files that match, sorted by name."""
    return [load(path) for path in sorted(folder.glob(pattern))]


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Returns a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(page: str, name: str, text: str) -> str:
    """Returns the page with the text between the two marks of this name."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if not 0 <= page.find(begin) < page.find(end):
        raise SystemExit(f"The page needs the lines {begin} and {end}, in this order.")
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"
