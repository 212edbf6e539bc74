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
import math

import jax
import jax.numpy as jnp
import optax

import optax_adadelta

installed = {found.name.lower() for found in importlib.metadata.distributions()}
optional = {"matplotlib", "tqdm", "scikit-learn", "pytest", "hypothesis", "torch", "keras", "flax"}
assert not installed & optional, installed & optional
assert optax_adadelta.__version__ == importlib.metadata.version("optax_adadelta")


def loss(params):
    return jnp.sum(params["w"] ** 2) + params["b"] ** 2


def train(optimizer):
    params = {"w": jnp.array([3.0, -2.0]), "b": jnp.array(1.0)}
    state = optimizer.init(params)
    for _ in range(20):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        assert loss(params) < value
    rates = optax_adadelta.diagnostics.effective_learning_rate(state, 1e-6)
    assert all(rate.min() > 0 for rate in jax.tree.leaves(rates))
    return state


state = train(optax_adadelta.adadelta())
assert isinstance(state, optax_adadelta.AdadeltaState)
train(optax.chain(optax_adadelta.scale_by_adadelta(), optax.scale(-1.0)))
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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    (path,) = folder.iterdir()
    return path


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


def test_the_wheel_requires_its_runtime_dependencies_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"optax_adadelta-{PROJECT['version']}.dist-info/METADATA").decode()
    metadata = email.message_from_string(text)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Version"] == optax_adadelta.__version__
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(required) == sorted(PROJECT["dependencies"])
    assert {re.match(r"[\w-]+", line)[0] for line in required} == RUNTIME


@pytest.mark.slow
def test_the_wheel_installs_and_descends_where_nothing_else_is_installed(wheel, tmp_path):
    run(sys.executable, "-m", "venv", "venv", cwd=tmp_path)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(python, "-m", "pip", "install", "-q", wheel, cwd=tmp_path)
    run(python, "-I", "-c", STEPS, cwd=tmp_path)


def test_importing_it_imports_no_other_package(tmp_path):
    imported = set(run(sys.executable, "-I", "-c", IMPORTS, cwd=tmp_path).split())
    assert imported - sys.stdlib_module_names - RUNTIME == {"optax_adadelta"}


def test_its_version_is_the_one_in_pyproject():
    assert optax_adadelta.__version__ == PROJECT["version"]


PUBLIC = {
    optax_adadelta: {
        "AdadeltaState",
        "StochasticRoundState",
        "adadelta",
        "clip_by_global_norm",
        "convert",
        "diagnostics",
        "scale_by_adadelta",
        "stochastic_round",
    },
    optax_adadelta.convert: {"carry_over", "with_state_bits"},
    optax_adadelta.diagnostics: {
        "Averages",
        "Sample",
        "averages",
        "choose_coordinates",
        "effective_learning_rate",
        "find_state",
        "plot_curves",
        "plot_samples",
        "sample",
    },
}


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_its_public_names_are_what_dir_and_help_show(module):
    names = PUBLIC[module]
    assert set(module.__all__) == names
    assert set(dir(module)) - {"__version__"} == names
    text = pydoc.render_doc(module, renderer=pydoc.plaintext)
    for name in names:
        assert getattr(module, name).__name__.startswith(module.__name__) or (
            getattr(module, name).__module__ == module.__name__
        )
        assert re.search(rf"^    (class )?{name}\b", text, re.MULTILINE), name


@pytest.mark.parametrize("name", ["adadelta", "scale_by_adadelta", "clip_by_global_norm"])
def test_signatures_name_types_as_users_know_them(name):
    signature = str(inspect.signature(getattr(optax_adadelta, name)))
    assert "Union" not in signature
    assert len(signature) < 500


def test_a_source_tree_that_is_not_installed_can_be_imported(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    spec = importlib.util.spec_from_file_location("optax_adadelta", PACKAGE / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.__version__ == "0+unknown"
    assert module.adadelta is optax_adadelta.adadelta


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_a_source_file_is_short_and_uses_public_names_only(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 300
    assert not re.search(r"\b(jax|optax)\._src\b", source)
    assert "pragma: no" not in source, "no line may be hidden from coverage"
