"""The example that logs to TensorBoard: the event files have the numbers of the state."""

import struct

import jax
import numpy as np
import pytest
from scripts import module, refusal, run

from optax_adadelta.diagnostics import effective_learning_rate, find_state

pytestmark = [pytest.mark.scripts, pytest.mark.frameworks]

STEPS, EVERY = 60, 20


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("tensorboardX")
    return module("log_to_tensorboard")


def scalars(folder):
    """Returns {name: {step: number}} of the one event file in the folder."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.glob("events.out.tfevents.*")
    data, found = path.read_bytes(), {}
    while data:
        # A record is its length, a checksum, the event and another checksum.
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
        data = data[16 + length :]
    return found


def test_the_event_files_have_the_numbers_of_the_state(example, tmp_path):
    options = "--steps", str(STEPS), "--every", str(EVERY), "--folder", tmp_path
    printed = run("log_to_tensorboard", *options)
    assert printed.startswith(f"Logged {STEPS // EVERY} times.")
    logged = scalars(tmp_path)
    assert all(list(steps) == [20, 40, 60] for steps in logged.values())

    class Nowhere:
        def add_scalar(self, *args):
            pass

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state = example.train(Nowhere(), STEPS, EVERY, seed=0)
    eps = 1e-4 * 0.1 ** ((STEPS - 1) / 500)
    np.testing.assert_allclose(logged["eps"][STEPS], eps, rtol=1e-5)
    rates = effective_learning_rate(state, eps)
    for layer in ("hidden", "output"):
        every = np.concatenate([np.ravel(x) for x in rates[layer].values()])
        np.testing.assert_allclose(
            logged[f"{layer}/effective_learning_rate/mean"][STEPS], every.mean(), rtol=1e-4
        )
        np.testing.assert_allclose(
            logged[f"{layer}/effective_learning_rate/q50"][STEPS], np.median(every), rtol=0.04
        )
    # The pixels at the edges are always black, so their weights rest.
    w = find_state(state).e_g["hidden"]["w"]
    assert logged["hidden/share/at_rest"][STEPS] >= np.mean(np.asarray(w) == 0) > 0
    assert logged["loss"][STEPS] < logged["loss"][EVERY]
    assert find_state(state).count == STEPS


def test_options_that_make_no_sense_are_refused(example):
    for option in ("--steps", "--every"):
        assert "must be at least 1" in refusal("log_to_tensorboard", option, "0")


def test_a_folder_that_cannot_be_written(example, tmp_path):
    (tmp_path / "file").write_text("")
    told = refusal("log_to_tensorboard", "--folder", tmp_path / "file" / "runs")
    assert told.startswith("Cannot write to --folder")
