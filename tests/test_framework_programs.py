"""The programs in examples/frameworks, run as users run them: they train, save and resume."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from scripts import EXAMPLES, ROOT, numbers, refusal, run

pytestmark = pytest.mark.scripts

FOLDER = EXAMPLES / "frameworks"
CHECKPOINTS = {
    "plain_jax": "plain_jax.pickle",
    "flax_nnx": "flax_nnx",
    "flax_linen": "flax_linen",
    "equinox_mlp": "equinox_mlp.eqx",
    "haiku_mlp": "haiku_mlp.pickle",
}
NEEDED = {
    "plain_jax": (),
    "flax_nnx": ("flax", "orbax"),
    "flax_linen": ("flax", "orbax"),
    "equinox_mlp": ("equinox",),
    "haiku_mlp": ("haiku",),
}
EPOCHS = 4
# In a new process: trains on from the checkpoint, then again with a new optimizer state.
RESUME = f"""
import importlib, pathlib, sys
sys.path.insert(0, {str(FOLDER)!r})
program = importlib.import_module(sys.argv[1])
path = pathlib.Path(sys.argv[2])
new, loaded = program.new(seed=2), program.load(path)
if isinstance(loaded, tuple):
    program.train(*loaded, range(3, 5))
    program.train(program.load(path)[0], new[1], range(3, 5))
else:
    program.train(loaded, range(3, 5))
    program.train(program.load(path).replace(opt_state=new.opt_state), range(3, 5))
"""


class Program(NamedTuple):
    name: str
    folder: Path
    printed: str


def epochs_in(printed):
    """Returns (epoch, training loss, test accuracy in percent) as text for each epoch printed."""
    line = r"^epoch (\d+): training loss (\d+\.\d{6}), test accuracy (\d+\.\d)%$"
    return re.findall(line, printed, re.MULTILINE)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.frameworks] if needed else [])
        for name, needed in NEEDED.items()
    ],
)
def program(request, tmp_path_factory):
    """A program that has run for a few epochs."""
    for package in NEEDED[request.param]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    folder = tmp_path_factory.mktemp("programs") / "new" / "folder"
    printed = run(f"frameworks/{request.param}", "--epochs", f"{EPOCHS}", "--folder", folder)
    return Program(request.param, folder, printed)


def test_every_program_is_tested():
    assert {path.stem for path in FOLDER.glob("*.py")} == CHECKPOINTS.keys() == NEEDED.keys()


def test_it_learns(program):
    lines = epochs_in(program.printed)[:EPOCHS]
    assert [int(epoch) for epoch, *_ in lines] == [1, 2, 3, 4]
    losses = [float(loss) for _, loss, _ in lines]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.25
    assert 90 < float(lines[-1][2]) < 100


def test_it_saves_what_it_says(program):
    (told,) = re.findall(
        r"^Saved parameters and optimizer state after epoch 2: (.*)$", program.printed, re.MULTILINE
    )
    path = program.folder / CHECKPOINTS[program.name]
    assert told == str(path)
    files = [file for file in (path, *path.rglob("*")) if file.is_file()]
    # Parameters and two averages of their shape, in float32; Orbax compresses.
    assert sum(file.stat().st_size for file in files) > 2 * 4 * (64 * 128 + 128 * 10)
    assert list(program.folder.iterdir()) == [path]


def test_the_resumed_run_ends_as_the_uninterrupted_one(program):
    lines = epochs_in(program.printed)
    assert len(lines) == EPOCHS + 2
    assert lines[EPOCHS:] == lines[2:EPOCHS]
    pattern = r"^Final loss: ([\d.e-]+) uninterrupted, ([\d.e-]+) resumed$"
    ((uninterrupted, resumed),) = re.findall(pattern, program.printed, re.MULTILINE)
    assert resumed == uninterrupted
    assert f"{float(resumed):.6f}" == lines[-1][1]


def test_a_new_process_resumes_from_the_file(program):
    path = program.folder / CHECKPOINTS[program.name]
    command = [sys.executable, "-c", RESUME, program.name, path]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines, expected = epochs_in(done.stdout), epochs_in(program.printed)[2:EPOCHS]
    assert lines[:2] == expected
    # The parameters alone do not suffice.
    assert [epoch for epoch, *_ in lines[2:]] == ["3", "4"]
    assert all(one[1] != other[1] for one, other in zip(lines[2:], expected, strict=True))


def test_without_a_folder_it_saves_in_a_temporary_one(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    printed = run("frameworks/plain_jax", "--epochs", "3")
    (path,) = tmp_path.glob("*/plain_jax.pickle")
    assert f"after epoch 1: {path}\n" in printed
    assert [int(epoch) for epoch, *_ in epochs_in(printed)] == [1, 2, 3, 2, 3]
    assert len(set(numbers(r"Final loss: (\S+) uninterrupted, (\S+) resumed", printed))) == 1


def test_one_epoch_has_no_middle():
    assert "--epochs must be at least 2" in refusal("frameworks/plain_jax", "--epochs", "1")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_page_shows_lines_of_the_program(name):
    page = (ROOT / "docs" / "frameworks.md").read_text("utf-8")
    (section,) = (part for part in page.split("\n## ")[1:] if f"/frameworks/{name}.py)" in part)
    (block,) = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    known = {line.strip() for line in (FOLDER / f"{name}.py").read_text("utf-8").splitlines()}
    shown = [line.strip() for line in block.splitlines() if line.strip()]
    assert [line for line in shown if line not in known and not line.startswith("#")] == []
