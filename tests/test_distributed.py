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

pytestmark = [pytest.mark.scripts, pytest.mark.frameworks]
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
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            program.main()
        return capsys.readouterr().out

    return train


def test_two_processes_train_as_one_does_which_goes_on_from_their_checkpoint(kills, here, tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    printed = run("distributed", *words(two, 20), *PROCESSES)
    assert first_step(printed) == [("2", "4", "0")]
    # The bar is that of process 0.
    assert "Training" not in (two / "process_1.log").read_text()
    assert kills.tree_in(two, 20)[1][1]["count"] == 20

    assert first_step(here(*words(two, 30))) == [("1", "8", "20")]
    here(*words(one, 30))
    start = module("distributed").init(jax.random.key(0))
    for step in (20, 30):
        params, expected = (kills.tree_in(path, step)[0] for path in (two, one))
        # Sums are rounded in another order, and a unit of the network whose input is nearly zero
        # can be on in one run and off in the other.
        apart, moved = (
            optax.tree.norm(optax.tree.sub(expected, other)) for other in (params, start)
        )
        assert apart < 0.01 * moved


def test_two_processes_go_on_from_the_checkpoint_of_one(kills, here, tmp_path):
    here(*words(tmp_path, 20))
    params, (_, saved) = kills.tree_in(tmp_path, 20)
    printed = run("distributed", *words(tmp_path, 21), *PROCESSES)
    assert first_step(printed) == [("2", "4", "20")]
    program = module("distributed")
    (x, y), _ = program.load()
    rows = program.rows_of(20, len(y), seed=0)
    optimizer = optax.chain(program.clip_by_global_norm(1.0), program.adadelta())
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        step = program.step_with(optimizer, shardings=None)
        state = optax.EmptyState(), AdadeltaState(**saved)
        params, (_, state) = step(params, state, x[rows], y[rows])
    found, (_, found_state) = kills.tree_in(tmp_path, 21)
    chex.assert_trees_all_close(found, params, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(AdadeltaState(**found_state), state, rtol=1e-5, atol=1e-12)


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
