"""The programs in examples/frameworks, run as users run them: they train, save and resume."""

import importlib.util
import re
import subprocess
import sys

import pytest
from scripts import EXAMPLES, ROOT, numbers, run

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


def epochs_in(printed):
    """Returns (epoch, training loss, test accuracy in percent) as text for each epoch printed."""
    line = r"^epoch (\d+): training loss (\d+\.\d{6}), test accuracy (\d+\.\d)%$"
    return re.findall(line, printed, re.MULTILINE)


# In a new process: trains on from the checkpoint, then again with a new optimizer state.
RESUME = f"""
import importlib, pathlib, sys
sys.path.insert(0, {str(FOLDER)!r})
program = importlib.import_module("plain_jax")
path = pathlib.Path(sys.argv[1])
program.train(*program.load(path), range(3, 5))
program.train(program.load(path)[0], program.new(seed=2)[1], range(3, 5))
"""


def test_every_program_is_tested():
    assert {path.stem for path in FOLDER.glob("*.py")} == CHECKPOINTS.keys() == NEEDED.keys()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.frameworks] if needed else [])
        for name, needed in NEEDED.items()
    ],
)
def test_it_learns_saves_and_resumes(name, tmp_path):
    for package in NEEDED[name]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    folder = tmp_path / "new" / "folder"
    printed = run(f"frameworks/{name}", "--epochs", "4", "--folder", folder)
    lines = epochs_in(printed)
    assert [int(epoch) for epoch, *_ in lines] == [1, 2, 3, 4, 3, 4]
    losses = [float(loss) for _, loss, _ in lines[:4]]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.25
    assert 90 < float(lines[3][2]) < 100

    path = folder / CHECKPOINTS[name]
    assert f"Saved parameters and optimizer state after epoch 2: {path}\n" in printed
    files = [file for file in (path, *path.rglob("*")) if file.is_file()]
    # Parameters and two averages of their shape, in float32; Orbax compresses.
    assert sum(file.stat().st_size for file in files) > 2 * 4 * (64 * 128 + 128 * 10)
    assert list(folder.iterdir()) == [path]

    # The resumed run ends as the uninterrupted one.
    assert lines[4:] == lines[2:4]
    uninterrupted, resumed = numbers(r"Final loss: (\S+) uninterrupted, (\S+) resumed", printed)
    assert resumed == uninterrupted
    assert f"{resumed:.6f}" == lines[-1][1]

    if name == "plain_jax":
        command = [sys.executable, "-c", RESUME, path]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=600)
        assert done.returncode == 0, done.stderr
        again = epochs_in(done.stdout)
        assert again[:2] == lines[2:4]
        # The parameters alone do not suffice.
        assert all(one[1] != other[1] for one, other in zip(again[2:], lines[2:4], strict=True))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_page_shows_lines_of_the_program(name):
    page = (ROOT / "docs" / "frameworks.md").read_text("utf-8")
    (section,) = (part for part in page.split("\n## ")[1:] if f"/frameworks/{name}.py)" in part)
    (block,) = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    known = {line.strip() for line in (FOLDER / f"{name}.py").read_text("utf-8").splitlines()}
    shown = [line.strip() for line in block.splitlines() if line.strip()]
    assert [line for line in shown if line not in known and not line.startswith("#")] == []
