"""The code of the documentation's pages, run as it stands there, against what the pages print."""

import contextlib
import doctest
import inspect
import io
import json
import pathlib
import re

import jax
import numpy as np
import optax
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


@pytest.mark.scripts
@pytest.mark.parametrize(
    "page",
    [
        "index.md",
        "getting_started.md",
        "choosing_settings.md",
        "nadadelta.md",
        "faq.md",
        "memory.md",
        "schedules_and_logging.md",
        "../README.md",
    ],
)
def test_the_page_prints_what_it_says(page):
    assert run(page) > 0


@pytest.mark.scripts
@pytest.mark.parametrize("page", ["checkpoints.md", "migrating.md", "converting.md"])
def test_the_page_without_other_packages_prints_what_it_says(page):
    assert run(page, left_out=set(OPTIONAL)) > 0


@pytest.mark.scripts
@pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="JAX then has no host memory on a CPU")
def test_the_page_on_many_devices_prints_what_it_says():
    assert run("many_devices.md") > 0


@pytest.mark.frameworks
def test_the_page_on_checkpoints_can_be_run_twice_in_the_same_folder():
    for name in ("equinox", "flax", "orbax.checkpoint"):
        pytest.importorskip(name)
    for _ in range(2):
        run("checkpoints.md")


@pytest.mark.peers
@pytest.mark.parametrize("page", ["migrating.md", "converting.md"])
# Keras converts its variables as NumPy 1 did.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_programs_of_other_libraries(page, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    for name in ("torch", "keras", "flax"):
        pytest.importorskip(name)
    run(page)


ROOT = DOCS.parent
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


# Pages that recommend settings, beside docs/choosing_settings.md, which owns the advice.
ADVICE = (
    "README.md",
    *(f"docs/{name}.md" for name in ("index", "getting_started", "nadadelta", "frameworks")),
    *(f"docs/{name}.md" for name in ("when_to_use", "faq")),
    "examples/digits.py",
    *(f"examples/frameworks/{path.name}" for path in ROOT.glob("examples/frameworks/*.py")),
    "optax_adadelta/_nadadelta.py",
)
MEASURED = re.compile(r"<!-- (\w[^>]*?) -->.*?<!-- /\1 -->", re.DOTALL)
CALLS = re.compile(r"(?<![\w.])(?:n?adadelta|optax\.incremental_update)\(")


def calls(text):
    """Yields the source of each call of an optimizer and of the average."""
    for found in CALLS.finditer(text):
        depth = 0
        for end in range(found.end() - 1, len(text)):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            if not depth:
                break
        yield re.sub(r"\s*\n[. ]*", " ", text[found.start() : end + 1])


def setting(source):
    """Returns what a call sets, or None if it names variables that only its page knows."""

    def numbers(value):
        return tuple(float(value(i)) for i in range(0, 1001, 50)) if callable(value) else value

    def optimizer(name):
        def bound(*args, **kwargs):
            given = inspect.signature(getattr(optax_adadelta, name)).bind(*args, **kwargs).arguments
            given = {"learning_rate": 1.0, **given}
            # How the state is stored is a choice of its own.
            return name, *sorted((k, numbers(v)) for k, v in given.items() if k != "state_bits")

        return bound

    if source.startswith("optax.incremental_update"):
        return source
    known = {name: optimizer(name) for name in ("adadelta", "nadadelta")}
    try:
        return eval(source, {"optax": optax, "steps": 1000, "half": 500, **known})
    except (NameError, SyntaxError):
        return None


def advice():
    """The settings in the tables and programs of the page that owns them."""
    lines = (DOCS / "choosing_settings.md").read_text(encoding="utf-8").splitlines()
    shown = "\n".join(line for line in lines if line.startswith(("|", ">>>", "...")))
    return {setting(source) for source in calls(shown)} - {None}


@pytest.mark.parametrize("page", ADVICE)
def test_the_page_recommends_what_choosing_settings_says(page):
    text = MEASURED.sub("", (ROOT / page).read_text(encoding="utf-8"))
    found = {setting(source) for source in calls(text)} - {None}
    assert found
    assert found <= advice()


def test_the_table_of_the_readme_has_the_measured_errors():
    methods = "nadadelta", "nadadelta, averaged", "Prodigy, linear", None, "Adam", "Adadelta"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"<!-- compared -->\n(.*?)<!-- /compared -->", text, re.DOTALL)
    rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    for task, *cells in rows[2:]:
        name = task.rpartition(",")[0].replace(", recurrent", "").replace(", attention", "")
        name = {"transformer": "source code"}.get(name, name).lower()
        name = name.replace(", ", "_").replace(" ", "_")
        report = json.loads((ROOT / f"studies/results/compare-{name}.json").read_text("utf-8"))
        if report["tuned"]:
            tuned = [report["tuned"]["Adam, cosine"]]
        else:
            tuned = [v for k, v in report["methods"].items() if k.startswith("AdamW, warm-up")]
        for method, cell in zip(methods, cells, strict=True):
            if cell:
                found = tuned if method is None else [report["methods"][method]]
                error = min(np.mean(given["test error"]) for given in found)
                # A later seed may move the mean a little.
                assert float(cell) == pytest.approx(error, rel=0.01, abs=0.0051)
