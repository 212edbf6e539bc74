import pathlib
import re
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
# Hidden folders are environments and caches.
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("[!.]*/**/*.md")})

FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
LINK = re.compile(
    r"""\]\(\s*<?([^)\s>]+)            # [text](target "title") and ![text](target)
      | ^\s*\[[^\]]+\]:\s*<?([^\s>]+)  # [label]: target
      | (?:src|href)="([^"]+)"         # HTML""",
    re.MULTILINE | re.VERBOSE,
)


def prose(page):
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page):
    """The fragments that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_resolve(page):
    targets = {next(filter(None, groups)) for groups in LINK.findall(prose(page))}
    broken = []
    for target in sorted(targets):
        if re.match(r"[a-z][a-z+.-]*:", target):
            continue
        path, _, fragment = target.partition("#")
        file = page.parent / path if path else page
        known = not fragment or file.suffix != ".md" or fragment in anchors(file)
        if not (file.exists() and file.resolve().is_relative_to(ROOT) and known):
            broken.append(target)
    assert not broken


def test_the_changelog_has_an_entry_for_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(VERSION)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE)


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r'^version: "?([^"\s]+)"?$', citation, re.MULTILINE) == [VERSION]
