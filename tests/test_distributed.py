"""examples/distributed.py and experiments/kills.py: several processes, restarts and failures."""

import argparse
import errno
import functools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import chex
import jax
import optax
import pytest
from scripts import EXAMPLES, check_picture, module, refusal, run
from states import BITS, DTYPES, same_bits

from optax_adadelta import AdadeltaState

pytestmark = [pytest.mark.scripts, pytest.mark.frameworks]
EVERY = 10
PROCESSES = ["--local", "2", "--cpu-devices", "2"]


@pytest.fixture(scope="module")
def kills():
    pytest.importorskip("orbax.checkpoint")
    return module("experiments.kills")


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


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of a run of two processes with two devices each, for 100 steps, by state bits."""

    @functools.cache
    def trained(bits):
        folder = tmp_path_factory.mktemp("two") / "run"
        printed = run("distributed", *words(folder, 100, bits), *PROCESSES)
        assert first_step(printed) == [("2", "4", "0")]
        # The bar is that of process 0.
        assert "Training" not in (folder / "process_1.log").read_text()
        return folder

    return trained


@BITS
def test_two_processes_train_as_one_does_which_goes_on_from_their_checkpoint(
    bits, two, kills, here, tmp_path
):
    other, one = (tmp_path / name for name in ("two", "one"))
    shutil.copytree(two(bits), other)
    assert first_step(here(*words(one, 100, bits))) == [("1", "8", "0")]
    params, state = kills.tree_in(other, 100)
    expected, expected_state = kills.tree_in(one, 100)
    assert state[1]["count"] == 100
    assert all(leaf.dtype == DTYPES[bits] for leaf in jax.tree.leaves(state[1]["e_x"]))
    if bits is None:
        # Sums of other parts of a minibatch are rounded otherwise.
        found, wanted = (params, state), (expected, expected_state)
        chex.assert_trees_all_close(found, wanted, rtol=1e-4, atol=1e-7)

    assert first_step(here(*words(other, 110, bits))) == [("1", "8", "100")]
    here(*words(one, 110, bits))
    here(*words(tmp_path / "full", 110))
    found, expected, full = (kills.tree_in(tmp_path / n, 110)[0] for n in ("two", "one", "full"))
    if bits is None:
        chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)
    else:
        # Each may round to other codes, and parts from full precision by the errors of its own.
        assert optax.tree.norm(optax.tree.sub(found, expected)) < 2 * optax.tree.norm(
            optax.tree.sub(expected, full)
        )


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


def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(kills):
    class NoBar:
        update = staticmethod(lambda: None)

    random.seed(0)
    options = argparse.Namespace(steps=1000, cpu_devices=1)
    found = kills.measure("8 bits", 8, 1, 2, options, NoBar)
    assert found["equal"]
    assert [life["moment"] for life in found["lives"]] == ["step", "save"]
    for life in found["lives"]:
        assert life["first"] <= life["newest"] <= life["killed at"] < 1000


def test_if_one_process_is_killed_the_others_end_and_the_group_can_start_again(
    two, kills, tmp_path, monkeypatch
):
    monkeypatch.setattr(kills, "SAVE_EVERY", EVERY)
    options = argparse.Namespace(steps=100, cpu_devices=2)
    life = kills.killed(kills.Run(tmp_path / "run", options, 8, 2), "step", 12, victim=1)
    # A process notices after the timeout, and then takes its time to end.
    assert life["seconds until the others ended"] < 3 * kills.TIMEOUT
    again = kills.Run(tmp_path / "run", options, 8, 2)
    assert again.end() == [0, 0]
    assert again.first_step() == life["newest"] >= EVERY
    assert kills.are_equal(kills.tree_in(tmp_path / "run", 100), kills.tree_in(two(8), 100))


def test_the_counts_of_kills_are_drawn_and_in_a_table(kills, tmp_path, monkeypatch, capsys):
    committed = json.loads((kills.FOLDER / "kills.json").read_text("utf-8"))
    (tmp_path / "kills.json").write_text(json.dumps(committed), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["kills.py", "--draw-only", "--output", str(tmp_path)])
    kills.main()
    check_picture(tmp_path / "kills.png")
    table = capsys.readouterr().out
    lives = [len(part["lives"]) for part in committed["runs"]]
    assert sum(lives[:3]) >= 50
    for part, number in zip(committed["runs"], lives, strict=True):
        assert part["equal"]
        assert f"| {part['name']} | {part['processes']} | {number} |" in table
    assert kills.table(committed["runs"]) in kills.PAGE.read_text("utf-8")


def test_a_group_that_is_asked_to_stop_saves_its_step_and_goes_on(kills, tmp_path):
    folder = tmp_path / "run"
    program = kills.Run(folder, argparse.Namespace(steps=100_000, cpu_devices=1), 16, 2)
    program.wait_until(lambda: program.last_step() > 3)
    for process in program.processes:
        process.send_signal(signal.SIGTERM)
    assert program.end() == [1, 1]
    step = program.complete()
    assert f"Step {step} is saved" in program.printed()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kills, "SAVE_EVERY", 1_000_000)
        program = kills.Run(folder, argparse.Namespace(steps=step + 2, cpu_devices=1), 16)
    assert program.end() == [0]
    assert program.first_step() == step


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


def test_a_full_disk_of_one_process_ends_the_whole_group(kills, tmp_path):
    program = kills.Run(tmp_path / "run", argparse.Namespace(steps=100_000, cpu_devices=1), None, 2)
    program.wait_until(lambda: program.last_step() > 1)
    begin = time.monotonic()
    resource.prlimit(program.processes[1].pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    assert 0 not in program.end()
    # The other notices after the timeout, and then takes its time to end.
    assert time.monotonic() - begin < 6 * kills.TIMEOUT
    assert "Cannot save step" in program.logs[1].read_text(errors="replace")
    step = program.complete()
    assert kills.tree_in(tmp_path / "run", step)[1][1]["count"] == step


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
