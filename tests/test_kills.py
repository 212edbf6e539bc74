"""Processes that are killed, stopped or out of disk space, and restarts."""

import random
import resource
import signal
import time

import pytest

pytestmark = [pytest.mark.scripts, pytest.mark.frameworks]
ENDLESS = 100_000


def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(kills, tmp_path):
    random.seed(0)
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "disturbed"
    assert kills.Run(undisturbed, 600, 8).end() == [0]
    # Many saves follow, in case a busy machine lets some pass.
    kills.killed(kills.Run(folder, 600, 8), "save", 60, victim=0)
    run = kills.Run(folder, 600, 8)
    assert run.end() == [0]
    assert run.first_step() == run.before >= kills.SAVE_EVERY
    assert kills.are_equal(*(kills.tree_in(path, 600) for path in (undisturbed, folder)))


def test_if_one_process_is_killed_the_others_end_and_the_run_can_go_on(kills, tmp_path):
    seconds = kills.killed(kills.Run(tmp_path / "run", 120, 8, 2), "step", 55, victim=1)
    # A process notices after the timeout, and then takes its time to end.
    assert seconds < 3 * kills.TIMEOUT
    again = kills.Run(tmp_path / "run", 120, 8)
    assert again.end() == [0]
    assert again.first_step() == again.before >= kills.SAVE_EVERY
    assert kills.tree_in(tmp_path / "run", 120)[1][1]["count"] == 120


def test_a_group_that_is_asked_to_stop_saves_its_step(kills, tmp_path):
    program = kills.Run(tmp_path / "run", ENDLESS, 16, 2)
    program.wait_until(lambda: program.last_step() > 3)
    for process in program.processes:
        process.send_signal(signal.SIGTERM)
    assert program.end() == [1, 1]
    step = program.complete()
    assert f"Step {step} is saved" in program.printed()
    assert kills.tree_in(tmp_path / "run", step)[1][1]["count"] == step > 3


def test_a_full_disk_of_one_process_ends_the_whole_group(kills, tmp_path):
    program = kills.Run(tmp_path / "run", ENDLESS, None, 2)
    program.wait_until(lambda: program.last_step() > 1)
    begin = time.monotonic()
    resource.prlimit(program.processes[1].pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    assert 0 not in program.end()
    # The other notices after the timeout, and then takes its time to end.
    assert time.monotonic() - begin < 6 * kills.TIMEOUT
    assert "Cannot save step" in program.logs[1].read_text(errors="replace")
    step = program.complete()
    assert kills.tree_in(tmp_path / "run", step)[1][1]["count"] == step
