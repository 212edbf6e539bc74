"""Processes that are killed, stopped or out of disk space, and restarts."""

import argparse
import random
import resource
import signal
import time

import pytest

pytestmark = [pytest.mark.scripts, pytest.mark.frameworks]


def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(kills, tmp_path):
    random.seed(0)
    options = argparse.Namespace(steps=1000, cpu_devices=1)
    lives = kills.ends_alike(tmp_path, 8, 2, options)
    assert [life["moment"] for life in lives] == ["step", "save"]
    for life in lives:
        assert life["first"] <= life["newest"] <= life["killed at"] < 1000


def test_if_one_process_is_killed_the_others_end_and_the_group_can_start_again(kills, tmp_path):
    options = argparse.Namespace(steps=120, cpu_devices=1)
    assert kills.Run(tmp_path / "other", options, 8, 2).end() == [0, 0]
    life = kills.killed(kills.Run(tmp_path / "run", options, 8, 2), "step", 55, victim=1)
    # A process notices after the timeout, and then takes its time to end.
    assert life["seconds until the others ended"] < 3 * kills.TIMEOUT
    again = kills.Run(tmp_path / "run", options, 8, 2)
    assert again.end() == [0, 0]
    assert again.first_step() == life["newest"] >= kills.SAVE_EVERY
    assert kills.are_equal(*(kills.tree_in(tmp_path / name, 120) for name in ("run", "other")))


def test_a_group_that_is_asked_to_stop_saves_its_step_and_goes_on(kills, tmp_path):
    folder = tmp_path / "run"
    program = kills.Run(folder, argparse.Namespace(steps=100_000, cpu_devices=1), 16, 2)
    program.wait_until(lambda: program.last_step() > 3)
    for process in program.processes:
        process.send_signal(signal.SIGTERM)
    assert program.end() == [1, 1]
    step = program.complete()
    assert f"Step {step} is saved" in program.printed()
    program = kills.Run(folder, argparse.Namespace(steps=step + 2, cpu_devices=1), 16)
    assert program.end() == [0]
    assert program.first_step() == step


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
