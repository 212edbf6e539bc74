"""Runs the recipes of the documentation section by section."""

import doctest
import pathlib
import re

import jax

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def parts(page):
    """Yields the title, the line and the text of the beginning of a page and of its sections."""
    text = (DOCS / page).read_text(encoding="utf-8")
    starts = [found.start() for found in re.finditer(r"^## ", text, re.MULTILINE)]
    for start, end in zip([0, *starts], [*starts, len(text)], strict=True):
        part = text[start:end]
        yield part.partition("\n")[0].lstrip("# "), text.count("\n", 0, start), part


def run_part(page, line, text, names):
    """Runs the code of a part, and returns the names after it."""
    # With JAX's defaults, as readers have them.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        path = str(DOCS / page)
        test = doctest.DocTestParser().get_doctest(text, names, page, path, line)
        assert doctest.DocTestRunner().run(test, clear_globs=False).failed == 0
    return test.globs


def run(page):
    """Returns the names after each section of a page.

    A section defines the `optimizer` and `params` it uses; functions may come from sections above.
    """
    names, sections = {}, {}
    for title, line, text in parts(page):
        names = {k: v for k, v in names.items() if k not in ("optimizer", "params", "state")}
        names = run_part(page, line, text, names)
        sections[title] = dict(names)
    return sections


def run_section(page, wanted):
    """Returns the names after the beginning of a page and one of its sections."""
    names = {}
    for i, (title, line, text) in enumerate(parts(page)):
        if i == 0 or title == wanted:
            names = run_part(page, line, text, names)
    return names
