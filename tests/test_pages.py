"""The code of the documentation's pages, run as it stands there, against what the pages print."""

import contextlib
import doctest
import inspect
import io
import pathlib
import re

import jax
import pytest

import optax_adadelta

DOCS = pathlib.Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Packages that not every environment has; a block that imports one is left out where it is missing.
OPTIONAL = ("equinox", "flax", "keras", "orbax", "torch")
NUMBER = re.compile(r"-?\d+\.\d+(?:e[-+]\d+)?")


class WithinAFewPercent(doctest.OutputChecker):
    """Numbers with a point may differ by 5 % or one in the last place; all else is the same."""

    def check_output(self, want, got, optionflags):
        if super().check_output(want, got, optionflags):
            return True
        return NUMBER.sub("#", want) == NUMBER.sub("#", got) and all(
            abs(float(a) - float(b)) <= max(0.05 * abs(float(a)), 1.01 * last_place(a))
            for a, b in zip(NUMBER.findall(want), NUMBER.findall(got), strict=True)
        )


def last_place(number):
    digits, _, exponent = number.partition("e")
    return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))


def imported(code):
    """The packages of `OPTIONAL` that a block imports."""
    return {name for name in OPTIONAL if re.search(rf"\b(import|from) {name}\b", code)}


def run(page, left_out=frozenset()):
    """Runs a page from top to bottom; returns how many blocks were run.

    A block with prompts goes on from the block before. One without is a whole program that needs
    nothing else, and the text below it, if any, is what it prints.
    """
    path = DOCS / page
    names, printed, done = {}, None, 0
    # With JAX's defaults, as readers have them.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for found in BLOCK.finditer(path.read_text(encoding="utf-8")):
            kind, code = found.groups()
            line = path.read_text(encoding="utf-8").count("\n", 0, found.start()) + 1
            if kind == "text":
                assert printed is None or WithinAFewPercent().check_output(code, printed, 0), (
                    f"{page}, line {line}, says\n{code}but it is\n{printed}"
                )
                printed = None
                continue
            printed = None
            if imported(code) & left_out:
                continue
            done += 1
            if code.startswith(">>>"):
                test = doctest.DocTestParser().get_doctest(code, names, page, str(path), line)
                runner = doctest.DocTestRunner(WithinAFewPercent())
                assert runner.run(test, clear_globs=False).failed == 0
                names = test.globs
            else:
                names = {"__name__": "__main__"}
                with contextlib.redirect_stdout(io.StringIO()) as output:
                    exec(compile(code, f"{page}, line {line}", "exec"), names)
                printed = output.getvalue()
    return done


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "page",
    [
        "index.md",
        "getting_started.md",
        "choosing_settings.md",
        "nadadelta.md",
        "when_to_use.md",
        "faq.md",
        "memory.md",
        "../README.md",
    ],
)
def test_the_page_prints_what_it_says(page):
    assert run(page) > 0


@pytest.mark.parametrize("page", ["checkpoints.md", "migrating.md", "converting.md"])
def test_the_page_without_other_packages_prints_what_it_says(page):
    assert run(page, left_out=set(OPTIONAL)) > 0


@pytest.mark.frameworks
@pytest.mark.parametrize(("page", "times"), [("checkpoints.md", 2), ("many_devices.md", 1)])
def test_checkpoints_of_a_page(page, times):
    for name in ("equinox", "flax", "orbax.checkpoint"):
        pytest.importorskip(name)
    for _ in range(times):  # in the same folder
        run(page)


@pytest.mark.peers
@pytest.mark.parametrize("page", ["migrating.md", "converting.md"])
# Keras converts its variables as NumPy 1 did.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_programs_of_other_libraries(page, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    for name in ("torch", "keras", "flax"):
        pytest.importorskip(name)
    run(page)


@pytest.mark.parametrize(
    "module",
    [optax_adadelta, optax_adadelta.convert, optax_adadelta.diagnostics],
    ids=lambda module: module.__name__,
)
def test_the_api_page_has_every_public_name(module):
    page = DOCS / "api" / f"{module.__name__.rpartition('.')[2]}.md"
    text = page.read_text(encoding="utf-8")
    listed = re.findall(r"^\.\. auto(?:function|class):: (\w+)$", text, re.MULTILINE)
    public = {name for name in module.__all__ if not inspect.ismodule(getattr(module, name))}
    assert sorted(listed) == sorted(public)
