"""The airfoil example: what it prints is true, on a small file made here and served from here."""

import functools
import json
import re

import numpy as np
import pytest
import scripts
from reference import algorithm_1, one_step
from scripts import numbers

pytestmark = pytest.mark.scripts

FILE = "airfoil_self_noise.dat"
PICTURES = {f"airfoil{name}-smoke.png" for name in ("", "_rho", "_forms", "_breakers", "_methods")}


@pytest.fixture(scope="module")
def table():
    """A linear model's numbers, with noise, in units as far apart as the real ones."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(503, 5)) * [3000, 6, 0.1, 15, 0.01] + [2900, 7, 0.1, 50, 0.01]
    noise = 6 * rng.normal(size=503)
    return np.column_stack([features, features @ [-1e-3, -0.4, -36, 0.1, -150] + 130 + noise])


@pytest.fixture(scope="module")
def content(table):
    """The file: tabs between the columns, and the line ends of another system."""
    return "".join("\t".join(f"{x:.6g}" for x in row) + "\r\n" for row in table).encode()


@pytest.fixture(scope="module")
def files(tmp_path_factory, content):
    """The file in a folder, to be served."""
    return scripts.Data(tmp_path_factory.mktemp("airfoil") / "files", {FILE: content})


@pytest.fixture(scope="module")
def smoke(files, tmp_path_factory, content):
    """A short run: its folder, what it printed, and its results."""
    output = tmp_path_factory.mktemp("smoke") / "new" / "results"
    with files.served() as url:
        printed = scripts.run(
            "airfoil", "--smoke", "--data-url", url, "--output", output, data=files
        )
    assert (files.cache / "optax_adadelta" / FILE).read_bytes() == content
    return output, printed, json.loads((output / "airfoil-smoke.json").read_text())


@pytest.fixture(scope="module")
def airfoil():
    """The example as a module."""
    return scripts.module("experiments._airfoil")


@pytest.fixture(scope="module")
def data(content):
    """The features with a column of ones, and the target, standardised in float64."""
    table = np.array([line.split() for line in content.decode().splitlines()], np.float64)
    table = (table - table.mean(axis=0)) / table.std(axis=0)
    return np.column_stack([table[:, :-1], np.ones(len(table))]), table[:, -1]


@pytest.fixture(scope="module")
def best(data):
    """The weights of least squares."""
    return np.linalg.lstsq(*data)[0]


def loss(w, x, y):
    return np.mean((x @ w - y) ** 2) / 2


def adadelta(rho=0.9, eps=1e-5):
    """Returns a function of each gradient in turn: the step of Algorithm 1, in float64."""
    e_g = e_x = 0.0

    def step(g):
        nonlocal e_g, e_x
        dx, e_g, e_x = one_step(g, e_g, e_x, rho, eps)
        return dx

    return step


@pytest.fixture(scope="module")
def final(airfoil, data):
    """Returns a function that trains in NumPy, and returns the last loss of both seeds."""
    x, y = data

    def train(make, scale=1.0, steps=None):
        losses = []
        for seed in range(2):
            w, step = scale * airfoil.start(seed, 6).astype(np.float64), make()
            for batch in airfoil.batches(seed, 2, len(y))[:steps]:
                w = w + step(x[batch].T @ (x[batch] @ w - scale * y[batch]) / len(batch))
            losses.append(loss(w, x, scale * y))
        return np.array(losses)

    return train


def test_preparation(airfoil, table, data, content, tmp_path):
    (tmp_path / FILE).write_bytes(content)
    for prepared, expected in zip(airfoil.prepare(np.loadtxt(tmp_path / FILE)), data, strict=True):
        assert prepared.dtype == np.float32
        np.testing.assert_allclose(prepared, expected, atol=1e-6)
    # 1503 rows are standardised and 1500 of them kept, as the book does.
    longer = np.tile(table, (3, 1))[:1503]
    x, y = airfoil.prepare(longer)
    assert (x.shape, y.shape) == ((1500, 6), (1500,))
    expected = (longer[:1500, -1] - longer[:, -1].mean()) / longer[:, -1].std()
    np.testing.assert_allclose(y, expected, atol=1e-6)


def test_batches_and_starts(airfoil):
    batches = airfoil.batches(3, 2, 203)
    assert batches.shape == (40, 10)
    for epoch in batches.reshape(2, 200):
        assert len(set(epoch)) == 200
        assert set(epoch) <= set(range(203))
    assert (batches[:20] != batches[20:]).any()
    starts = np.array([airfoil.start(seed, 6) for seed in range(500)])
    assert (starts[:, -1] == 0).all()
    assert starts[:, :-1].std() == pytest.approx(0.01, rel=0.1)


def test_experiment(smoke, data, best, final):
    _, printed, _ = smoke
    (optimum,) = numbers(r"Least squares: loss ([\d.]+)\.", printed)
    assert optimum == pytest.approx(loss(best, *data), abs=6e-6)
    for eps in (1e-5, 1e-6):
        expected = final(lambda eps=eps: adadelta(eps=eps))
        told = numbers(
            rf"rho 0.9, eps 1e-{-np.log10(eps):.0f}: ([\d.]+) \(([\d.]+) to ([\d.]+)\)", printed
        )
        assert told == pytest.approx([expected.mean(), expected.min(), expected.max()], abs=6e-5)
    assert "after 2 epochs, 2 seeds." in printed


def test_rho(smoke, final, best, data):
    _, printed, results = smoke
    expected = {
        rho: final(lambda rho=rho: adadelta(rho)).mean()
        for rho in (0.5, 0.8, 0.9, 0.95, 0.99, 0.999)
    }
    low, at_low, high, at_high, within, of = numbers(
        r"1\. .* is ([\d.]+) at the best rho, ([\d.]+), and ([\d.]+) at the worst, ([\d.]+);"
        r" (\d+) of (\d+) are within 5% of least squares",
        printed,
    )
    assert low == pytest.approx(min(expected.values()), abs=6e-5)
    assert high == pytest.approx(max(expected.values()), abs=6e-5)
    assert expected[at_low] == pytest.approx(low, abs=6e-5)
    assert expected[at_high] == pytest.approx(high, abs=6e-5)
    bound = 1.05 * loss(best, *data)
    assert (within, of) == (sum(value <= bound for value in expected.values()), len(expected))
    early = numbers(r"after 20 of them the loss is ([\d.]+) and ([\d.]+)\.", printed)
    twenty = [final(lambda rho=rho: adadelta(rho), steps=20).mean() for rho in (0.5, 0.999)]
    assert early == pytest.approx(twenty, abs=6e-4)
    assert results["results"]["rho"]["rho"] == list(expected)


def test_without_g(smoke):
    _, printed, results = smoke
    differ, apart = numbers(
        r"differ from adadelta's by at most (\d+) times .* final losses by (\S+), and", printed
    )
    # Not zero, for the roundings are other ones; and no more than a few of them.
    assert 1 <= differ <= 20
    assert apart < 1e-6
    lost = numbers(r"first step is lost for gradients from (\S+) on", printed)
    g = 10.0 ** np.arange(-16, 19)
    assert lost == [g[1e-30 / (0.1 * g**2) < np.finfo(np.float32).tiny].min()]
    share = results["results"]["forms"]["range"]["share"]
    assert share["adadelta"] == pytest.approx(np.ones(len(g)), rel=1e-5)
    (told,) = re.findall(r"a step is (.*) here than with g' written out", printed)
    costs = results["results"]["forms"]["costs"]["forms"]
    less = [costs["without g'"][key] < cost for key, cost in costs["with g'"].items()]
    assert len(less) == 4
    assert told == ("cheaper" if all(less) else "cheaper in part" if any(less) else "not cheaper")
    for cost in costs.values():
        # Four numbers of four bytes are read for each coordinate, and three written.
        assert cost["bytes accessed"] > 27.9
        assert cost["ms"] > 0
    gradients = np.random.default_rng(1).normal(size=(60, 5)).astype(np.float32)
    expected = [dx for dx, _, _ in algorithm_1(gradients, 0.9, 1e-5)]
    for form in scripts.module("experiments._airfoil_forms").FORMS.values():
        method = form(rho=0.9, eps=1e-5)
        state, updates = method.init(gradients[0]), []
        for g in gradients:
            update, state = method.update(g, state)
            updates.append(update)
        np.testing.assert_allclose(updates, expected, rtol=1e-5)


def test_scale(smoke, final):
    _, printed, _ = smoke
    large, small, descent, *cured = numbers(
        r"a\. .* ends at (\S+), and .* near 1, at (\S+) \(gradient descent with step 1: (\S+)\)\."
        r" eps 1e-5 scale²: (\S+) and ([\d.]+), which",
        printed,
    )
    for scale, told, well in zip((1e4, 1e-3), (large, small), cured, strict=True):
        assert np.median(final(adadelta, scale)) / scale**2 == pytest.approx(told, rel=0.01)
        scaled = final(lambda scale=scale: adadelta(eps=1e-5 * scale**2), scale)
        assert np.median(scaled) / scale**2 == pytest.approx(well, abs=6e-5)
    assert np.median(final(lambda: lambda g: -g)) == pytest.approx(descent, rel=0.01)


def test_curvature(smoke, data, best):
    _, printed, results = smoke
    x, y = data
    largest = np.linalg.eigvalsh(x.T @ x / len(y)).max()

    def excess(curvature, rate):
        wide = np.sqrt(curvature / largest) * x
        w, step, found = np.zeros(6), adadelta(), []
        for t in range(200):
            w = w + rate(t) * step(wide.T @ (wide @ w - y) / len(y))
            found.append(loss(w, wide, y) - loss(best, x, y))
        return max(found[-20:])

    (wild,) = numbers(r"at 2\.1 and (\S+) at 10, after 200 steps", printed)
    assert wild == pytest.approx(excess(10, lambda t: 1), rel=0.3)
    tenth, hundred = numbers(r"whose limit is 20, leaves (\S+) at 10 and (\S+) at 100", printed)
    assert tenth == pytest.approx(excess(10, lambda t: 0.1), rel=0.3)
    assert hundred == pytest.approx(excess(100, lambda t: 0.1), rel=0.3)
    lines = results["results"]["breakers"]["curvature"]
    falling = dict(zip(lines["x"], lines["lines"]["falling from 1 to 0"], strict=True))
    expected = excess(100, lambda t: (1 + np.cos(np.pi * t / 200)) / 2)
    assert falling[100] == pytest.approx(expected, rel=0.3)


def test_rare_gradients(smoke):
    _, printed, _ = smoke

    def found(step):
        w, path = 0.0, []
        for t in range(2000):
            path.append(w)
            w = w + step(w - (100.0 if t % 100 == 50 else 0.0))
        return np.mean(path[-400:])

    short, long = numbers(r"c\. .* and ([-\d.]+) found .* rho 0.9999: ([-\d.]+), which", printed)
    assert short == pytest.approx(found(adadelta()), abs=6e-3)
    assert long == pytest.approx(found(adadelta(0.9999)), abs=6e-3)


def test_spike(smoke, final):
    _, printed, _ = smoke

    def spiked(size, clip):
        step, at = adadelta(), iter(range(1000))

        def spiked_step(g):
            g = size * g if next(at) == 10 else g
            return step(g * min(1.0, clip / np.linalg.norm(g)))

        return spiked_step

    told = numbers(
        r"at step 10, leaves a loss of ([\d.]+) instead of ([\d.]+): .* to 10: ([\d.]+), which",
        printed,
    )
    runs = [(1e6, np.inf), (1.0, np.inf), (1e6, 10.0)]
    expected = [final(functools.partial(spiked, *run)).mean() for run in runs]
    assert told == pytest.approx(expected, abs=6e-5)


def test_noise(smoke, final, data, best):
    _, printed, _ = smoke

    def falling():
        step, at = adadelta(), iter(range(100))
        return lambda g: (1 + np.cos(np.pi * next(at) / 100)) / 2 * step(g)

    told = numbers(r"e\. .* average, and (\S+) at the end\. .* to 0: (\S+), which", printed)
    expected = [final(make).mean() - loss(best, *data) for make in (adadelta, falling)]
    assert told == pytest.approx(expected, rel=0.06)


def test_sparse_gradients(smoke):
    results = smoke[2]["results"]["breakers"]["sparse"]
    lines = results["lines"]
    for name, rho, gap in (("every step", 0.9, 1), ("1 in 100, rho 0.999", 0.999, 100)):
        w, step, path = 0.0, adadelta(rho), []
        for _ in range(1000):
            path.append(w)
            w = w + step(w - 100)
            for _ in range(gap - 1):
                step(0.0)
        assert lines[name] == pytest.approx(path[::10], rel=1e-3, abs=1e-6)
    # Every step is a first step.
    first = np.sqrt(1e-5 / 0.1) * np.array(results["x"])
    assert lines["1 in 100"] == pytest.approx(first, rel=1e-3, abs=1e-6)


def test_methods(smoke, final, data, best):
    _, printed, results = smoke

    def adagrad(rate):
        total = 0.0

        def step(g):
            nonlocal total
            total = total + g**2
            return -rate * g / np.sqrt(total + 1e-7)

        return step

    def rated(rate):
        step = adadelta()
        return lambda g: rate * step(g)

    found = results["results"]["methods"]
    for name, make, value in (
        ("Adagrad", adagrad, 0.1),
        ("Adadelta", rated, 10**0.5),
        ("Adadelta's eps", lambda eps: adadelta(eps=eps), 1e-4),
    ):
        place = int(np.argmin(abs(np.log(np.array(found[name]["x"]) / value))))
        expected = final(functools.partial(make, value))
        assert found[name]["final"][place] == pytest.approx(expected, rel=2e-5)
    assert set(found) == {"Adagrad", "RMSProp", "Adam", "Adadelta", "Adadelta's eps"}
    bound = 1.05 * loss(best, *data)
    for name, part in found.items():
        good = [x for x, y in zip(part["x"], part["final"], strict=True) if np.mean(y) <= bound]
        lowest = min(np.mean(y) for y in part["final"])
        told = f" {name} {min(good):.2g} to {max(good):.2g}" if good else f" {name} none"
        assert f"{told} (best {lowest:.4f})" in printed


def test_pictures_and_drawing_again(smoke, tmp_path):
    output, printed, results = smoke
    assert {path.name for path in output.iterdir()} == {*PICTURES, "airfoil-smoke.json"}
    before = {name: (output / name).read_bytes() for name in PICTURES}
    for name in PICTURES:
        scripts.check_picture(output / name, largest=150_000)
        (output / name).unlink()
    # Where there is no data.
    nowhere = ("--data-dir", tmp_path)
    again = scripts.run("airfoil", "--smoke", "--draw-only", "--output", output, *nowhere)
    assert again == printed
    assert {name: (output / name).read_bytes() for name in PICTURES} == before
    assert results["command"] == "python examples/airfoil.py --smoke"


def test_a_wrong_or_missing_file_is_refused(files, tmp_path):
    def refusal(*arguments, data=None):
        return scripts.refusal(
            "airfoil", "--smoke", "--output", tmp_path / "new", *arguments, data=data
        )

    other = scripts.Data(tmp_path / "other", {FILE: b"1\t2\t3\t4\t5\t6\r\n"})
    other.sha256 = files.sha256
    with other.served() as url:
        wrong = refusal("--data-url", url, data=other)
        missing = refusal("--data-url", f"{url}/elsewhere", data=other)
    assert f"Could not download {FILE}:" in wrong
    assert files.sha256[FILE] in wrong
    assert f"Could not download {FILE}:" in missing
    assert "404" in missing
    assert f"{FILE} is not the file it should be" in refusal("--data-dir", other.folder)
    assert f"There is no {FILE} in --data-dir" in refusal("--data-dir", tmp_path)
    assert "run without --draw-only first" in refusal("--draw-only")
    assert not [*(tmp_path / "new").iterdir()]
