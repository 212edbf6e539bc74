"""The examples' results: numbers in a JSON file that says what made them."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("optax_adadelta", "jax", "jaxlib", "optax", "numpy")
# Options that change no number; where somebody keeps things is nobody else's business.
PLACES = ("data_dir", "data_url", "output", "draw_only")


def provenance(parser: argparse.ArgumentParser, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the command that was given, the date, the machine and the versions."""
    words = ["python", f"examples/{parser.prog}"]
    for name, value in vars(options).items():
        if name not in PLACES and value != parser.get_default(name):
            values = value if isinstance(value, list) else [] if value is True else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return {
        "command": shlex.join(words),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}",
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def make_folder(folder: Path) -> None:
    """Makes the folder, so that no result is lost for want of one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"--output {folder} cannot be a folder: {error}") from error


def save(path: Path, report: dict[str, Any]) -> None:
    """Writes the report, whole or not at all."""
    part = path.with_name(path.name + ".part")
    # Numbers go on one line; no string has a line break that is not escaped.
    text = re.sub(r"\n *(?=[-\d\]])", " ", json.dumps(report, indent=1))
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


def load(path: Path) -> dict[str, Any]:
    """Returns the report in the file."""
    if not path.is_file():
        raise SystemExit(f"There is no {path} to draw from; run without --draw-only first.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SystemExit(f"{path} is not a file of results: {error}") from error
