"""The examples run as scripts, and print and draw the right numbers."""

import hashlib
import itertools
import json
import re
import struct
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from reference import algorithm_1
from scripts import (
    EXAMPLES,
    ROOT,
    WITH_PICTURE,
    check_picture,
    module,
    numbers,
    refusal,
    run,
    start,
)

from optax_adadelta import adadelta
from optax_adadelta.diagnostics import effective_learning_rate, find_state

pytestmark = pytest.mark.scripts

LENGTHS = (7, 29, 12)  # Of the made-up utterances.
# Adadelta's steps on the functions are many times its first ones by then.
STEPS = 40


@pytest.fixture(autouse=True)
def promotion():
    """What a user's session allows, as Optax's Adam needs."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def printed(monkeypatch, capsys):
    """A function that runs an example in this process and returns what it printed."""

    def printed(example, *options):
        monkeypatch.setattr(sys, "argv", [f"{example.__name__}.py", *map(str, options)])
        example.main()
        return capsys.readouterr().out

    return printed


@pytest.mark.parametrize("name", sorted(WITH_PICTURE))
def test_help_explains_every_option_and_bad_options_are_refused(name, printed, tmp_path, capsys):
    example = module(name)
    with pytest.raises(SystemExit) as done:
        printed(example, "--help")
    assert done.value.code == 0
    text = capsys.readouterr().out
    options = re.findall(r"^  (--[a-z-]+)(.*(?:\n   .*)*)", text, re.MULTILINE)
    assert {"--output", "--smoke"} <= {option for option, _ in options}
    for _, explained in options:
        assert "(default:" in " ".join(explained.split())
    assert (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").split('"""')[1].strip() in text
    (tmp_path / "file").write_text("What somebody keeps.")
    with pytest.raises(SystemExit, match=r"^Cannot write --output .*a\.png: "):
        printed(example, "--output", tmp_path / "file" / "a.png")
    assert (tmp_path / "file").read_text() == "What somebody keeps."


@pytest.mark.parametrize("name", ["digits", "linear_regression"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--output", "picture"], "--output must end in .png"),
    ],
)
def test_options_out_of_range(name, options, message, printed, capsys):
    with pytest.raises(SystemExit) as done:
        printed(module(name), *options)
    assert done.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(WITH_PICTURE))
@pytest.mark.parametrize("missing", ["matplotlib", "optax_adadelta"])
def test_a_missing_package_is_named(name, missing, monkeypatch, tmp_path):
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError(name='{missing}')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{EXAMPLES.parent}")
    assert refusal(name) == f'No {missing}. Run: pip install -e ".[examples]"\n'


def test_ctrl_c_ends_with_one_line(monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\n"
        "import jax\n"
        # A shell ignores the signal in what it starts in the background.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "compiled = lambda event, *_, **__: os.kill(os.getpid(), signal.SIGINT)\n"
        "jax.monitoring.register_event_duration_secs_listener(compiled)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{EXAMPLES.parent}")
    done = start("linear_regression", "--output", tmp_path / "line.png")
    assert done.returncode == 130
    assert done.stderr == "\nInterrupted.\n"
    assert not (tmp_path / "line.png").exists()


def check_digits(printed, output, epochs, accuracy):
    """Checks what digits.py printed and drew, and returns the rates of each optimizer."""
    images, trained = numbers(r"(?m)^(\d+) digits .* After (\d+) epochs", printed)
    assert (images, trained) == (450, epochs)
    rates = {}
    for name in ("adadelta", "nadadelta"):
        line = rf"(?m)^  {name} +test accuracy ([\d.]+)%, loss ([\d.]+) before, ([\d.e+-]+) after"
        percent, before, after = numbers(line, printed)
        assert accuracy <= percent / 100 <= 1
        assert percent / 100 * images == pytest.approx(round(percent / 100 * images), abs=0.05)
        assert after < before
        for layer in ("hidden 1", "hidden 2", "output"):
            line = rf"(?m)^  {name} +{layer}: lowest ([\d.e+]+) \(epoch (\d+)\), ([\d.e+]+) at"
            low, at, end = numbers(line, printed)
            assert 0 < low <= end
            assert 1 <= at <= epochs
            rates[name, layer] = (low, end)
    assert printed.endswith(f"Picture: {output}\n")
    check_picture(output)
    return rates


