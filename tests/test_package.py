import email
import importlib.metadata
import importlib.util
import inspect
import os
import pathlib
import pydoc
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

import optax_adadelta

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "optax_adadelta"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUNTIME = {"jax", "jaxlib", "numpy", "optax"}


STEPS = """
import importlib.metadata

import jax.numpy as jnp

import optax_adadelta

installed = {found.name.lower() for found in importlib.metadata.distributions()}
optional = {"matplotlib", "tqdm", "scikit-learn", "pytest", "hypothesis", "torch", "keras", "flax"}
assert not installed & optional, installed & optional
assert optax_adadelta.__version__ == importlib.metadata.version("optax_adadelta")
x = jnp.array([3.0, -2.0])
for rule in optax_adadelta.adadelta(), optax_adadelta.nadadelta():
    updates, state = rule.update(x, rule.init(x), x)
    assert (updates * x < 0).all()
    assert (optax_adadelta.diagnostics.effective_learning_rate(state, 1e-6) > 0).all()
"""

IMPORTS = """
import sys

import jax, numpy, optax

before = set(sys.modules)
import optax_adadelta

print(*{name.partition(".")[0] for name in sys.modules.keys() - before})
"""


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(kind, folder):
    run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder), cwd=ROOT)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"optax_adadelta-{PROJECT['version']}.dist-info/METADATA").decode()
    return email.message_from_string(text)


def test_the_wheel_holds_the_package_alone(wheel):
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "optax_adadelta/py.typed" in sources
    info = f"optax_adadelta-{PROJECT['version']}.dist-info"
    about = {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")}
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) == sources | about


def test_the_wheel_requires_its_runtime_dependencies_alone(metadata):
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Version"] == optax_adadelta.__version__
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(required) == sorted(PROJECT["dependencies"])
    assert {re.match(r"[\w-]+", line)[0] for line in required} == RUNTIME


def test_a_package_index_shows_the_readme_with_links_to_the_files_of_this_version(metadata):
    text, repository = metadata.get_payload(), PROJECT["urls"]["Repository"]
    found = re.findall(r"\]\(([^)\s]+)|<[^>]+(?:src|href)=\"([^\"]+)", text)
    targets = {target for pair in found for target in pair if target}
    # A link to a heading of the page itself begins with "#".
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    files = [target for target in targets if target.startswith(repository)]
    assert any("/raw/" in target for target in files)
    start = re.compile(rf"{repository}/(?:blob|raw)/v{re.escape(PROJECT['version'])}/")
    assert all((ROOT / start.sub("", target)).is_file() for target in files)
    code = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    assert code.findall(text) == code.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def test_the_source_archive_has_the_files_of_the_repository_and_no_local_folder(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a clone")
    tracked = {
        name for name in run("git", "ls-files", cwd=ROOT).splitlines() if (ROOT / name).is_file()
    }
    with tarfile.open(build("sdist", tmp_path)) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()} - {"PKG-INFO"}
    assert tracked - held == set()
    assert {name.partition("/")[0] for name in held - tracked} <= {
        name.partition("/")[0] for name in tracked if "/" in name
    }


@pytest.mark.slow
def test_the_wheel_installs_and_descends_where_nothing_else_is_installed(wheel, tmp_path):
    run(sys.executable, "-m", "venv", "venv", cwd=tmp_path)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(python, "-m", "pip", "install", "-q", wheel, cwd=tmp_path)
    run(python, "-I", "-c", STEPS, cwd=tmp_path)


def test_importing_it_imports_no_other_package(tmp_path):
    imported = set(run(sys.executable, "-I", "-c", IMPORTS, cwd=tmp_path).split())
    assert imported - sys.stdlib_module_names - RUNTIME == {"optax_adadelta"}


AGAIN = """
import importlib, pickle, sys

import jax, jax.numpy as jnp
import optax_adadelta

params = jnp.ones(3)


def check():
    for optimizer in optax_adadelta.adadelta(), optax_adadelta.stochastic_round():
        state = optimizer.init(params)
        data = jax.export.export(jax.jit(lambda state: state))(state).serialize()
        assert type(jax.export.deserialize(data).call(state)) is type(state)
        assert type(pickle.loads(pickle.dumps(state))) is type(state)
    # A state from before is still one.
    assert optax_adadelta.adadelta().update(params, old)[1].count == 1
    assert pickle.loads(pickle.dumps(old)).count == 0


old = optax_adadelta.adadelta().init(params)
check()
names = [name for name in sys.modules if name.partition(".")[0] == "optax_adadelta"]
for name in names:
    importlib.reload(sys.modules[name])
importlib.reload(optax_adadelta)
check()
for name in names:
    del sys.modules[name]
import optax_adadelta
check()
"""


@pytest.mark.slow
def test_it_can_be_reloaded_and_imported_again():
    run(sys.executable, "-c", AGAIN, cwd=ROOT)


def test_its_version_is_the_same_everywhere():
    version = PROJECT["version"]
    assert optax_adadelta.__version__ == version
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r'^version: "?([^"\s]+)"?$', citation, re.MULTILINE) == [version]


@pytest.mark.parametrize(
    "module",
    [optax_adadelta, optax_adadelta.convert, optax_adadelta.diagnostics],
    ids=lambda module: module.__name__,
)
def test_its_public_names_are_what_dir_help_and_the_api_page_show(module):
    names = set(module.__all__)
    assert set(dir(module)) - {"__version__"} == names
    page = (ROOT / "docs" / "api" / f"{module.__name__.rpartition('.')[2]}.md").read_text("utf-8")
    listed = re.findall(r"^\.\. auto(?:function|class):: (\w+)$", page, re.MULTILINE)
    assert set(listed) == {name for name in names if not inspect.ismodule(getattr(module, name))}
    text = pydoc.render_doc(module, renderer=pydoc.plaintext)
    for name in names:
        assert getattr(module, name).__name__.startswith(module.__name__) or (
            getattr(module, name).__module__ == module.__name__
        )
        # Each name is explained before the private modules and the signatures.
        described = text.partition("PACKAGE CONTENTS")[0].partition("Public names:")[2]
        assert re.search(rf"^ +(\w+, )*{name}\b.*: ", described, re.MULTILINE), name


def test_a_source_tree_that_is_not_installed_can_be_imported(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    spec = importlib.util.spec_from_file_location("optax_adadelta", PACKAGE / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.__version__ == "0+unknown"
    assert module.adadelta is optax_adadelta.adadelta


def test_source_files_are_short_and_use_public_names_only():
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert len(source.splitlines()) <= 300, path
        assert not re.search(r"\b(jax|optax)\._src\b", source), path
        assert "pragma: no" not in source, f"{path}: no line may be hidden from coverage"
