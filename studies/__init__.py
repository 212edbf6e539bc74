"""Studies: scripts that measure and draw, run as `python -m studies.NAME` from the repository root.

README.md lists them. What they share is in `_lib`.
"""

from importlib.util import find_spec

for _name in ("matplotlib", "pooch", "tqdm"):
    if find_spec(_name) is None:
        raise SystemExit(f'{_name} is not installed. Run: pip install -e ".[examples]"')