def test_a_short_run_of_digits_depends_on_the_seed_alone(tmp_path, printed, monkeypatch, compiled):
    digits, output = module("digits"), tmp_path / "new" / "digits.png"
    bar, fit, before, after = digits.trange, digits.fit, [], []

    def noted(*args, **kwargs):
        before.append(compiled())
        return bar(*args, **kwargs)

    def fitted(*args):
        history = fit(*args)
        after.append(compiled())
        return history

    monkeypatch.setattr(digits, "trange", noted)
    monkeypatch.setattr(digits, "fit", fitted)

    def told(*options):
        return re.sub(r"Training time: .*", "", printed(digits, *options, "--output", output))

    first = told("--smoke")
    assert before == after, "the bar's clock counts compilation"
    assert len(before) == 2
    check_digits(first, output, epochs=2, accuracy=0.5)
    assert told("--epochs", "2") == first
    assert told("--smoke", "--seed", "1") != first


def test_digits_in_full(tmp_path):
    output = tmp_path / "digits.png"
    text = run("digits", "--seed", "3", "--output", output, promotion="standard")
    rates = check_digits(text, output, epochs=40, accuracy=0.97)
    # The paper's section 4.3: the top layer's rate is the smallest, and all of them return to 1.
    one, two, top = (rates["adadelta", layer] for layer in ("hidden 1", "hidden 2", "output"))
    assert top[0] < min(one[0], two[0])
    assert [end for _, end in (one, two, top)] == pytest.approx([1, 1, 1], abs=0.02)


@pytest.mark.parametrize(
    ("options", "seed", "epochs"), [(["--smoke"], 0, 10), ([], 0, 100), (["--seed", "4"], 4, 100)]
)
def test_linear_regression(tmp_path, options, seed, epochs):
    output = tmp_path / "new" / "line.png"
    text = run("linear_regression", *options, "--output", output)

    def line(name):
        return numbers(rf"{name}: +slope ([-\d.]+), intercept ([-\d.]+)", text)

    x, y = module("linear_regression").data(seed)
    best = np.polyfit(x, y, 1)
    assert line("true line") == [3, 2]
    assert line("least squares") == pytest.approx(best, abs=6e-4)
    fitted = np.array(line(f"Adadelta, {epochs} epochs"))
    # Steps of about sqrt(eps / (1 - rho)) that hardly grow: far from there yet.
    assert fitted == pytest.approx([epochs * 0.0045] * 2, rel=0.25)
    off = numbers(r"slope ([\d.]+)%, intercept ([\d.]+)%\.", text)
    assert off == pytest.approx(100 * abs(fitted / best - 1), abs=0.1)
    enough, last = numbers(r"within 1% from epoch (\d+) to the last, (\d+)\.", text)
    assert epochs < enough < last == 10_000
    assert line(f"Adadelta, {enough:.0f} epochs") == pytest.approx(best, rel=0.01, abs=6e-4)
    assert text.endswith(f"Picture: {output}\n")
    check_picture(output)


@pytest.fixture(scope="module")
def speaker():
    return module("speaker")


@pytest.fixture
def folder(speaker, tmp_path, monkeypatch):
    """A folder with made-up utterances, as in the UCI's files, whose checksums are the right ones.

    The speakers differ by the mean of one number of each frame.
    """
    for name, counts in (("ae.train", speaker.TRAIN), ("ae.test", speaker.TEST)):
        rng, lines = np.random.default_rng(len(name)), []
        for who, count in enumerate(counts):
            for i in range(count):
                frames = rng.standard_normal((LENGTHS[i % 3], 12)) + 0.6 * np.eye(12)[who]
                rows = [*frames, np.ones(12)]
                lines += [*(" ".join(f"{x:.6f}" for x in row) for row in rows), ""]
        content = "\n".join(lines).encode()
        (tmp_path / name).write_bytes(content)
        monkeypatch.setitem(speaker.SHA256, name, hashlib.sha256(content).hexdigest())
    return tmp_path


