"""The examples run as scripts, and print and draw the right numbers."""

import hashlib
import json
import struct
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from scripts import ROOT, check_picture, module, numbers, run

from optax_adadelta.diagnostics import effective_learning_rate, find_state

pytestmark = pytest.mark.scripts


@pytest.fixture(autouse=True)
def promotion():
    """What a user's session allows, as Optax's Adam needs."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_digits_in_full(tmp_path):
    output = tmp_path / "new" / "digits.png"
    text = run("digits", "--seed", "3", "--output", output, promotion="standard")
    assert numbers(r"(?m)^(\d+) digits .* After (\d+) epochs", text) == [450, 40]
    rates = {}
    for name in ("adadelta", "nadadelta"):
        line = rf"(?m)^  {name} +test accuracy ([\d.]+)%, loss ([\d.]+) before, ([\d.e+-]+) after"
        percent, before, after = numbers(line, text)
        assert 97 <= percent <= 100
        assert after < before
        for layer in ("hidden 1", "hidden 2", "output"):
            line = rf"(?m)^  {name} +{layer}: lowest ([\d.e+]+) \(epoch (\d+)\), ([\d.e+]+) at"
            low, _, end = numbers(line, text)
            rates[name, layer] = low, end
    # The paper's section 4.3: the top layer's rate is the smallest, and all of them return to 1.
    one, two, top = (rates["adadelta", layer] for layer in ("hidden 1", "hidden 2", "output"))
    assert top[0] < min(one[0], two[0])
    assert [end for _, end in (one, two, top)] == pytest.approx([1, 1, 1], abs=0.02)
    assert text.endswith(f"Picture: {output}\n")
    check_picture(output)


def test_linear_regression(tmp_path):
    output = tmp_path / "new" / "line.png"
    text = run("linear_regression", "--smoke", "--seed", "4", "--output", output)

    def line(name):
        return numbers(rf"{name}: +slope ([-\d.]+), intercept ([-\d.]+)", text)

    x, y = module("linear_regression").data(seed=4)
    best = np.polyfit(x, y, 1)
    assert line("true line") == [3, 2]
    assert line("least squares") == pytest.approx(best, abs=6e-4)
    fitted = np.array(line("Adadelta, 10 epochs"))
    # Steps of about sqrt(eps / (1 - rho)) that hardly grow: far from there yet.
    assert fitted == pytest.approx([0.045, 0.045], rel=0.25)
    off = numbers(r"slope ([\d.]+)%, intercept ([\d.]+)%\.", text)
    assert off == pytest.approx(100 * abs(fitted / best - 1), abs=0.1)
    enough, last = numbers(r"within 1% from epoch (\d+) to the last, (\d+)\.", text)
    assert 10 < enough < last == 10_000
    assert line(f"Adadelta, {enough:.0f} epochs") == pytest.approx(best, rel=0.01, abs=6e-4)
    assert text.endswith(f"Picture: {output}\n")
    check_picture(output)


def test_a_short_run_of_speaker_learns(tmp_path, monkeypatch, capsys):
    """On made-up utterances; the speakers differ by the mean of one number of each frame."""
    speaker = module("speaker")
    for name, counts in (("ae.train", speaker.TRAIN), ("ae.test", speaker.TEST)):
        rng, lines = np.random.default_rng(len(name)), []
        for who, count in enumerate(counts):
            for i in range(count):
                frames = rng.standard_normal(((7, 29, 12)[i % 3], 12)) + 0.6 * np.eye(12)[who]
                rows = [*frames, np.ones(12)]
                lines += [*(" ".join(f"{x:.6f}" for x in row) for row in rows), ""]
        content = "\n".join(lines).encode()
        (tmp_path / name).write_bytes(content)
        monkeypatch.setitem(speaker.SHA256, name, hashlib.sha256(content).hexdigest())
    output, results = tmp_path / "new" / "a.png", tmp_path / "b" / "results.json"
    places = ("--data-dir", tmp_path, "--output", output, "--results", results)
    monkeypatch.setattr(sys, "argv", ["x", "--epochs", "4", "--seeds", "2", *map(str, places)])
    speaker.main()
    text = capsys.readouterr().out
    mean, lowest = numbers(r"Test accuracy of 370 .* mean ([\d.]+)%, lowest ([\d.]+)%", text)
    accuracies = 100 * np.array(json.loads(results.read_text())["accuracies"])
    assert [mean, lowest] == pytest.approx([accuracies.mean(), accuracies.min()], abs=0.01)
    assert 40 < lowest < mean < 100
    check_picture(output)
    (tmp_path / "ae.train").write_text("1 2")
    with pytest.raises(SystemExit, match=r"ae\.train is the wrong file: its SHA-256"):
        speaker.main()


def test_the_committed_run_reaches_95_percent_with_each_of_five_seeds():
    results = json.loads((ROOT / "studies" / "results" / "speaker.json").read_text())
    assert results["epochs"] == 60
    assert len(results["accuracies"]) == 5
    assert min(results["accuracies"]) >= 0.95


def test_trajectories_draws_a_picture_and_an_animation_that_grows(tmp_path):
    picture = tmp_path / "new" / "walks.png"
    text = run("trajectories", "--smoke", "--output", picture, promotion="standard")
    animation = picture.with_suffix(".gif")
    assert text.endswith(f"Picture: {picture}\nAnimation: {animation}\n")
    check_picture(picture, 50_000, 250_000)
    with Image.open(animation) as image:
        assert image.n_frames == 5
        # It stands still at the end, and starts again.
        image.seek(image.n_frames - 1)
        assert image.info["duration"] > 1000
        assert image.info["loop"] == 0


@pytest.mark.frameworks
def test_the_event_files_have_the_numbers_of_the_state(tmp_path):
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    example, steps, every = module("log_to_tensorboard"), 60, 20
    options = "--steps", str(steps), "--every", str(every), "--folder", tmp_path
    assert run("log_to_tensorboard", *options).startswith(f"Logged {steps // every} times.")
    (path,) = tmp_path.glob("events.out.tfevents.*")
    data, logged = path.read_bytes(), {}
    while data:
        # A record is its length, a checksum, the event and another checksum.
        (length,) = struct.unpack("<Q", data[:8])
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            logged.setdefault(value.tag, {})[event.step] = value.simple_value
        data = data[16 + length :]
    assert all(list(found) == [20, 40, 60] for found in logged.values())

    class Nowhere:
        def add_scalar(self, *args):
            pass

    state = example.train(Nowhere(), steps, every, seed=0)
    eps = 1e-4 * 0.1 ** ((steps - 1) / 500)
    np.testing.assert_allclose(logged["eps"][steps], eps, rtol=1e-5)
    rates = effective_learning_rate(state, eps)
    for layer in ("hidden", "output"):
        rate = np.concatenate([np.ravel(x) for x in rates[layer].values()])
        found = logged[f"{layer}/effective_learning_rate/mean"][steps]
        np.testing.assert_allclose(found, rate.mean(), rtol=1e-4)
    # The pixels at the edges are always black, so their weights rest.
    w = find_state(state).e_g["hidden"]["w"]
    assert logged["hidden/share/at_rest"][steps] >= np.mean(np.asarray(w) == 0) > 0
    assert logged["loss"][steps] < logged["loss"][every]
