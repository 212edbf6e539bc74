"""The numbers of the reproductions are those of NumPy: airfoil noise, and the paper's MNIST."""

import functools
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from reference import one_step
from scripts import made_up_airfoil, module

from optax_adadelta import adadelta

pytestmark = pytest.mark.scripts

AIRFOIL, SHARED = module("studies.airfoil"), module("studies._airfoil")
MNIST, TABLES = module("studies._mnist"), module("studies.mnist_tables")
FIGURES, RESULTS = module("studies.mnist_figures"), module("studies._lib.results")
GIVEN = SimpleNamespace(seeds=2, epochs=2, smoke=True)
IMAGES = 350


@pytest.fixture(autouse=True, scope="module")
def promotion():
    """A study may promote ranks, as users do."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def table():
    (content,) = made_up_airfoil().values()
    return np.array([line.split() for line in content.decode().splitlines()], np.float64)


@pytest.fixture(scope="module")
def data(table):
    """The features with a column of ones, and the target, standardized in float64."""
    table = (table - table.mean(axis=0)) / table.std(axis=0)
    return np.column_stack([table[:, :-1], np.ones(len(table))]), table[:, -1]


@pytest.fixture(scope="module")
def best(data):
    """The weights of least squares."""
    return np.linalg.lstsq(*data)[0]


@pytest.fixture(scope="module")
def part(table):
    """A function that returns the results of a part, in small."""
    return functools.cache(lambda name: AIRFOIL.make(name, SHARED.prepare(table), GIVEN))


def loss(w, x, y):
    return np.mean((x @ w - y) ** 2) / 2


def by_hand(rho=0.9, eps=1e-5):
    """Returns a function from each gradient to the step of Algorithm 1, in float64."""
    e_g = e_x = 0.0

    def step(g):
        nonlocal e_g, e_x
        dx, e_g, e_x = one_step(g, e_g, e_x, rho, eps)
        return dx

    return step


@pytest.fixture(scope="module")
def final(data):
    """A function that trains in NumPy and returns the last loss of both seeds."""
    x, y = data

    def train(make, scale=1.0, steps=None):
        losses = []
        for seed in range(2):
            w, step = scale * SHARED.start(seed, 6).astype(np.float64), make()
            for batch in SHARED.batches(seed, len(y), 10, 2 * (len(y) // 10))[:steps]:
                w = w + step(x[batch].T @ (x[batch] @ w - scale * y[batch]) / len(batch))
            losses.append(loss(w, x, scale * y))
        return np.array(losses)

    return train


def test_the_features_and_the_target_are_standardized(table, data):
    for prepared, expected in zip(SHARED.prepare(table), data, strict=True):
        assert prepared.dtype == np.float32
        np.testing.assert_allclose(prepared, expected, atol=1e-6)
    # As in the book, 1503 rows are standardized and 1500 of them kept.
    longer = np.tile(table, (3, 1))[:1503]
    x, y = SHARED.prepare(longer)
    assert (x.shape, y.shape) == ((1500, 6), (1500,))
    expected = (longer[:1500, -1] - longer[:, -1].mean()) / longer[:, -1].std()
    np.testing.assert_allclose(y, expected, atol=1e-6)
    starts = np.array([SHARED.start(seed, 6) for seed in range(500)])
    assert (starts[:, -1] == 0).all()
    assert starts[:, :-1].std() == pytest.approx(0.01, rel=0.1)


def test_the_book_s_experiment_and_rho(part, data, best, final):
    found = part("experiment")
    assert found["least squares"] == pytest.approx(loss(best, *data), rel=1e-5)
    for eps, ends in zip([1e-5, 1e-6], found["final"], strict=True):
        np.testing.assert_allclose(ends, final(lambda eps=eps: by_hand(eps=eps)), rtol=1e-4)
    found = part("rho")
    for rho, losses, ends in zip(found["rho"], found["losses"], found["final"], strict=True):
        np.testing.assert_allclose(ends, final(lambda rho=rho: by_hand(rho)), rtol=1e-3)
        early = final(lambda rho=rho: by_hand(rho), steps=20).mean()
        assert losses[20 // 5] == pytest.approx(early, rel=1e-3)


def test_the_other_methods(part, final):
    def adagrad(rate):
        total = 0.0

        def step(g):
            nonlocal total
            total = total + g**2
            return -rate * g / np.sqrt(total + 1e-7)

        return step

    def rated(rate):
        step = by_hand()
        return lambda g: rate * step(g)

    found = part("methods")["methods"]
    assert set(found) == {"Adagrad", "RMSProp", "Adam", "Adadelta", "Adadelta's eps"}
    for name, make, value in (
        ("Adagrad", adagrad, 0.1),
        ("Adadelta", rated, 10**0.5),
        ("Adadelta's eps", lambda eps: by_hand(eps=eps), 1e-4),
    ):
        place = int(np.argmin(abs(np.log(np.array(found[name]["x"]) / value))))
        expected = final(functools.partial(make, value))
        assert found[name]["final"][place] == pytest.approx(expected, rel=2e-5)


@pytest.fixture(scope="module")
def at(part):
    """A function that returns what the lines of a problem have at one x."""

    def at(problem, x):
        found = part("breakers")[problem]
        return {name: line[found["x"].index(x)] for name, line in found["lines"].items()}

    return at


def test_parameters_of_another_scale(at, final):
    for scale in (1e4, 1e-3):
        found = at("scale", scale)
        plain = np.median(final(by_hand, scale)) / scale**2
        scaled = np.median(final(lambda scale=scale: by_hand(eps=1e-5 * scale**2), scale))
        assert found["eps 1e-5"] == pytest.approx(plain, rel=0.01)
        assert found["eps 1e-5 scale²"] == pytest.approx(scaled / scale**2, rel=1e-3)
        descent = np.median(final(lambda: lambda g: -g))
        assert found["gradient descent, step 1"] == pytest.approx(descent, rel=0.01)


def falling(steps):
    """Returns a learning rate that falls from 1 to 0 as a cosine."""
    return lambda t: (1 + np.cos(np.pi * t / steps)) / 2


def test_curvature_above_2(at, data, best):
    x, y = data
    largest = np.linalg.eigvalsh(x.T @ x / len(y)).max()

    def excess(curvature, rate):
        wide = np.sqrt(curvature / largest) * x
        w, step, found = np.zeros(6), by_hand(), []
        for t in range(200):
            w = w + rate(t) * step(wide.T @ (wide @ w - y) / len(y))
            found.append(loss(w, wide, y) - loss(best, x, y))
        return max(found[-20:])

    for curvature, name, rate in (
        (10.0, "learning rate 1", lambda t: 1),
        (100.0, "learning rate 0.1", lambda t: 0.1),
        (100.0, "falling from 1 to 0", falling(200)),
    ):
        expected = excess(curvature, rate)
        assert at("curvature", curvature)[name] == pytest.approx(expected, rel=0.3)


def test_rare_gradients_and_gradients_that_are_mostly_zero(at, part):
    for rho in (0.9, 0.9999):
        w, step, path = 0.0, by_hand(rho), []
        for t in range(2000):
            path.append(w)
            w = w + step(w - (100.0 if t % 100 == 50 else 0.0))
        assert at("rare", 100)[f"rho {rho}"] == pytest.approx(np.mean(path[-400:]), abs=6e-3)
    found = part("breakers")["sparse"]
    for name, rho, gap in (("every step", 0.9, 1), ("1 in 100, rho 0.999", 0.999, 100)):
        w, step, path = 0.0, by_hand(rho), []
        for _ in range(1000):
            path.append(w)
            w = w + step(w - 100)
            for _ in range(gap - 1):
                step(0.0)
        assert found["lines"][name] == pytest.approx(path[::10], rel=1e-3, abs=1e-6)
    # Every step is a first step.
    first = np.sqrt(1e-5 / 0.1) * np.array(found["x"])
    assert found["lines"]["1 in 100"] == pytest.approx(first, rel=1e-3, abs=1e-6)


def test_a_spike_and_noise(at, final, data, best):
    steps = 2 * (len(data[1]) // 10)

    def spiked(size, clip):
        step, count = by_hand(), iter(range(steps))

        def spiked_step(g):
            g = size * g if next(count) == steps // 10 else g
            return step(g * min(1.0, clip / np.linalg.norm(g)))

        return spiked_step

    for size, name, clip in ((1e6, "as it is", np.inf), (1e6, "norm clipped to 10", 10.0)):
        expected = final(functools.partial(spiked, size, clip)).mean()
        assert at("spike", size)[name] == pytest.approx(expected, abs=6e-5)

    def annealed():
        step, count = by_hand(), iter(range(steps))
        return lambda g: falling(steps)(next(count)) * step(g)

    for name, make in (("learning rate 1", by_hand), ("falling from 1 to 0", annealed)):
        expected = final(make).mean() - loss(best, *data)
        assert at("noise", 2)[name] == pytest.approx(expected, rel=0.06)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    shown = [rng.random((IMAGES, 784)).astype(np.float32) for _ in range(2)]
    return tuple((x, rng.integers(0, 10, IMAGES).astype(np.int32)) for x in shown)


def forward(layers, x):
    """Returns the inputs of each layer and the scores, in float64."""
    signals, inputs = [], np.float64(x)
    for layer in layers:
        signals.append(inputs)
        scores = inputs @ layer["w"] + layer["b"]
        inputs = np.maximum(scores, 0)
    return signals, scores


def trained_by_hand(params, x, y, batches, update):
    """Returns the layers in float64 after a step on each minibatch, with back-propagation."""
    layers = [{k: np.array(v, np.float64) for k, v in params[n].items()} for n in sorted(params)]
    state = [{k: (0 * v, 0 * v) for k, v in layer.items()} for layer in layers]
    for batch in batches:
        signals, scores = forward(layers, x[batch])
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        delta = (p / p.sum(axis=1, keepdims=True) - np.eye(10)[y[batch]]) / len(batch)
        for layer, averages, signal in zip(layers[::-1], state[::-1], signals[::-1], strict=True):
            grads = {"w": signal.T @ delta, "b": delta.sum(axis=0)}
            delta = delta @ layer["w"].T * (signal > 0)
            for k, g in grads.items():
                change, averages[k] = update(g, *averages[k])
                layer[k] = layer[k] + change
    return layers


def adadelta_by_hand(g, e_g, e_x):
    dx, *averages = one_step(g, e_g, e_x, rho=0.9, eps=1e-4)
    return dx, averages


@pytest.mark.parametrize(
    ("optimizer", "settings", "update"),
    [
        (optax.sgd, {"learning_rate": [0.1]}, lambda g, *state: (-0.1 * g, state)),
        (adadelta, {"rho": [0.9], "eps": [1e-4]}, adadelta_by_hand),
    ],
    ids=["sgd", "adadelta"],
)
def test_a_network_is_trained_as_by_hand(images, optimizer, settings, update):
    column = MNIST.Column(optimizer, {k: [*v, *v] for k, v in settings.items()})
    errors = MNIST.train({"it": column}, images, seeds=2, epochs=2, name="it")["it"]
    (x, y), (test_x, test_y) = images
    task = MNIST.task_of(images)
    for seed in range(2):
        batches = np.concatenate([MNIST.orders(2, epoch, task)[seed] for epoch in range(2)])
        start = task.model.init(jax.random.key(seed))
        for epoch, steps in enumerate((3, 6)):
            layers = trained_by_hand(start, x, y, batches[:steps], update)
            wrong = np.mean(forward(layers, test_x)[1].argmax(axis=1) != test_y)
            # Both cells have the same setting; rounding may decide on two images.
            expected = 100 * wrong
            np.testing.assert_allclose(errors[:, seed, epoch], expected, atol=200 / IMAGES + 1e-3)


def column(settings, means):
    return {"settings": {"learning_rate": settings}, "errors": [[mean] for mean in means]}


@pytest.mark.parametrize(
    ("settings", "means", "ends"),
    [
        # log(error) falls and rises by log(2) a decade, so that 2.5 is log2(1.25) decades away.
        ([2, 1, 0, -1, -2], [8.0, 4.0, 2.0, 4.0, 8.0], (-np.log2(1.25), np.log2(1.25))),
        ([0, -1, -2, -3], [2.0, 2.0, 2.0, 2.0], (-3, 0)),  # All of it is good.
        ([0, -1, -2, -3], [9.0, 2.0, 2.4, 9.0], (-2.03, -0.85)),  # Beyond the two inner ones.
        ([0, -1, -2, -3], [1.9, 90.0, 2.0, 90.0], (-0.06, 0)),  # Nothing beyond a bad setting.
    ],
)
def test_a_plateau_ends_where_the_error_is_half_a_point_above_the_best(settings, means, ends):
    found = np.log10(TABLES.plateau(column(10.0 ** np.array(settings), means)))
    assert found == pytest.approx(ends, abs=0.01)


def test_a_plateau_that_the_settings_cut_off_is_at_least_so_wide():
    # From 2 to 9 in four decades, the logarithm evenly: 2.5 is reached after 0.59.
    beyond = 4 * np.log(1.25) / np.log(4.5)
    for means, words in (
        ([9.0, 2.0, 2.0, 9.0], f"{4 + 2 * beyond:.1f} decades"),
        ([2.0, 2.0, 9.0, 9.0], f"at least {4 + beyond:.1f} decades"),
        ([9.0, 9.0, 2.0, 2.0], f"at least {4 + beyond:.1f} decades"),
    ):
        assert TABLES.width(column([1e0, 1e-4, 1e-8, 1e-12], means)) == words


def test_the_claims_are_measured_in_each_layer():
    rows = np.array([[5.0, 4.0, 3.0, 2.0], [1.0, 10.0, 100.0, 1000.0], [1.0, 2.0, 4.0, 3.0]])
    # 1 - 6 sum(d^2) / (n (n^2 - 1)), where two neighbours of four have changed places.
    assert FIGURES.rank_correlation(rows) == pytest.approx([-1, 1, 1 - 6 * 2 / 60])
    fall = np.geomspace(1, 1e-3, 40)
    bump = 1e-3 * (1 + (np.arange(40) == 20))
    layers = {
        f"layer {number}": {
            "rate": [[rate, *np.ones(39)]],
            "update": [fall.tolist()],
            "numerator": [np.asarray(numerator).tolist()],
            "cosine": [[cosine] * 40],
        }
        for number, rate, numerator, cosine in (
            (1, 0.9, fall, 0.0),
            (2, 0.8, bump, -0.9),
            (3, 0.2, fall, 0.5),
        )
    }
    shown = FIGURES.table_2({"epochs": 40, "whole": layers})
    cells = [[cell.strip() for cell in line.split("|")[2:5]] for line in shown.splitlines()[2:]]
    assert cells == [
        ["0.90", "0.80", "0.20"],
        ["1.00000"] * 3,
        [f"{fall[:4].mean() / fall[-4:].mean():.0f}"] * 3,
        ["-1.00"] * 3,
        ["1.00", "2.00", "1.00"],
        ["1.000"] * 3,
        ["0.00", "-0.90", "0.50"],
        ["0.00", "-0.90", "0.50"],
    ]


def test_the_paper_is_reproduced():
    reports = RESULTS.load_all("mnist_*")
    report = reports["mnist_tables"]
    spreads = []
    for name, found in report["Table 2"]["columns"].items():
        for eps, paper in zip((1e-4, 1e-6, 1e-8), TABLES.PAPER["Table 2"][name][2:5], strict=True):
            errors = found["errors"][TABLES.EPSILONS.index(eps)]
            assert np.mean(errors) == pytest.approx(paper, abs=0.2)
            spreads.append(np.std(errors, ddof=1))
    assert [min(spreads), max(spreads)] == pytest.approx([0.09, 0.25], abs=0.0051)
    networks = report["Networks"]["columns"]
    found = {name: np.mean(column["errors"]) for name, column in networks.items()}
    assert found["tanh, Glorot uniform"] == pytest.approx(2.14, abs=0.0051)
    for name, error in found.items():
        assert abs(error - found[f"{name.partition(',')[0]}, Glorot uniform"]) < 0.41
    methods, _ = TABLES.halves(report)
    for found in methods.values():
        low, high = TABLES.plateau(found)
        assert 0.8 < np.log10(high / low) < 1.3
    for name in ("Momentum", "Adagrad"):
        paper = [error or np.inf for error in TABLES.PAPER["Table 1"][name]]
        means = np.mean(report["Table 1"]["columns"][name]["errors"], axis=1)
        assert means.argmin() == np.argmin(paper)
    figure = reports["mnist_figures"]["Figure 1"]["errors"]
    ends = {name: np.mean(runs, axis=0)[-1] for name, runs in figure.items()}
    said = {"Momentum": 1.37, "Adadelta": 1.43, "Adagrad": 1.66, "SGD": 1.78}
    assert ends == pytest.approx(said, abs=0.0051)
    airfoil = RESULTS.load_all("airfoil")["airfoil"]
    assert 0.243 <= np.mean(airfoil["experiment"]["final"][0]) <= 0.248
    assert round(max(airfoil["forms"]["apart"])) == 6
