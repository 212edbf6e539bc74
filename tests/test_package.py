import email
import html.parser
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
import readme_renderer.markdown

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


class Targets(html.parser.HTMLParser):
    """The targets of all links and pictures in a page of HTML."""

    def __init__(self, page):
        super().__init__()
        self.links, self.pictures = set(), set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "img":
            self.pictures.add(values["src"])
        elif "href" in values:
            self.links.add(values["href"])


def test_a_package_index_shows_the_readme_with_links_to_the_files_of_this_version(metadata):
    text = metadata.get_payload()
    page = readme_renderer.markdown.render(text)
    assert page is not None
    found = Targets(page)
    assert found.links
    assert found.pictures
    # A link to a heading of the page itself begins with "#".
    assert [url for url in found.links if not url.startswith(("https://", "#"))] == []
    repository = PROJECT["urls"]["Repository"]
    assert all(url.startswith(repository) for url in found.pictures)
    for kind, urls in ("blob", found.links), ("raw", found.pictures):
        start = f"{repository}/{kind}/v{PROJECT['version']}/"
        for url in urls:
            if url.startswith(repository):
                assert url.startswith(start), url
                assert (ROOT / url.removeprefix(start)).is_file(), url
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


PUBLIC = {
    optax_adadelta: {
        "AdadeltaState",
        "PlateauState",
        "StochasticRoundState",
        "adadelta",
        "clip_by_global_norm",
        "convert",
        "diagnostics",
        "nadadelta",
        "reduce_eps_on_plateau",
        "scale_by_adadelta",
        "scale_by_nadadelta",
        "stochastic_round",
    },
    optax_adadelta.convert: {
        "carry_over",
        "from_keras",
        "from_optax",
        "from_torch",
        "hyperparameters_from_keras",
        "hyperparameters_from_torch",
        "to_keras",
        "to_optax",
        "to_torch",
        "with_state_bits",
    },
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
        "summaries",
    },
}


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_its_public_names_are_what_dir_help_and_the_api_page_show(module):
    names = PUBLIC[module]
    assert set(module.__all__) == names
    assert set(dir(module)) - {"__version__"} == names
    page = (ROOT / "docs" / "api" / f"{module.__name__.rpartition('.')[2]}.md").read_text("utf-8")
    listed = re.findall(r"^\.\. auto(?:function|class):: (\w+)$", page, re.MULTILINE)
    assert set(listed) == {name for name in names if not inspect.ismodule(getattr(module, name))}
    text = pydoc.render_doc(module, renderer=pydoc.plaintext)
    for name in names:
        assert getattr(module, name).__name__.startswith(module.__name__) or (
            getattr(module, name).__module__ == module.__name__
        )
        assert re.search(rf"^    (class )?{name}\b", text, re.MULTILINE), name
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
