"""Benchmarks and their results. Run them from the repository root: `python -m studies.step`."""

from importlib.util import find_spec


def require(*packages: str) -> None:
    """Exits with one line if a package that the scripts import is not installed."""
    if missing := [name for name in packages if find_spec(name) is None]:
        raise SystemExit(f'{missing[0]} is not installed. Run: pip install -e ".[examples]"')


require("tqdm")