def test_utterances_are_read_standardized_and_split(speaker, folder):
    frames, lengths, speakers = speaker.read("ae.test", speaker.TEST, folder)
    text = (folder / "ae.test").read_text().split("\n\n")
    assert frames.shape == (370, 29, 12)
    assert np.bincount(speakers).tolist() == list(speaker.TEST)
    for i in (0, 1, 31, 369):
        rows = np.array([row.split() for row in text[i].strip().splitlines()], float)
        np.testing.assert_allclose(frames[i, : lengths[i]], rows[:-1], rtol=1e-6)
        assert not frames[i, lengths[i] :].any()
    data, _ = speaker.load(folder)
    said = data[0][np.arange(29) < data[1][:, None]]
    np.testing.assert_allclose(said.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(said.std(axis=0), 1, rtol=1e-5)
    train, validation = speaker.split(data, 0)
    assert np.bincount(train[2]).tolist() == [24] * 9
    assert np.bincount(validation[2]).tolist() == [6] * 9
    together = np.concatenate([train[0], validation[0]]).sum(axis=(1, 2))
    np.testing.assert_array_equal(np.sort(together), np.sort(data[0].sum(axis=(1, 2))))


def test_the_model_is_a_gated_recurrent_unit_that_sees_no_padding(speaker):
    rng, width = np.random.default_rng(0), speaker.WIDTH
    p = {n: np.float64(value) for n, value in speaker.init(jax.random.key(0)).items()}
    p["bias"] = rng.standard_normal(p["bias"].shape)
    frames = np.float32(rng.standard_normal((3, 29, 12)))
    expected = []
    for utterance, length in zip(frames, LENGTHS, strict=True):
        h, states = np.zeros(width), []
        for x in utterance[:length]:
            a, b = x @ p["from frame"] + p["bias"], h @ p["from state"]
            keep, reset = np.split(1 / (1 + np.exp(-(a + b)[: 2 * width])), 2)
            h = keep * h + (1 - keep) * np.tanh(a[2 * width :] + reset * b[2 * width :])
            states.append(h)
        expected.append(np.mean(states, axis=0) @ p["out"] + p["out bias"])
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), p)
    found = speaker.logits(params, jnp.asarray(frames), jnp.asarray(LENGTHS))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_short_run_of_speaker_learns_and_depends_on_the_seeds_alone(speaker, folder, printed):
    output, results = folder / "new" / "a.png", folder / "b" / "results.json"
    given = ("--data-dir", folder, "--output", output, "--results", results)
    first, again = (
        re.sub(r"time: .* s", "", printed(speaker, "--epochs", 4, "--seeds", 2, *given))
        for _ in range(2)
    )
    assert again == first
    found = json.loads(results.read_text())
    mean, lowest = numbers(r"Test accuracy of 370 .* mean ([\d.]+)%, lowest ([\d.]+)%", again)
    accuracies = 100 * np.array(found["accuracies"])
    assert [mean, lowest] == pytest.approx([accuracies.mean(), accuracies.min()], abs=0.01)
    assert 40 < lowest < mean < 100
    check_picture(output)
    short = printed(speaker, "--smoke", "--data-dir", folder, "--output", folder / "a.svg")
    assert len(re.findall(r"^Seed \d: ", short, re.MULTILINE)) == speaker.SMOKE_SEEDS
    assert "<svg" in (folder / "a.svg").read_text()


def test_wrong_data_and_results_that_cannot_be_written_are_refused(
    speaker, folder, printed, monkeypatch
):
    given = ("--data-dir", folder, "--output", folder / "a.png")
    with pytest.raises(SystemExit, match=r"^Cannot write --results .*b\.json: "):
        printed(speaker, *given, "--results", folder / "ae.train" / "b.json")
    (folder / "ae.train").write_text("1 2")
    with pytest.raises(SystemExit, match=r"ae\.train is the wrong file: its SHA-256"):
        printed(speaker, *given)
    (folder / "ae.train").unlink()
    with pytest.raises(SystemExit, match=r"There is no ae\.train in --data-dir "):
        printed(speaker, *given)
    monkeypatch.setattr(speaker, "URL", "http://127.0.0.1:9/")
    monkeypatch.setattr(speaker.pooch, "os_cache", lambda name: folder / name)
    with pytest.raises(SystemExit, match=r"(?s)^Could not download ae\.train: .*--data-dir"):
        speaker.load(None)


def test_the_committed_run_reaches_95_percent_with_each_of_five_seeds():
    results = json.loads((ROOT / "studies" / "results" / "speaker.json").read_text())
    assert results["epochs"] == 60
    assert len(results["accuracies"]) == 5
    assert min(results["accuracies"]) >= 0.95


@pytest.fixture(scope="module")
def trajectories():
    return module("trajectories")


def height(name, x, y):
    """The functions written again, multiplied out where that makes them look different."""
    if name == "Rosenbrock":
        return 1 - 2 * x + x**2 + 100 * (y**2 - 2 * x**2 * y + x**4)
    if name == "Beale":
        return sum((c - x * (1 - y**n)) ** 2 for n, c in ((1, 3 / 2), (2, 9 / 4), (3, 21 / 8)))
    if name == "Ravine":
        return 0.5 * x**2 + 50 * y**2
    return 0.5 * x**2 + 0.25 * y**4 - 0.5 * y**2 + 0.25


def slope(name, point):
    """The gradient by central differences of the fourth order."""
    h = 1e-3
    parts = []
    for direction in h * np.eye(2):
        near, far = (
            [height(name, *(point + sign * n * direction)) for sign in (1, -1)] for n in (1, 2)
        )
        parts.append((8 * (near[0] - near[1]) - (far[0] - far[1])) / (12 * h))
    return np.array(parts)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["Rosenbrock", "Beale", "Ravine", "Saddle"])
