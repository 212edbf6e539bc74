"""examples/distributed.py: several processes, restarts on other numbers of them, and errors."""

import errno
import os
import re
import subprocess
import sys

import chex
import jax
import optax
import pytest
from scripts import EXAMPLES, module, refusal, run
from states import DTYPES, same_bits

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


def apart(one, other):
    return optax.tree.norm(optax.tree.sub(one, other))


@pytest.mark.parametrize("bits", [None, 8])
def test_two_processes_train_as_one_does_which_goes_on_from_their_checkpoint(
    bits, kills, here, tmp_path
):
    two, one, full = (tmp_path / name for name in ("two", "one", "full"))
    printed = run("distributed", *words(two, 20, bits), *PROCESSES)
    assert first_step(printed) == [("2", "4", "0")]
    # The bar is that of process 0.
    assert "Training" not in (two / "process_1.log").read_text()
    _, (_, state) = kills.tree_in(two, 20)
    assert state["count"] == 20
    assert all(leaf.dtype == DTYPES[bits] for leaf in jax.tree.leaves(state["e_x"]))

    assert first_step(here(*words(two, 30, bits))) == [("1", "8", "20")]
    here(*words(one, 30, bits))
    here(*words(full, 30))
    start = module("distributed").init(jax.random.key(0))
    for step in (20, 30):
        params, expected, in_full = (kills.tree_in(path, step)[0] for path in (two, one, full))
        # Sums are rounded in another order, and a unit of the network whose input is nearly zero
        # can be on in one run and off in the other. Codes can be neighbours, and then the runs part
        # as each does from full precision.
        limit = 0.01 * apart(in_full, start) if bits is None else 2 * apart(expected, in_full)
        assert apart(params, expected) < limit


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


@pytest.fixture
def saved(here, tmp_path):
    """The folder of a run of 20 steps, which has two checkpoints."""
    here(*words(tmp_path / "saved", 20))
    return tmp_path / "saved"


def failed(*arguments, largest_file="unlimited"):
    """Returns what the program printed when it failed, with a limit in blocks of 512 bytes."""
    shell = ["sh", "-c", f'ulimit -f {largest_file} && exec "$@"', "sh"]
    command = [sys.executable, EXAMPLES / "distributed.py", *arguments, "--cpu-devices", "8"]
    done = subprocess.run(shell + command, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 1
    return done.stderr


def test_a_full_disk_ends_the_run_and_leaves_the_older_checkpoints(saved, kills):
    before = kills.tree_in(saved, 20)
    text = failed(*words(saved, 40), largest_file=200)
    assert "Cannot save step 30" in text
    assert os.strerror(errno.EFBIG) in text
    same_bits(kills.tree_in(saved, 20), before)
    assert not (saved / "30").exists()


def test_an_unreadable_checkpoint_is_named_and_the_older_one_can_be_used(saved, kills, here):
    for path in (saved / "20" / "default").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:100])
    text = failed(*words(saved, 40))
    assert f"Cannot read {saved / '20'}" in text
    assert not (saved / "30").exists()
    (saved / "20").rename(saved.parent / "unreadable")
    assert first_step(here(*words(saved, 20))) == [("1", "8", "10")]


def test_another_storage_does_not_read_the_codes(here, tmp_path):
    here(*words(tmp_path / "run", 10, 16))
    with pytest.raises(SystemExit, match=r"'state_bits': 16.*'state_bits': 8"):
        here(*words(tmp_path / "run", 20, 8))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--steps", "0"), "--seed"),
        (("--seed", "-1"), "--seed"),
        (("--local", "0"), "--seed"),
        (("--coordinator", "localhost:1"), "--processes"),
    ],
)
def test_wrong_options_are_refused(arguments, named, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["distributed.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        module("distributed").main()
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--cpu-devices", "3"), "3 devices"),
        (("--cluster",), "Cannot find the other processes"),
    ],
)
def test_what_the_machine_does_not_have_is_refused(arguments, named, tmp_path):
    assert named in refusal("distributed", *arguments, "--folder", tmp_path)
