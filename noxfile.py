"""The project's checks, each in an environment of its own. `nox --list` shows them all."""

import os
import re
import shutil
from pathlib import Path

import nox

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
OLDEST = PYTHONS[0]
NOT_SLOW = "devices or not slow"

nox.options.sessions = ["tests", "slow", "scripts", "lint", "docs"]
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True


def group(name: str) -> list[str]:
    """Returns the requirements of a dependency group."""
    return nox.project.dependency_groups(PROJECT, name)


def pytest(session: nox.Session, *options: str) -> None:
    """Runs pytest with these options and those given after `--` on the command line."""
    session.run("python", "-m", "pytest", *options, *session.posargs)


def sphinx(session: nox.Session, builder: str, *options: str) -> None:
    """Installs and runs Sphinx. A warning is an error."""
    session.install("-e", ".[docs]")
    options = ("-W", "--keep-going", "-q", "-b", builder, *options)
    session.run("python", "-m", "sphinx", *options, "docs", f"docs/_build/{builder}")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The package's tests, also those on eight devices."""
    session.install("-e", ".[test]")
    pytest(session, "-m", NOT_SLOW)


@nox.session(python=OLDEST)
def lowest(session: nox.Session) -> None:
    """The package's tests, with the lowest versions that pyproject.toml allows."""
    project = PROJECT["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    lines = [line for requirements in lists for line in requirements if ">=" in line]
    # A constraint must not name extras.
    pins = [re.sub(r"\[.*\]", "", line).replace(">=", "==") for line in lines]
    constraints = Path(session.create_tmp(), "constraints.txt")
    constraints.write_text("\n".join(pins), encoding="utf-8")
    session.install("--constraint", str(constraints), "-e", ".[test]")
    pytest(session, "-m", NOT_SLOW)


@nox.session(python=OLDEST)
def slow(session: nox.Session) -> None:
    """The package's tests that take long."""
    session.install("-e", ".[test]")
    pytest(session, "-m", "slow and not scripts")


@nox.session
def scripts(session: nox.Session) -> None:
    """The code of the pages, and the examples and studies at their smallest sizes."""
    session.install("-e", ".[test]")
    pytest(session, "-m", "scripts and not frameworks and not accelerators")


# uv does not read pip's configuration, which may name a build of torch without CUDA.
@nox.session(python=OLDEST, venv_backend="virtualenv")
def peers(session: nox.Session) -> None:
    """Compared with torch and Keras, and inside Flax, Equinox and Haiku."""
    session.install("-e", ".[peers,frameworks]")
    pytest(session, "-m", "peers or frameworks", "--fail-skipped")


@nox.session(python=OLDEST)
def accelerators(session: nox.Session) -> None:
    """Compiled for a GPU and a TPU, which need not be there; Linux only."""
    session.install("-e", ".[test]")
    show = "import importlib.metadata; print(importlib.metadata.version('jaxlib'))"
    jaxlib = session.run("python", "-c", show, silent=True).strip()
    session.install("-e", ".[accelerators]", f"jax-cuda12-pjrt=={jaxlib}")
    pytest(session, "-m", "accelerators", "--fail-skipped")


@nox.session
def lint(session: nox.Session) -> None:
    """Style, format and types, also of a user's program under mypy and pyright."""
    session.install("-e", ".[test]", *group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("pyrefly", "check")
    pytest(session, "-m", "types", "--fail-skipped")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site, and the links between its pages."""
    sphinx(session, "html")
    sphinx(session, "linkcheck")


@nox.session
def links(session: nox.Session) -> None:
    """The links of the documentation to other sites. Runs every night."""
    sphinx(session, "linkcheck", "-t", "external")


@nox.session
def package(session: nox.Session) -> None:
    """Builds what a release uploads, into dist/, and checks it."""
    session.install(*group("release"))
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")
    session.run("twine", "check", "--strict", *map(str, Path("dist").iterdir()))


@nox.session
def properties(session: nox.Session) -> None:
    """The property tests, on many new cases. Runs every night."""
    session.install("-e", ".[test]")
    session.env["HYPOTHESIS_PROFILE"] = "nightly"
    pytest(session, "tests/test_properties.py")


@nox.session
def mutation(session: nox.Session) -> None:
    """Plants small faults and lists those that no test notices. Runs every night."""
    session.install("-e", ".[test]")
    processes = ("--processes", f"{os.cpu_count()}")
    session.run("python", "tests/mutation.py", *processes, *session.posargs)
