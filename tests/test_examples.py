"""The examples run as scripts: what they print is true, and their pictures are pictures."""

import importlib.util
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
NAMES = ("digits", "linear_regression")
PNG = b"\x89PNG\r\n\x1a\n"


def run(name, *arguments, promotion="strict"):
    """Returns what the example printed, having checked that stderr holds a bar at most."""
    env = {**os.environ, "JAX_NUMPY_DTYPE_PROMOTION": promotion}
    command = [sys.executable, ROOT / "examples" / f"{name}.py", *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = re.split(r"[\r\n]+", done.stderr)
    assert not [line for line in lines if line.strip() and not line.startswith("Training:")]
    return done.stdout


def numbers(pattern, printed):
    """Returns the numbers that the groups of the pattern hold, which must occur once."""
    (found,) = re.findall(pattern, printed)
    return [float(number) for number in ((found,) if isinstance(found, str) else found)]


def check_picture(path):
    """Checks that the file is a picture, large enough to read and small enough to ship."""
    content = path.read_bytes()
    assert content.startswith(PNG)
    assert 10_000 < len(content) < 100_000
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    assert width >= 800
    assert height >= 300


@pytest.fixture(scope="module")
def linear_regression():
    """The example as a module."""
    path = ROOT / "examples" / "linear_regression.py"
    spec = importlib.util.spec_from_file_location("linear_regression", path)
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        # Other packages' deprecations of one another are not the example's.
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module


def check_digits(printed, output, epochs, accuracy):
    """Checks what digits.py said and drew."""
    percent, images, trained = numbers(
        r"^Test accuracy: ([\d.]+)% of (\d+) digits .* (\d+) epochs", printed
    )
    assert accuracy <= percent / 100 <= 1
    assert percent / 100 * images == pytest.approx(round(percent / 100 * images), abs=0.05)
    assert (images, trained) == (450, epochs)
    (seconds,) = numbers(r"Time: ([\d.]+) s", printed)
    assert 0 < seconds < 300
    rates = {}
    for layer in ("hidden 1", "hidden 2", "output"):
        low, at, end = numbers(rf"{layer}: lowest ([\d.]+) \(epoch (\d+)\), ([\d.]+) at", printed)
        assert 0 < low < 1
        assert 1 <= at <= epochs
        assert low <= end <= 1.05
        rates[layer] = (low, end)
    assert printed.endswith(f"Picture: {output}\n")
    check_picture(output)
    return rates


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """What a short run printed, and where its picture is."""
    output = tmp_path_factory.mktemp("smoke") / "new" / "digits.png"
    return run("digits", "--smoke", "--output", output), output


def test_digits_smoke(smoke):
    check_digits(*smoke, epochs=2, accuracy=0.5)


def test_digits_depends_on_the_seed_alone(smoke):
    def told(printed):
        return re.sub(r"Time: .*", "", printed)

    printed, output = smoke
    again = run("digits", "--epochs", "2", "--output", output)
    assert told(again) == told(printed)
    assert told(run("digits", "--smoke", "--seed", "1", "--output", output)) != told(printed)


def test_digits_in_full(tmp_path):
    output = tmp_path / "digits.png"
    printed = run("digits", "--seed", "3", "--output", output, promotion="standard")
    rates = check_digits(printed, output, epochs=40, accuracy=0.97)
    # The paper's section 4.3: the top layer's rate is the smallest, and all of them return to 1.
    assert rates["output"][0] < min(rates["hidden 1"][0], rates["hidden 2"][0])
    assert [end for _, end in rates.values()] == pytest.approx([1, 1, 1], abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "seed", "epochs"), [(["--smoke"], 0, 10), ([], 0, 100), (["--seed", "4"], 4, 100)]
)
def test_linear_regression(tmp_path, linear_regression, arguments, seed, epochs):
    output = tmp_path / "new" / "line.png"
    printed = run("linear_regression", *arguments, "--output", output)

    def line(name):
        return numbers(rf"{name}: +slope ([-\d.]+), intercept ([-\d.]+)", printed)

    x, y = linear_regression.data(seed)
    best = np.polyfit(x, y, 1)
    assert x.shape == y.shape == (100,)
    assert np.std(y - np.polyval([3, 2], x)) == pytest.approx(0.5, rel=0.25)
    assert line("true line") == [3, 2]
    assert line("least squares") == pytest.approx(best, abs=6e-4)
    fitted = np.array(line(f"Adadelta, {epochs} epochs"))
    # Steps of about sqrt(eps / (1 - rho)) that hardly grow: far from there yet.
    assert fitted == pytest.approx([epochs * 0.0045] * 2, rel=0.25)
    off = numbers(r"slope ([\d.]+)%, intercept ([\d.]+)%\.", printed)
    assert off == pytest.approx(100 * abs(fitted / best - 1), abs=0.1)
    enough, last = numbers(r"within 1% from epoch (\d+) to epoch (\d+), the last", printed)
    assert epochs < enough < last == 10_000
    assert line(f"Adadelta, {enough:.0f} epochs") == pytest.approx(best, rel=0.01, abs=6e-4)
    assert printed.endswith(f"Picture: {output}\n")
    check_picture(output)


def test_linear_regression_longer_than_it_needs(tmp_path):
    printed = run("linear_regression", "--epochs", "1500", "--output", tmp_path / "line.png")
    assert max(numbers(r"slope ([\d.]+)%, intercept ([\d.]+)%\.", printed)) < 1


def test_settled(linear_regression):
    target = np.array([2.0, -1.0])
    near, far = target * 1.009, target * [1.0, 1.011]
    for lines, epoch in (
        ([far, near, near], 1),
        ([near, far, near], 2),
        ([near, near], 0),
        ([near, far], None),
    ):
        assert linear_regression.settled(np.array(lines), target) == epoch


@pytest.mark.parametrize("name", NAMES)
def test_help_names_every_option(name):
    printed = run(name, "--help")
    for option in ("--epochs", "--seed", "--output", "--smoke"):
        (explained,) = re.findall(rf"^  {option} .*(?:\n   .*)*", printed, re.MULTILINE)
        assert "(default:" in " ".join(explained.split())
    assert (ROOT / "examples" / f"{name}.py").read_text().split('"""')[1].strip() in printed


@pytest.mark.parametrize("name", NAMES)
def test_options_out_of_range(name):
    command = [sys.executable, ROOT / "examples" / f"{name}.py", "--epochs", "0"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 2
    assert "--epochs must be at least 1" in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_docs_have_the_picture(name):
    check_picture(ROOT / "docs" / f"{name}.png")
