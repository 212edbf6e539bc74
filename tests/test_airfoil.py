"""The airfoil experiment: its results are right, on a small made-up file from a local server."""

import functools
import json

import numpy as np
import pytest
import scripts
from reference import algorithm_1, one_step

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
    """The file: tabs between the columns, and CRLF line ends."""
    return "".join("\t".join(f"{x:.6g}" for x in row) + "\r\n" for row in table).encode()


@pytest.fixture(scope="module")
def files(tmp_path_factory, content):
    """The file in a folder that can be served."""
    return scripts.Data(tmp_path_factory.mktemp("airfoil") / "files", {FILE: content})


@pytest.fixture(scope="module")
def smoke(files, tmp_path_factory, content):
    """A short run: its folder and what it printed."""
    output = tmp_path_factory.mktemp("smoke") / "new" / "results"
    with files.served() as url:
        arguments = ("--smoke", "--data-url", url, "--output", output)
        printed = scripts.run("studies.airfoil", *arguments, data=files)
    assert (files.cache / "optax_adadelta" / FILE).read_bytes() == content
    return output, printed


@pytest.fixture(scope="module")
def results(smoke):
    """The results of the short run."""
    return json.loads((smoke[0] / "airfoil-smoke.json").read_text())


@pytest.fixture(scope="module")
def airfoil():
    """The helper module."""
    return scripts.module("studies._airfoil")


@pytest.fixture(scope="module")
def data(content):
    """The features with a column of ones, and the target, standardized in float64."""
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
    """Returns a function from each gradient to the step of Algorithm 1, in float64."""
    e_g = e_x = 0.0

    def step(g):
        nonlocal e_g, e_x
        dx, e_g, e_x = one_step(g, e_g, e_x, rho, eps)
        return dx

    return step


@pytest.fixture(scope="module")
def final(airfoil, data):
    """A function that trains in NumPy and returns the last loss of both seeds."""
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
    # As in the book, 1503 rows are standardized and 1500 of them kept.
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


