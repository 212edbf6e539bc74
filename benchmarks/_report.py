"""What every benchmark's results say of themselves, and the file and the page they go to."""

import datetime
import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).parent / "results"


def provenance(command: str, packages: tuple[str, ...]) -> dict[str, Any]:
    """Returns the command, the date, the machine and the versions of the packages found."""
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
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {device}",
        "versions": versions,
    }


def _processor() -> str | None:
    """Returns the processor's name, where Linux tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else None


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


def save(path: Path, report: dict[str, Any]) -> None:
    """Writes the report, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    text = re.sub(r"\n *(?=[-\d\]])", " ", json.dumps(report, indent=1))
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)
