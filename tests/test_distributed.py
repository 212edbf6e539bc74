"""examples/distributed.py: several processes, restarts on other numbers of them, and errors."""

import re
import sys

import chex
import jax
import optax
import pytest
from scripts import module, run, start
from states import DTYPES

from optax_adadelta import AdadeltaState

pytestmark = [
    pytest.mark.scripts,
    pytest.mark.frameworks,
    pytest.mark.usefixtures("frameworks_promote"),
]
EVERY = 10
PROCESSES = ["--local", "2", "--cpu-devices", "2"]


def words(folder, steps, bits=None):
    storage = [] if bits is None else ["--state-bits", str(bits)]
    return ["--folder", folder, "--steps", str(steps), "--save-every", str(EVERY), *storage]


def first_step(printed):
    return re.findall(r"Processes: (\d+), devices: (\d+), first step: (\d+)", printed)


@pytest.fixture
def here(monkeypatch, capsys):
    """Trains in this process on its eight devices, and returns what the program printed."""
    program = module("distributed")

    def train(*arguments):
        monkeypatch.setattr(sys, "argv", ["distributed.py", *map(str, arguments)])
        program.main()
        return capsys.readouterr().out

    return train


def test_two_processes_go_on_from_the_checkpoint_of_one_and_one_from_theirs(kills, here, tmp_path):
    here(*words(tmp_path, 20))
    params, (_, saved) = kills.tree_in(tmp_path, 20)
    printed = run("distributed", *words(tmp_path, 21), *PROCESSES)
    assert first_step(printed) == [("2", "4", "20")]
    # The bar is that of process 0.
    assert "Training" not in (tmp_path / "process_1.log").read_text()
    program = module("distributed")
    (x, y), _ = program.load()
    rows = program.rows_of(20, len(y), seed=0)
    optimizer = optax.chain(program.clip_by_global_norm(1.0), program.adadelta())
    step = program.step_with(optimizer, shardings=None)
    state = optax.EmptyState(), AdadeltaState(**saved)
    params, (_, state) = step(params, state, x[rows], y[rows])
    found, (_, found_state) = kills.tree_in(tmp_path, 21)
    chex.assert_trees_all_close(found, params, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(AdadeltaState(**found_state), state, rtol=1e-5, atol=1e-12)
    assert first_step(here(*words(tmp_path, 22))) == [("1", "8", "21")]


def test_an_unreadable_checkpoint_is_named_and_the_older_one_can_be_used(here, tmp_path):
    saved = tmp_path / "saved"
    here(*words(saved, 20))
    for path in (saved / "20" / "default").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:100])
    done = start("distributed", *words(saved, 40), "--cpu-devices", "8")
    assert done.returncode == 1
    assert f"Cannot read {saved / '20'}" in done.stderr
    assert not (saved / "30").exists()
    (saved / "20").rename(saved.parent / "unreadable")
    assert first_step(here(*words(saved, 20))) == [("1", "8", "10")]


def test_another_storage_does_not_read_the_codes(kills, here, tmp_path):
    here(*words(tmp_path / "run", 10, 16))
    (_, (_, state)) = kills.tree_in(tmp_path / "run", 10)
    assert all(leaf.dtype == DTYPES[16] for leaf in jax.tree.leaves(state["e_x"]))
    with pytest.raises(SystemExit, match=r"'state_bits': 16.*'state_bits': 8"):
        here(*words(tmp_path / "run", 20, 8))