def test_adadelta_walks_on_the_functions_as_algorithm_1(trajectories, name):
    function = trajectories.FUNCTIONS[name]
    gradient = jax.grad(lambda point: function.value(point[0], point[1]))
    for point in np.random.default_rng(0).uniform(-2, 2, (20, 2)):
        assert function.value(*point) == pytest.approx(height(name, *point), rel=1e-12)
        np.testing.assert_allclose(gradient(point), slope(name, point), rtol=1e-6, atol=1e-6)
    for minimum in function.minima:
        assert height(name, *minimum) == pytest.approx(0, abs=1e-12)
    points, slopes = [np.array(function.start, float)], []
    for _ in range(STEPS):
        slopes.append(slope(name, points[-1]))
        *_, step = algorithm_1(slopes, rho=0.95, eps=1e-5)
        points.append(points[-1] + step.dx)
    walked, states = trajectories.walk(adadelta(1.0, 0.95, 1e-5), function, STEPS)
    np.testing.assert_allclose(walked, points, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(states.e_g[-1], step.e_g, rtol=1e-6)


def test_walks_tell_the_last_value_from_the_highest_of_the_last_30(trajectories):
    bowl = trajectories.Function(lambda x, y: (x**2 + y**2) / 2, (2.0, 0.0), [(0.0, 0.0)])

    def jump_at(step, rate):
        return optax.sgd(lambda count: jax.numpy.where(count == step - 1, rate, 0.0))

    # A step of 1 leads into the minimum of this function, one of 3 beyond it.
    for step, rate, last, highest in (
        (60, 1.0, 0, 2),
        (31, 1.0, 0, 0),
        (32, 1.0, 0, 2),
        (60, 3.0, 8, 8),
        (60, 0.0, 2, 2),
    ):
        found = trajectories.walks(lambda r, step=step: jump_at(step, r), [rate], bowl, 60)[1:]
        np.testing.assert_allclose(found, [[last], [highest]], atol=1e-12)


def test_the_table_of_trajectories_has_the_best_rates_and_agrees_with_the_numbers(
    trajectories, capsys
):
    results = trajectories.measure(STEPS)
    for (_, method), highest in results["last"].items():
        assert len(highest) == (1 if method == "Adadelta" else 51)
    trajectories.tell(results)
    first, second = capsys.readouterr().out.rsplit("\n", 2)[0:2]
    rows = {line.split()[0]: line.split()[1:] for line in first.splitlines()[2:]}
    assert tuple(rows) == ("SGD", "Momentum", "Adagrad", "RMSProp", "Adam", "Adadelta")
    for method, cells in rows.items():
        for name, value, rate in zip(trajectories.FUNCTIONS, cells[::2], cells[1::2], strict=True):
            end = height(name, *results["points"][name, method][-1])
            assert float(value) == pytest.approx(max(end, 1e-8), rel=0.06)
            best = results["rate"][name, method]
            assert rate == ("(none)" if method == "Adadelta" else f"({best:.2g})")
    points, rates = results["points"]["Ravine", "Adadelta"], results["own rates"]
    np.testing.assert_array_equal(rates[0], [1, 1])
    for rate, step in zip(rates[1:], algorithm_1(points[:-1] * [1, 100], eps=1e-5), strict=True):
        expected = np.sqrt(step.e_x + 1e-5) / np.sqrt(step.e_g + 1e-5)
        np.testing.assert_allclose(rate, expected, rtol=1e-3)
    (found,) = re.findall(r"step 30: (\S+) along it, (\S+) across\.", second)
    assert found == tuple(f"{rate:.2g}" for rate in rates[30])


def test_trajectories_draws_a_picture_and_an_animation_that_grows(tmp_path):
    picture = tmp_path / "new" / "walks.png"
    text = run("trajectories", "--smoke", "--output", picture, promotion="standard")
    animation = picture.with_suffix(".gif")
    assert text.endswith(f"Picture: {picture}\nAnimation: {animation}\n")
    check_picture(picture, 50_000, 250_000)
    with Image.open(animation) as image:
        assert image.n_frames == 5
        frames = []
        for moment in range(image.n_frames):
            image.seek(moment)
            frames.append(np.asarray(image.convert("RGB"), int))
        # It stands still at the end, and starts again.
        assert image.info["duration"] > 1000
        assert image.info["loop"] == 0
    for a, b in itertools.pairwise(frames):
        changed = (abs(a - b).max(axis=-1) > 50).mean()
        assert 1e-4 < changed < 0.1


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
    for option in ("--steps", "--every"):
        assert "must be at least 1" in refusal("log_to_tensorboard", option, "0")
    (tmp_path / "file").write_text("")
    told = refusal("log_to_tensorboard", "--folder", tmp_path / "file" / "runs")
    assert told.startswith("Cannot write to --folder")
