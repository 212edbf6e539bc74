"""The numbers of the reproductions are those of NumPy: airfoil noise, and the paper's MNIST."""

from types import SimpleNamespace

import jax
import numpy as np
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


def test_the_book_s_experiment_and_rho():
    (content,) = made_up_airfoil().values()
    table = np.array([line.split() for line in content.decode().splitlines()], np.float64)
    standard = (table - table.mean(axis=0)) / table.std(axis=0)
    x, y = np.column_stack([standard[:, :-1], np.ones(len(table))]), standard[:, -1]

    def loss(w):
        return np.mean((x @ w - y) ** 2) / 2

    def final(rho, eps, steps=None):
        """Returns the last loss of both seeds."""
        losses = []
        for seed in range(2):
            w, e_g, e_x = SHARED.start(seed, 6).astype(np.float64), 0.0, 0.0
            for batch in SHARED.batches(seed, len(y), 10, 2 * (len(y) // 10))[:steps]:
                g = x[batch].T @ (x[batch] @ w - y[batch]) / len(batch)
                dx, e_g, e_x = one_step(g, e_g, e_x, rho, eps)
                w = w + dx
            losses.append(loss(w))
        return np.array(losses)

    found = AIRFOIL.make("experiment", SHARED.prepare(table), GIVEN)
    assert found["least squares"] == pytest.approx(loss(np.linalg.lstsq(x, y)[0]), rel=1e-5)
    for eps, ends in zip([1e-5, 1e-6], found["final"], strict=True):
        np.testing.assert_allclose(ends, final(0.9, eps), rtol=1e-4)
    found = AIRFOIL.make("rho", SHARED.prepare(table), GIVEN)
    for rho, losses, ends in zip(found["rho"], found["losses"], found["final"], strict=True):
        np.testing.assert_allclose(ends, final(rho, 1e-5), rtol=1e-3)
        assert losses[20 // 5] == pytest.approx(final(rho, 1e-5, steps=20).mean(), rel=1e-3)


def forward(layers, x):
    """Returns the inputs of each layer and the scores, in float64."""
    signals, inputs = [], np.float64(x)
    for layer in layers:
        signals.append(inputs)
        scores = inputs @ layer["w"] + layer["b"]
        inputs = np.maximum(scores, 0)
    return signals, scores


def trained_by_hand(params, x, y, batches):
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
                dx, *averages[k] = one_step(g, *averages[k], rho=0.9, eps=1e-4)
                layer[k] = layer[k] + dx
    return layers


def test_a_network_is_trained_as_by_hand():
    rng = np.random.default_rng(0)
    shown = [rng.random((IMAGES, 784)).astype(np.float32) for _ in range(2)]
    images = tuple((x, rng.integers(0, 10, IMAGES).astype(np.int32)) for x in shown)
    column = MNIST.Column(adadelta, {"rho": [0.9, 0.9], "eps": [1e-4, 1e-4]})
    errors = MNIST.train({"it": column}, images, seeds=2, epochs=2, name="it")["it"]
    (x, y), (test_x, test_y) = images
    task = MNIST.task_of(images)
    for seed in range(2):
        batches = np.concatenate([MNIST.orders(2, epoch, task)[seed] for epoch in range(2)])
        start = task.model.init(jax.random.key(seed))
        for epoch, steps in enumerate((3, 6)):
            layers = trained_by_hand(start, x, y, batches[:steps])
            wrong = np.mean(forward(layers, test_x)[1].argmax(axis=1) != test_y)
            # Both cells have the same setting; rounding may decide on two images.
            expected = 100 * wrong
            np.testing.assert_allclose(errors[:, seed, epoch], expected, atol=200 / IMAGES + 1e-3)


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
    column = {
        "settings": {"learning_rate": 10.0 ** np.array(settings)},
        "errors": [[mean] for mean in means],
    }
    found = np.log10(TABLES.plateau(column))
    assert found == pytest.approx(ends, abs=0.01)


def test_ranks_correlate_as_spearman_says():
    rows = np.array([[5.0, 4.0, 3.0, 2.0], [1.0, 10.0, 100.0, 1000.0], [1.0, 2.0, 4.0, 3.0]])
    # 1 - 6 sum(d^2) / (n (n^2 - 1)), where two neighbours of four have changed places.
    assert FIGURES.rank_correlation(rows) == pytest.approx([-1, 1, 1 - 6 * 2 / 60])


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
