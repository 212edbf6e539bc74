"""examples/speaker.py: its data, its model against NumPy, and short runs on made-up speakers."""

import hashlib
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripts import ROOT, check_picture, module, numbers

pytestmark = pytest.mark.scripts
LENGTHS = (7, 29, 12)


@pytest.fixture(scope="module")
def speaker():
    return module("speaker")


def made_up(counts, seed):
    """Text as in the UCI's files; the speakers differ by the mean of one number of each frame."""
    rng = np.random.default_rng(seed)
    lines = []
    for name, count in enumerate(counts):
        for i in range(count):
            frames = rng.standard_normal((LENGTHS[i % 3], 12)) + 0.6 * np.eye(12)[name]
            rows = [*frames, np.ones(12)]
            lines += [*(" ".join(f"{x:.6f}" for x in row) for row in rows), ""]
    return "\n".join(lines)


@pytest.fixture
def folder(speaker, tmp_path, monkeypatch):
    """A folder with made-up data, whose checksums are the right ones."""
    for name, counts in (("ae.train", speaker.TRAIN), ("ae.test", speaker.TEST)):
        (tmp_path / name).write_text(made_up(counts, seed=len(name)))
        content = (tmp_path / name).read_bytes()
        monkeypatch.setitem(speaker.SHA256, name, hashlib.sha256(content).hexdigest())
    return tmp_path


def test_utterances_are_read_as_they_stand_in_the_file(speaker, folder):
    frames, lengths, speakers = speaker.read("ae.test", speaker.TEST, folder)
    text = (folder / "ae.test").read_text().split("\n\n")
    assert frames.shape == (370, 29, 12)
    assert np.bincount(speakers).tolist() == list(speaker.TEST)
    for i in (0, 1, 31, 369):
        rows = np.array([row.split() for row in text[i].strip().splitlines()], float)
        assert len(rows) == lengths[i] + 1
        np.testing.assert_allclose(frames[i, : lengths[i]], rows[:-1], rtol=1e-6)
        assert not frames[i, lengths[i] :].any()


def test_frames_that_were_said_are_standardized_and_a_fifth_of_each_speaker_validates(
    speaker, folder
):
    data, _ = speaker.load(folder)
    said = data[0][np.arange(29) < data[1][:, None]]
    np.testing.assert_allclose(said.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(said.std(axis=0), 1, rtol=1e-5)
    parts = [speaker.split(data, seed) for seed in (0, 1)]
    for train, validation in parts:
        assert np.bincount(train[2]).tolist() == [24] * 9
        assert np.bincount(validation[2]).tolist() == [6] * 9
        together = np.concatenate([train[0], validation[0]]).sum(axis=(1, 2))
        np.testing.assert_array_equal(np.sort(together), np.sort(data[0].sum(axis=(1, 2))))
    assert not np.array_equal(parts[0][1][0], parts[1][1][0])


def test_the_model_is_a_gated_recurrent_unit_that_sees_no_padding(speaker):
    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    rng = np.random.default_rng(0)
    params = speaker.init(jax.random.key(0))
    p = {name: np.float64(value) for name, value in params.items()}
    p["bias"] = rng.standard_normal(p["bias"].shape)
    frames = np.float32(rng.standard_normal((3, 29, 12)))
    width = speaker.WIDTH
    expected = []
    for utterance, length in zip(frames, LENGTHS, strict=True):
        h, states = np.zeros(width), []
        for x in utterance[:length]:
            a, b = x @ p["from frame"] + p["bias"], h @ p["from state"]
            keep, reset = sigmoid(a + b)[:width], sigmoid(a + b)[width : 2 * width]
            new = np.tanh(a[2 * width :] + reset * b[2 * width :])
            h = keep * h + (1 - keep) * new
            states.append(h)
        expected.append(np.mean(states, axis=0) @ p["out"] + p["out bias"])
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), p)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        found = speaker.logits(params, jnp.asarray(frames), jnp.asarray(LENGTHS))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def run(speaker, monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["speaker.py", *map(str, arguments)])
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        speaker.main()
    return capsys.readouterr().out


def test_a_short_run_learns_and_depends_on_the_seeds_alone(speaker, folder, monkeypatch, capsys):
    output, results = folder / "new" / "a.png", folder / "b" / "results.json"
    given = ("--data-dir", folder, "--output", output, "--results", results)
    printed = run(speaker, monkeypatch, capsys, "--epochs", 4, "--seeds", 2, *given)
    again = run(speaker, monkeypatch, capsys, "--epochs", 4, "--seeds", 2, *given)
    assert re.sub(r"time: .* s", "", again) == re.sub(r"time: .* s", "", printed)
    found = json.loads(results.read_text())
    mean, lowest = numbers(r"Test accuracy of 370 .* mean ([\d.]+)%, lowest ([\d.]+)%", again)
    accuracies = 100 * np.array(found["accuracies"])
    assert found["epochs"] == 4
    assert len(accuracies) == 2
    assert [mean, lowest] == pytest.approx([accuracies.mean(), accuracies.min()], abs=0.01)
    assert 40 < lowest < mean < 100
    check_picture(output)


def test_smoke_is_short(speaker, folder, monkeypatch, capsys):
    output = folder / "a.svg"
    printed = run(speaker, monkeypatch, capsys, "--smoke", "--data-dir", folder, "--output", output)
    assert len(re.findall(r"^Seed \d: ", printed, re.MULTILINE)) == speaker.SMOKE_SEEDS
    assert "<svg" in output.read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), r"There is no ae\.train in --data-dir "),
        (lambda path: path.write_text("1 2"), r"ae\.train is the wrong file: its SHA-256"),
    ],
)
def test_wrong_data_is_refused(speaker, folder, monkeypatch, capsys, change, message):
    change(folder / "ae.train")
    with pytest.raises(SystemExit, match=message):
        run(speaker, monkeypatch, capsys, "--data-dir", folder, "--output", folder / "a.png")


def test_data_that_cannot_be_downloaded_is_said_so(speaker, tmp_path, monkeypatch):
    monkeypatch.setattr(speaker, "URL", "http://127.0.0.1:9/")
    monkeypatch.setattr(speaker.pooch, "os_cache", lambda name: tmp_path / name)
    with pytest.raises(SystemExit, match=r"(?s)^Could not download ae\.train: .*--data-dir"):
        speaker.load(None)


def test_results_that_cannot_be_written_are_refused_at_once(speaker, folder, monkeypatch, capsys):
    given = ("--output", folder / "a.png", "--results", folder / "ae.train" / "b.json")
    with pytest.raises(SystemExit, match=r"^Cannot write --results .*b\.json: "):
        run(speaker, monkeypatch, capsys, *given)


def test_the_committed_run_reaches_95_percent_with_each_of_five_seeds():
    results = json.loads((ROOT / "docs" / "gallery" / "speaker.json").read_text())
    assert results["epochs"] == 60
    assert len(results["accuracies"]) == 5
    assert min(results["accuracies"]) >= 0.95
