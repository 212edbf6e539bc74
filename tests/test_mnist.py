"""The paper's tables and figures, at smoke size on made-up digits."""

import gzip
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import one_step
from scripts import Data, check_picture, module, run

from optax_adadelta import adadelta

pytestmark = pytest.mark.scripts

IMAGES = 350
SEEDS = 2


def idx(array):
    """The array as a compressed file of MNIST's format."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return gzip.compress(header + array.tobytes(), mtime=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images of ten patterns in which most pixels come from any of them."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (10, 28, 28)) * (rng.random((10, 28, 28)) < 0.2)
    files = {}
    for part in ("train", "t10k"):
        labels = rng.integers(0, 10, IMAGES)
        others = patterns[rng.integers(0, 10, (IMAGES, 28, 28)), *np.ogrid[:28, :28]]
        images = np.where(rng.random((IMAGES, 28, 28)) < 0.2, patterns[labels], others)
        files[f"{part}-images-idx3-ubyte.gz"] = idx(images.astype(np.uint8))
        files[f"{part}-labels-idx1-ubyte.gz"] = idx(labels.astype(np.uint8))
    return Data(tmp_path_factory.mktemp("mnist") / "data", files)


@pytest.fixture
def mnist():
    # An experiment may promote ranks, as users do.
    with jax.numpy_rank_promotion("allow"):
        yield module("studies._mnist")


@pytest.fixture(scope="module")
def tables():
    return module("studies.mnist_tables")


@pytest.fixture
def loaded(data):
    found = module("studies._lib.data")
    found.SHA256 = data.sha256
    options = SimpleNamespace(data_dir=data.folder, data_url=None)
    return tuple(tuple(map(jnp.asarray, half)) for half in found.mnist(options))


def forward(layers, x):
    """The inputs of each layer and the scores, in float64."""
    signals, inputs = [], x / 255.0
    for layer in layers:
        signals.append(inputs)
        scores = inputs @ layer["w"] + layer["b"]
        inputs = np.maximum(scores, 0)
    return signals, scores


def by_hand(params, x, y, batches, update):
    """The layers in float64 after a step on each minibatch, with back-propagation by hand."""
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
                layer[k] = layer[k] - change
    return layers


def adadelta_by_hand(g, e_g, e_x):
    dx, *averages = one_step(g, e_g, e_x, rho=0.9, eps=1e-4)
    return -dx, averages


@pytest.mark.parametrize(
    ("optimizer", "settings", "update"),
    [
        (optax.sgd, {"learning_rate": [0.1]}, lambda g, *state: (0.1 * g, state)),
        (adadelta, {"rho": [0.9], "eps": [1e-4]}, adadelta_by_hand),
    ],
    ids=["sgd", "adadelta"],
)
def test_a_network_is_trained_as_by_hand(mnist, loaded, optimizer, settings, update):
    column = mnist.Column(optimizer, {k: [*v, *v] for k, v in settings.items()})
    first, second = mnist.train({"it": column}, loaded, seeds=SEEDS, epochs=2, name="it")
    (x, y), (test_x, test_y) = (tuple(map(np.asarray, half)) for half in loaded)
    for seed in range(SEEDS):
        batches = np.concatenate([mnist.batches(seed, epoch, IMAGES) for epoch in range(2)])
        start = mnist.init(jax.random.key(seed))
        for errors, steps in ((first["it"], 3), (second["it"], 6)):
            layers = by_hand(start, x, y, batches[:steps], update)
            wrong = np.mean(forward(layers, test_x)[1].argmax(axis=1) != test_y)
            # Both cells have the same setting; rounding may decide on two images.
            np.testing.assert_allclose(errors[:, seed], 100 * wrong, atol=200 / IMAGES + 1e-3)


def test_every_image_comes_once_an_epoch_in_an_order_of_its_own(mnist):
    orders = {(s, e): mnist.batches(s, e, 650).ravel() for s in range(3) for e in range(3)}
    for order in orders.values():
        assert order.shape == (600,)
        assert len(set(order)) == 600
    assert len({order.tobytes() for order in orders.values()}) == 9


@pytest.mark.parametrize(
    ("how", "deviations"),
    [
        ("Glorot uniform", [(2 / (a + b)) ** 0.5 for a, b in ((784, 500), (500, 300), (300, 10))]),
        ("N(0, 0.01)", [0.01] * 3),
        ("He normal", [(2 / inputs) ** 0.5 for inputs in (784, 500, 300)]),
    ],
)
def test_first_weights(mnist, how, deviations):
    layers = mnist.init(jax.random.key(0), how)
    for layer, shape, deviation in zip(
        layers.values(), [(784, 500), (500, 300), (300, 10)], deviations, strict=True
    ):
        assert layer["w"].shape == shape
        assert not layer["b"].any()
        assert np.std(layer["w"]) == pytest.approx(deviation, rel=0.05)


def column(settings, means):
    return {"settings": {"learning_rate": settings}, "errors": [[mean] for mean in means]}


def test_a_plateau_ends_where_the_error_is_half_a_point_above_the_best(tables):
    # log(error) falls and rises by log(2) a decade, so that 2.5 is log2(1.25) decades away.
    settings = [1e2, 1e1, 1e0, 1e-1, 1e-2]
    low, high = tables.plateau(column(settings, [8.0, 4.0, 2.0, 4.0, 8.0]))
    assert np.log10([low, high]) == pytest.approx([-np.log2(1.25), np.log2(1.25)], abs=0.003)


@pytest.mark.parametrize(
    ("means", "ends"),
    [
        ([2.0, 2.0, 2.0, 2.0], (-3, 0)),  # All of it is good.
        ([9.0, 2.0, 2.4, 9.0], (-2, -1)),  # A little beyond the two inner ones.
        ([1.9, 90.0, 2.0, 90.0], (0, 0)),  # What lies beyond a bad setting does not count.
    ],
)
def test_plateaus_of_several_settings(tables, means, ends):
    low, high = np.log10(tables.plateau(column([1e0, 1e-1, 1e-2, 1e-3], means)))
    assert low == pytest.approx(ends[0], abs=0.15)
    assert high == pytest.approx(ends[1], abs=0.15)


def test_a_plateau_that_the_settings_cut_off_is_at_least_so_wide(tables):
    settings = [1e0, 1e-4, 1e-8, 1e-12]
    # From 2 to 9 in four decades, the logarithm evenly: 2.5 is reached after 0.59.
    beyond = 4 * np.log(1.25) / np.log(4.5)
    for means, words in (
        ([9.0, 2.0, 2.0, 9.0], f"{4 + 2 * beyond:.1f} decades"),
        ([2.0, 2.0, 9.0, 9.0], f"at least {4 + beyond:.1f} decades"),
        ([9.0, 9.0, 2.0, 2.0], f"at least {4 + beyond:.1f} decades"),
    ):
        assert tables.width(column(settings, means)) == words


def test_the_rank_correlation_is_spearman_s():
    rows = np.array([[5.0, 4.0, 3.0, 2.0], [1.0, 10.0, 100.0, 1000.0], [1.0, 2.0, 4.0, 3.0]])
    found = module("studies.mnist_figures").rank_correlation(rows)
    # 1 - 6 sum(d^2) / (n (n^2 - 1)), where two neighbours of four have changed places.
    assert found == pytest.approx([-1, 1, 1 - 6 * 2 / 60])


def test_the_claims_are_measured_in_each_layer():
    figures = module("studies.mnist_figures")
    falling = np.geomspace(1, 1e-3, 40)
    layers = {}
    for number, (rate, numerator, cosine) in enumerate(
        ((0.9, falling, 0.0), (0.8, 1e-3 * (1 + (np.arange(40) == 20)), -0.9), (0.2, falling, 0.5)),
        1,
    ):
        layers[f"layer {number}"] = {
            "rate": [[rate, *np.ones(39)]],
            "update": [falling.tolist()],
            "numerator": [np.asarray(numerator).tolist()],
            "cosine": [[cosine] * 40],
        }
    table = figures.table_2({"epochs": 40, "whole": layers})
    rows = [[cell.strip() for cell in line.split("|")[2:5]] for line in table.splitlines()[2:]]
    tenths = falling[:4].mean() / falling[-4:].mean()
    assert rows == [
        ["0.90", "0.80", "0.20"],
        ["1.00000"] * 3,
        [f"{tenths:.0f}"] * 3,
        ["-1.00"] * 3,
        ["1.00", "2.00", "1.00"],
        ["1.000"] * 3,
        ["0.00", "-0.90", "0.50"],
        ["0.00", "-0.90", "0.50"],
    ]


@pytest.fixture(scope="module")
def smoke(data, tmp_path_factory):
    """The folder and the results of a smoke run of the tables, with the download."""
    output = tmp_path_factory.mktemp("tables") / "new"
    with data.served() as url:
        arguments = ("--smoke", "--data-url", url, "--output", output)
        run("studies.mnist_tables", *arguments, data=data)
    return output, json.loads((output / "mnist_tables-smoke.json").read_text())


def test_the_tables_downloaded_and_trained(smoke, data, tables):
    output, report = smoke
    assert sorted(data.requests) == sorted(f"/{name}" for name in data.sha256)
    assert set(report) == set(tables.TABLES)
    for table, content in report.items():
        assert set(content["columns"]) == set(tables.TABLES[table])
        for found in content["columns"].values():
            wrong = np.array(found["errors"]) * 3  # Of 300 images.
            np.testing.assert_allclose(wrong, wrong.round(), atol=0.016)
            assert wrong.shape == (len(tables.knob(found)[1]), SEEDS)
    for picture in ("tables", "plateaus"):
        check_picture(output / f"mnist_{picture}-smoke.png")


def test_the_tables_show_mean_and_deviation(smoke, tables):
    _, report = smoke
    shown = tables.tables(report)["mnist table 2"].splitlines()
    for line, eps, row in zip(shown[2:], tables.EPSILONS, range(7), strict=True):
        assert line.startswith(f"| eps 1e{np.log10(eps):.0f} | ")
        for name, column in report["Table 2"]["columns"].items():
            mean = np.mean(column["errors"][row])
            deviation = abs(np.subtract(*column["errors"][row])) / 2**0.5
            assert f"| {mean:.2f} ± {deviation:.2f} |" in line, name


def test_the_same_setting_comes_out_alike_in_every_table(smoke, tables):
    _, report = smoke
    one, two, three = (
        report["Table 2"]["columns"]["rho 0.95"]["errors"][tables.EPSILONS.index(1e-6)],
        report["Not in the paper"]["columns"]["Adadelta"]["errors"][tables.RATES.index(1.0)],
        report["Networks"]["columns"]["ReLU, Glorot uniform"]["errors"][0],
    )
    np.testing.assert_allclose([two, three], [one, one], atol=2 / 3 + 0.011)
    assert max(one) < 84


def test_the_figures(data, smoke, tmp_path):
    arguments = ("--smoke", "--data-dir", data.folder, "--output", tmp_path)
    run("studies.mnist_figures", *arguments, data=data)
    report = json.loads((tmp_path / "mnist_figures-smoke.json").read_text())
    errors = report["Figure 1"]["errors"]
    assert list(errors) == ["SGD", "Momentum", "Adagrad", "Adadelta"]
    assert all(np.shape(runs) == (SEEDS, 3) for runs in errors.values())
    first = np.array(errors["Adadelta"])[:, 0]
    expected = smoke[1]["Networks"]["columns"]["ReLU, Glorot uniform"]["errors"][0]
    np.testing.assert_allclose(first, expected, atol=2 / 3 + 0.011)

    samples, whole = report["Figure 2"]["samples"], report["Figure 2"]["whole"]
    assert samples["count"] == [3, 6, 9]
    for layer in ("layer 1", "layer 2", "layer 3"):
        for values in (samples["rate"][f"{layer}/w"], samples["update"][f"{layer}/w"]):
            assert np.shape(values) == (3, 10)
            assert np.ptp(values) > 0
        assert np.shape(whole[layer]["rate"]) == (SEEDS, 3)
        assert (np.array(whole[layer]["rate"]) <= 1).all()
        assert (np.abs(whole[layer]["cosine"]) <= 1).all()
        # The steps of ten elements are of the size of the whole matrix's.
        few = np.sqrt(np.mean(np.square(samples["update"][f"{layer}/w"])))
        assert 0.2 < few / np.mean(whole[layer]["update"][0]) < 5
    for picture in ("figure_1", "figure_2"):
        check_picture(tmp_path / f"mnist_{picture}-smoke.png")