def test_experiment(results, data, best, final):
    part = results["experiment"]
    assert part["least squares"] == pytest.approx(loss(best, *data), rel=1e-5)
    assert (part["seeds"], part["epochs"]) == (2, 2)
    assert part["eps"] == pytest.approx([1e-5, 1e-6])
    for eps, found in zip(part["eps"], part["final"], strict=True):
        expected = final(lambda eps=eps: adadelta(eps=eps))
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_rho(results, final):
    part = results["rho"]
    for rho, losses, found in zip(part["rho"], part["losses"], part["final"], strict=True):
        np.testing.assert_allclose(found, final(lambda rho=rho: adadelta(rho)), rtol=1e-3)
        early = final(lambda rho=rho: adadelta(rho), steps=20).mean()
        assert losses[20 // 5] == pytest.approx(early, rel=1e-3)


def test_without_g(results):
    part = results["forms"]
    # Not zero, because the roundings differ, and no more than a few of them.
    assert 1 <= max(part["apart"]) <= 20
    np.testing.assert_allclose(part["final"]["without g'"], part["final"]["adadelta"], rtol=1e-5)
    g = 10.0 ** np.arange(-16, 19)
    share = part["range"]["share"]
    for name in ("adadelta", "with g'"):
        np.testing.assert_allclose(share[name], 1, rtol=1e-5)
    lost = 1e-30 / (0.1 * g**2) < np.finfo(np.float32).tiny
    assert (np.array(share["without g'"]) < 0.5).tolist() == lost.tolist()
    for cost in part["costs"]["forms"].values():
        # Four numbers of four bytes are read for each parameter, and three written.
        assert cost["bytes accessed"] > 27.9
        assert cost["ms"] > 0
    gradients = np.random.default_rng(1).normal(size=(60, 5)).astype(np.float32)
    expected = [dx for dx, _, _ in algorithm_1(gradients, 0.9, 1e-5)]
    for form in scripts.module("studies._airfoil_forms").FORMS.values():
        method = form(rho=0.9, eps=1e-5)
        state, updates = method.init(gradients[0]), []
        for g in gradients:
            update, state = method.update(g, state)
            updates.append(update)
        np.testing.assert_allclose(updates, expected, rtol=1e-5)


@pytest.fixture(scope="module")
def at(results):
    """A function that returns what the lines of a problem have at one x."""

    def at(problem, x):
        part = results["breakers"][problem]
        return {name: line[part["x"].index(x)] for name, line in part["lines"].items()}

    return at


def test_scale(at, final):
    for scale in (1e4, 1e-3):
        found = at("scale", scale)
        plain = np.median(final(adadelta, scale)) / scale**2
        scaled = np.median(final(lambda scale=scale: adadelta(eps=1e-5 * scale**2), scale))
        assert found["eps 1e-5"] == pytest.approx(plain, rel=0.01)
        assert found["eps 1e-5 scale²"] == pytest.approx(scaled / scale**2, rel=1e-3)
        descent = np.median(final(lambda: lambda g: -g))
        assert found["gradient descent, step 1"] == pytest.approx(descent, rel=0.01)


def test_curvature(at, data, best):
    x, y = data
    largest = np.linalg.eigvalsh(x.T @ x / len(y)).max()

    def excess(curvature, rate):
        wide = np.sqrt(curvature / largest) * x
        w, step, found = np.zeros(6), adadelta(), []
        for t in range(200):
            w = w + rate(t) * step(wide.T @ (wide @ w - y) / len(y))
            found.append(loss(w, wide, y) - loss(best, x, y))
        return max(found[-20:])

    for curvature, name, rate in (
        (10.0, "learning rate 1", lambda t: 1),
        (10.0, "learning rate 0.1", lambda t: 0.1),
        (100.0, "learning rate 0.1", lambda t: 0.1),
        (100.0, "falling from 1 to 0", lambda t: (1 + np.cos(np.pi * t / 200)) / 2),
    ):
        expected = excess(curvature, rate)
        assert at("curvature", curvature)[name] == pytest.approx(expected, rel=0.3)


def test_rare_gradients(at):
    found = at("rare", 100)
    for rho in (0.9, 0.9999):
        w, step, path = 0.0, adadelta(rho), []
        for t in range(2000):
            path.append(w)
            w = w + step(w - (100.0 if t % 100 == 50 else 0.0))
        assert found[f"rho {rho}"] == pytest.approx(np.mean(path[-400:]), abs=6e-3)


def test_spike(at, final):
    def spiked(size, clip):
        step, count = adadelta(), iter(range(1000))

        def spiked_step(g):
            g = size * g if next(count) == 10 else g
            return step(g * min(1.0, clip / np.linalg.norm(g)))

        return spiked_step

    for size, name, clip in (
        (1e6, "as it is", np.inf),
        (1.0, "as it is", np.inf),
        (1e6, "norm clipped to 10", 10.0),
    ):
        expected = final(functools.partial(spiked, size, clip)).mean()
        assert at("spike", size)[name] == pytest.approx(expected, abs=6e-5)


def test_noise(at, final, data, best):
    def falling():
        step, count = adadelta(), iter(range(100))
        return lambda g: (1 + np.cos(np.pi * next(count) / 100)) / 2 * step(g)

    found = at("noise", 2)
    for name, make in (("learning rate 1", adadelta), ("falling from 1 to 0", falling)):
        assert found[name] == pytest.approx(final(make).mean() - loss(best, *data), rel=0.06)


def test_sparse_gradients(results):
    part = results["breakers"]["sparse"]
    for name, rho, gap in (("every step", 0.9, 1), ("1 in 100, rho 0.999", 0.999, 100)):
        w, step, path = 0.0, adadelta(rho), []
        for _ in range(1000):
            path.append(w)
            w = w + step(w - 100)
            for _ in range(gap - 1):
                step(0.0)
        assert part["lines"][name] == pytest.approx(path[::10], rel=1e-3, abs=1e-6)
    # Every step is a first step.
    first = np.sqrt(1e-5 / 0.1) * np.array(part["x"])
    assert part["lines"]["1 in 100"] == pytest.approx(first, rel=1e-3, abs=1e-6)


def test_methods(results, final):
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

    found = results["methods"]["methods"]
    assert set(found) == {"Adagrad", "RMSProp", "Adam", "Adadelta", "Adadelta's eps"}
    for name, make, value in (
        ("Adagrad", adagrad, 0.1),
        ("Adadelta", rated, 10**0.5),
        ("Adadelta's eps", lambda eps: adadelta(eps=eps), 1e-4),
    ):
        place = int(np.argmin(abs(np.log(np.array(found[name]["x"]) / value))))
        expected = final(functools.partial(make, value))
        assert found[name]["final"][place] == pytest.approx(expected, rel=2e-5)


def test_pictures_and_drawing_again(smoke, results, tmp_path):
    output, printed = smoke
    assert {path.name for path in output.iterdir()} == {*PICTURES, "airfoil-smoke.json"}
    before = {name: (output / name).read_bytes() for name in PICTURES}
    for name in PICTURES:
        scripts.check_picture(output / name, largest=150_000)
        (output / name).unlink()
    # Where there is no data.
    nowhere = ("--data-dir", tmp_path)
    arguments = ("--smoke", "--draw-only", "--output", output, *nowhere)
    assert scripts.run("studies.airfoil", *arguments) == printed
    assert {name: (output / name).read_bytes() for name in PICTURES} == before
    for part in results.values():
        assert part["command"] == "python -m studies.airfoil --smoke"


def test_a_wrong_file_is_refused_and_nothing_is_written(files, tmp_path):
    wrong = scripts.Data(tmp_path / "wrong", {FILE: b"1\t2\t3\t4\t5\t6\r\n"})
    wrong.sha256 = files.sha256
    arguments = ("--smoke", "--output", tmp_path / "new")
    with wrong.served() as url:
        refused = scripts.refusal("studies.airfoil", *arguments, "--data-url", url, data=wrong)
    assert f"Could not download {FILE}:" in refused
    assert files.sha256[FILE] in refused
    assert not [*(tmp_path / "new").iterdir()]
