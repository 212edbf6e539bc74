"""Results: how they are written and read, what made them, and how they go into a page."""

import argparse
import datetime
import functools
import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from studies._lib.stamps import of_arithmetic

ROOT = Path(__file__).parents[2]
DOCS, RESULTS = ROOT / "docs", ROOT / "studies" / "results"
Report = dict[str, Any]
Reports = dict[str, Report]  # by the names of their files, without .json
PACKAGES = ("optax_adadelta", "jax", "jaxlib", "optax", "numpy", "scikit-learn", "keras", "torch")
PACKAGES += ("orbax-checkpoint", "libtpu", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12")
# Options that change no number.
PLACES = ("data_dir", "data_url", "output", "draw_only", "only")


class Results:
    """The files of results in a folder, and what is known of this run."""

    def __init__(self, folder: Path, made: Callable[[], Report]):
        self.folder, self._made = folder, made

    @functools.cached_property
    def made(self) -> Report:
        """Returns the command, the date, the machine, the versions and the arithmetic."""
        return self._made()

    def path(self, name: str) -> Path:
        """Returns where the report of this name is."""
        return self.folder / f"{name}.json"

    def load(self, name: str) -> Report:
        """Returns the report, or an empty one if there is none, and makes sure it can be saved."""
        path = self.path(name)
        new = not path.exists()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()
        except OSError as error:
            raise SystemExit(f"Cannot write --output {path}: {error.strerror}.") from None
        if new:
            path.unlink()
            return {}
        return load(path)

    def save(self, name: str, report: Report) -> None:
        """Writes the report, whole or not at all."""
        path = self.path(name)
        part = path.with_name(path.name + ".part")
        # Numbers go on one line; no string has a line break that is not escaped.
        text = re.sub(r"\n *(?=[-\d\]])", " ", json.dumps(report, indent=1))
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(path)


def load(path: Path) -> Report:
    """Returns the report in the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} is not a file of results: {error}") from None


def load_all(pattern: str, folder: Path = RESULTS) -> Reports:
    """Returns the reports whose names match, sorted by name."""
    return {path.stem: load(path) for path in sorted(folder.glob(f"{pattern}.json"))}


def rounded(values: Any, digits: int = 6) -> Any:
    """Returns arrays and numbers as JSON has them, with few digits; None if not finite."""
    if isinstance(values, dict):
        return {name: rounded(value, digits) for name, value in values.items()}
    if np.ndim(values):
        return [rounded(value, digits) for value in values]
    return float(f"{values:.{digits}g}") if math.isfinite(values) else None


def provenance(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Report:
    """Returns the command, the date, the machine, the versions and the arithmetic."""
    words = []
    for name, value in vars(given).items():
        if name not in PLACES and value != parser.get_default(name):
            values = value if isinstance(value, list) else [] if value is True else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
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


def said(report: Report, *others: str) -> str:
    """Returns the versions of JAX, Optax and other packages, the machine, and the command."""
    given = report["versions"]
    names = ("jax", "optax", *others, "python")
    versions = ", ".join(f"{name} {given[name]}" for name in names if name in given)
    return f"{versions}; {report['machine']}. Made by `{report['command']}`"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Returns a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(pages: dict[Path, str], tables: dict[str, str]) -> dict[Path, str]:
    """Returns the pages with each table between the two marks of its name, wherever they are."""
    pages = dict(pages)
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        found = [page for page, text in pages.items() if 0 <= text.find(begin) < text.find(end)]
        if len(found) != 1:
            raise SystemExit(f"One page of docs/ needs the lines {begin} and {end}, in this order.")
        before, _, rest = pages[found[0]].partition(begin)
        pages[found[0]] = f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"
    return pages


def read_pages() -> dict[Path, str]:
    """Returns the pages of the documentation."""
    return {page: page.read_text("utf-8") for page in sorted(DOCS.glob("*.md"))}
