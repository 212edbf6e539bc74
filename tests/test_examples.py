"""The examples run as scripts, print the right numbers and write pictures."""

import re
import sys

import jax
import numpy as np
import pytest
from scripts import EXAMPLES, WITH_PICTURE, check_picture, module, numbers, refusal, run, start


@pytest.fixture(scope="module")
def linear_regression():
    return module("linear_regression")


def check_digits(printed, output, epochs, accuracy):
    """Checks what digits.py printed and drew."""
    percent, images, trained = numbers(
        r"^Test accuracy: ([\d.]+)% of (\d+) digits .* (\d+) epochs", printed
    )
    assert accuracy <= percent / 100 <= 1
    assert percent / 100 * images == pytest.approx(round(percent / 100 * images), abs=0.05)
    assert (images, trained) == (450, epochs)
    (seconds,) = numbers(r"time: ([\d.]+) s", printed)
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


@pytest.mark.scripts
def test_a_short_run_of_digits_depends_on_the_seed_alone(tmp_path, monkeypatch, capsys, compiled):
    digits, output = module("digits"), tmp_path / "new" / "digits.png"
    bar, before = digits.trange, []

    def noted(*args, **kwargs):
        before.append(compiled())
        return bar(*args, **kwargs)

    monkeypatch.setattr(digits, "trange", noted)

    def printed(*arguments):
        monkeypatch.setattr(sys, "argv", ["digits.py", *arguments, "--output", str(output)])
        with jax.numpy_rank_promotion("allow"):
            digits.main()
        return capsys.readouterr().out

    def told(text):
        return re.sub(r"Training time: .*", "", text)

    first = printed("--smoke")
    assert before == [compiled()], "the bar's clock counts compilation"
    check_digits(first, output, epochs=2, accuracy=0.5)
    assert told(printed("--epochs", "2")) == told(first)
    assert told(printed("--smoke", "--seed", "1")) != told(first)


@pytest.mark.scripts
def test_digits_in_full(tmp_path):
    output = tmp_path / "digits.png"
    printed = run("digits", "--seed", "3", "--output", output, promotion="standard")
    rates = check_digits(printed, output, epochs=40, accuracy=0.97)
    # The paper's section 4.3: the top layer's rate is the smallest, and all of them return to 1.
    assert rates["output"][0] < min(rates["hidden 1"][0], rates["hidden 2"][0])
    assert [end for _, end in rates.values()] == pytest.approx([1, 1, 1], abs=0.02)


@pytest.mark.scripts
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
    enough, last = numbers(r"within 1% from epoch (\d+) to the last, (\d+)\.", printed)
    assert epochs < enough < last == 10_000
    assert line(f"Adadelta, {enough:.0f} epochs") == pytest.approx(best, rel=0.01, abs=6e-4)
    assert printed.endswith(f"Picture: {output}\n")
    check_picture(output)


@pytest.mark.scripts
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


@pytest.mark.parametrize("name", sorted(WITH_PICTURE))
def test_help_explains_every_option(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as done:
        module(name).main()
    assert done.value.code == 0
    printed = capsys.readouterr().out
    options = re.findall(r"^  (--[a-z-]+)(.*(?:\n   .*)*)", printed, re.MULTILINE)
    assert {"--output", "--smoke"} <= {option for option, _ in options}
    for _, explained in options:
        assert "(default:" in " ".join(explained.split())
    assert (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").split('"""')[1].strip() in printed


@pytest.mark.parametrize("name", ["digits", "linear_regression"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--output", "picture"], "--output must end in .png"),
    ],
)
def test_options_out_of_range(name, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    with pytest.raises(SystemExit) as done:
        module(name).main()
    assert done.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(WITH_PICTURE))
def test_an_output_that_cannot_be_written_is_refused_at_once(name, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("What somebody keeps.")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--output", str(tmp_path / "file" / "a.png")])
    with pytest.raises(SystemExit, match=r"^Cannot write --output .*a\.png: "):
        module(name).main()
    assert (tmp_path / "file").read_text() == "What somebody keeps."


@pytest.mark.scripts
@pytest.mark.parametrize("missing", ["matplotlib", "optax_adadelta"])
@pytest.mark.parametrize("name", sorted(WITH_PICTURE))
def test_a_missing_package_is_named(name, missing, monkeypatch, tmp_path):
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError(name='{missing}')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{EXAMPLES.parent}")
    assert refusal(name) == f'No {missing}. Run: pip install -e ".[examples]"\n'


@pytest.mark.scripts
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
