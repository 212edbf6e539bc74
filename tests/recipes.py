"""Runs the recipes of the documentation section by section."""

import contextlib
import doctest
import functools
import pathlib
import re

import jax
import pytest

DOCS = pathlib.Path(__file__).parents[1] / "docs"


class Traced:
    """Calls a jitted function, and knows at which of its calls it was traced."""

    def __init__(self, jit, function, **options):
        self.calls, self.traced_at = 0, []

        @functools.wraps(function)
        def noting(*args, **kwargs):
            self.traced_at.append(self.calls)
            return function(*args, **kwargs)

        self.jitted = jit(noting, **options)

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.jitted(*args, **kwargs)


@contextlib.contextmanager
def noted():
    """Lists the functions that are jitted meanwhile."""
    found, jit = [], jax.jit

    def noting(function, **options):
        found.append(Traced(jit, function, **options))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", noting)
        yield found


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
    """Returns, for each section of a page, the names after it and the functions it jits.

    A section defines the `optimizer` and `params` it uses; functions may come from sections above.
    """
    names, sections = {}, {}
    for title, line, text in parts(page):
        names = {k: v for k, v in names.items() if k not in ("optimizer", "params", "state")}
        with noted() as jitted:
            names = run_part(page, line, text, names)
        sections[title] = names, jitted
    return sections


def run_section(page, wanted):
    """Returns the names after the beginning of a page and one of its sections."""
    names = {}
    for i, (title, line, text) in enumerate(parts(page)):
        if i == 0 or title == wanted:
            names = run_part(page, line, text, names)
    return names


def check_compilations(sections, compiled):
    """Checks that each recipe with code compiles nothing after its second step."""
    for title, (names, jitted) in sections.items():
        for function in jitted:
            assert function.calls
            assert max(function.traced_at) <= 2, f"{title} traces again in a later step"
        if "optimizer" not in names:
            continue
        params = names.get("params", names["jnp"].ones(3))
        grads = getattr(params, "fast", params)
        optimizer, counts = names["optimizer"], []
        update = jax.jit(optimizer.update, donate_argnums=1)
        with jax.numpy_dtype_promotion("standard"):
            state = optimizer.init(params)
            for _ in range(5):
                counts.append(compiled())
                _, state = update(grads, state, params)
            counts.append(compiled())
        assert counts[1] > counts[0], title
        assert set(counts[2:]) == {counts[2]}, f"{title} compiles after the second step"
