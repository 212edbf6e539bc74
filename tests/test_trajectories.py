"""The picture of paths: the functions, the walks on them, the choice of rates, what is said."""

import itertools
import json
import re
import sys

import jax
import numpy as np
import optax
import pytest
from PIL import Image
from reference import algorithm_1
from scripts import module, run

from optax_adadelta import adadelta

pytestmark = pytest.mark.scripts

NAMES = ("Rosenbrock", "Beale", "Ravine", "Saddle")
METHODS = ("SGD", "Momentum", "Adagrad", "RMSProp", "Adam")
EPSILONS = (1e-6, 1e-5, 1e-4, 1e-3)
MINIMA = {
    "Rosenbrock": [(1, 1)],
    "Beale": [(3, 0.5)],
    "Ravine": [(0, 0)],
    "Saddle": [(0, 1), (0, -1)],
}
# Adadelta's steps are many times its first ones by then, and differ between the coordinates.
STEPS = 40


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


@pytest.fixture(scope="module")
def trajectories():
    return module("trajectories")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """What a short run printed, and its folder."""
    folder = tmp_path_factory.mktemp("smoke") / "new"
    return run("trajectories", "--smoke", "--output", folder), folder


@pytest.fixture(scope="module")
def report(smoke):
    """What a short run saved."""
    return json.loads((smoke[1] / "trajectories-smoke.json").read_text())


def test_the_functions_are_zero_and_flat_at_their_minima_alone(trajectories):
    assert tuple(trajectories.FUNCTIONS) == NAMES
    for name, function in trajectories.FUNCTIONS.items():
        assert [*map(tuple, function.minima)] == MINIMA[name]
        gradient = jax.grad(lambda point, value=function.value: value(point[0], point[1]))
        for minimum in MINIMA[name]:
            assert function.value(*minimum) == 0
            np.testing.assert_array_equal(gradient(np.array(minimum, np.float32)), [0, 0])
        left, right, bottom, top = trajectories.WINDOWS[name]
        x, y = np.meshgrid(np.linspace(left, right, 501), np.linspace(bottom, top, 501))
        heights = function.value(x, y)
        # Beale's is 0.01 high at the end of the valley that its minimum lies in.
        away = np.min([np.hypot(x - a, y - b) for a, b in MINIMA[name]], axis=0) > 0.5
        assert heights.min() >= 0
        assert heights[away].min() > 0.02


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_those_of_the_formulas(trajectories, name):
    value = trajectories.FUNCTIONS[name].value
    gradient = jax.grad(lambda point: value(point[0], point[1]))
    for point in np.random.default_rng(0).uniform(-2, 2, (20, 2)):
        assert value(*point) == pytest.approx(height(name, *point), rel=1e-12)
        np.testing.assert_allclose(gradient(point), slope(name, point), rtol=1e-6, atol=1e-6)


def test_the_saddle_is_between_the_minima_and_the_start_beside_its_ridge(trajectories):
    function = trajectories.FUNCTIONS["Saddle"]
    curvature = jax.hessian(lambda point: function.value(point[0], point[1]))(np.zeros(2, "f"))
    np.testing.assert_array_equal(curvature, [[1, 0], [0, -1]])
    np.testing.assert_array_equal(slope("Saddle", np.zeros(2)), [0, 0])
    assert 0 < function.start[1] < 0.05


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NAMES)
def test_adadelta_walks_as_algorithm_1(trajectories, name):
    points = [np.array(trajectories.FUNCTIONS[name].start, float)]
    slopes = []
    for _ in range(STEPS):
        slopes.append(slope(name, points[-1]))
        *_, step = algorithm_1(slopes, rho=0.95, eps=1e-5)
        points.append(points[-1] + step.dx)
    optimizer = adadelta(1.0, 0.95, 1e-5)
    walked, states = trajectories.walk(optimizer, trajectories.FUNCTIONS[name], STEPS)
    np.testing.assert_allclose(walked, points, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(states.e_g[-1], step.e_g, rtol=1e-6)
    assert abs(walked[1] - walked[0]).max() == pytest.approx((1e-5 / 0.05) ** 0.5, rel=0.01)


def test_sgd_walks_the_ravine_as_a_power(trajectories):
    rates = np.array([1e-3, 1e-2, 0.0199])
    points, last, highest = trajectories.walks(
        optax.sgd, [*rates, 0.03], trajectories.FUNCTIONS["Ravine"], 300
    )
    powers = np.arange(301)[:, None]
    for rate, walked in zip(rates, points, strict=False):
        expected = np.array([-2, 0.5]) * (1 - rate * np.array([1, 100])) ** powers
        np.testing.assert_allclose(walked, expected, rtol=2e-4, atol=1e-7)
    expected = (2**2 * (1 - rates) ** 600 + 100 * 0.5**2 * (1 - 100 * rates) ** 600) / 2
    np.testing.assert_allclose(last[:3], expected, rtol=1e-3)
    # Beyond 2 / 100 the walk diverges: by 2 a step, which float32 cannot hold for 300.
    assert last[3] == highest[3] == np.inf
    assert trajectories.plain(last)[3] is None


def test_walks_tell_the_last_value_from_the_highest_of_the_last_30(trajectories):
    bowl = module("_walks").Function(lambda x, y: (x**2 + y**2) / 2, (2.0, 0.0), [(0.0, 0.0)])

    def jump_at(step, rate):
        return optax.sgd(lambda count: (count == step - 1) * rate)

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


def test_the_rate_is_the_one_whose_last_steps_are_the_lowest(trajectories, monkeypatch):
    rng = np.random.default_rng(0)
    ends = {}

    def walks(make, settings, function, steps):
        points = rng.normal(size=(len(settings), steps + 1, 2))
        last, highest = rng.uniform(0.1, 9, (2, len(settings)))
        highest[0] = np.inf
        ends.setdefault(function.start, []).append((points, last, highest))
        return points, last, highest

    monkeypatch.setattr(trajectories, "walks", walks)
    results = trajectories.measure(30)
    for name, of_methods in zip(NAMES, ends.values(), strict=True):
        for method, (points, last, highest) in zip(METHODS, of_methods, strict=False):
            walked = results["walks"][name][method]
            assert walked["setting"] == highest.argmin() != last.argmin()
            np.testing.assert_allclose(
                np.array([walked["x"], walked["y"]]).T, points[highest.argmin()], atol=6e-7
            )
            np.testing.assert_allclose(results["last"][name][method], last, rtol=6e-5)
        points, *_ = of_methods[-1]
        assert len(points) == len(EPSILONS)
        assert results["walks"][name]["Adadelta"]["setting"] == EPSILONS.index(1e-5)
    products = [
        np.prod([of_methods[method][2] for of_methods in ends.values()], axis=0)
        for method in range(len(METHODS))
    ]
    shared = [results["shared"][method] for method in METHODS]
    assert shared == [product.argmin() for product in products]


def test_the_geometric_mean_stops_at_what_counts_as_found(trajectories):
    methods = (*METHODS, "Adadelta")
    values = {name: {method: [1.0, 1e-12, None] for method in methods} for name in NAMES}
    values["Beale"]["Adam"] = [1e-4, 1e-4, 1.0]
    means = trajectories.together(values)
    np.testing.assert_allclose(means["SGD"], [1, 1e-8, np.inf])
    np.testing.assert_allclose(means["Adam"], [0.1, 1e-7, np.inf])


def test_on_beale_it_jumps_when_its_rates_have_outgrown_the_curvature(trajectories):
    function = trajectories.FUNCTIONS["Beale"]
    points, states = trajectories.walk(adadelta(1.0, 0.95, 1e-5), function, 300)
    rates = np.asarray(trajectories.effective_learning_rate(states, 1e-5))
    heights = height("Beale", *np.asarray(points, float).T)
    lowest = int(heights.argmin())
    assert heights[-1] > 1000 * heights[lowest]
    curvature = jax.hessian(lambda point: function.value(point[0], point[1]))

    def sharpness(step):
        root = np.sqrt(rates[step])
        return np.linalg.eigvalsh(root[:, None] * np.asarray(curvature(points[step])) * root)[-1]

    assert sharpness(lowest // 2) < 1 < 2 < sharpness(lowest)


def test_a_short_run_writes_all_three_files_and_says_where(smoke):
    printed, folder = smoke
    files = {f"trajectories-smoke.{kind}": folder for kind in ("json", "png", "gif")}
    assert {path.name for path in folder.iterdir()} == set(files)
    picture, animation = (folder / f"trajectories-smoke.{kind}" for kind in ("png", "gif"))
    assert printed.endswith(f"Picture: {picture}\nAnimation: {animation}\n")


def test_the_picture_and_the_animation_are_pictures(smoke):
    picture, animation = (smoke[1] / f"trajectories-smoke.{kind}" for kind in ("png", "gif"))
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert 1000 <= image.width <= 1400
        assert 800 <= image.height <= 1200
        assert len(image.convert("RGB").getcolors(1_000_000)) > 100
    assert 50_000 < picture.stat().st_size < 250_000
    with Image.open(animation) as image:
        assert image.format == "GIF"
        assert image.n_frames == 5
        assert min(image.size) >= 500
        frames = []
        for moment in range(image.n_frames):
            image.seek(moment)
            frames.append(np.asarray(image.convert("RGB"), int))
        # It stands still at the end, and starts again.
        assert image.info["duration"] > 1000
        assert image.info["loop"] == 0
    changed = [(abs(a - b).max(axis=-1) > 50).sum() for a, b in itertools.pairwise(frames)]
    # In the saddle's panel Adadelta has gone up by a third of it.
    rows, columns = np.array(frames[-1].shape[:2])
    panel = frames[-1][rows // 2 : rows * 9 // 10, columns // 2 :]
    reached, _ = np.nonzero(abs(panel - [0xD5, 0x5E, 0x00]).max(axis=-1) < 40)
    assert 40 < np.ptp(reached) < 150
    # The paths grow; the ground, most of each frame, stays.
    assert min(changed) > 100
    assert max(changed) < 0.1 * frames[0].shape[0] * frames[0].shape[1]


def test_the_numbers_say_what_made_them_and_belong_together(report, smoke):
    assert report["command"] == "python examples/trajectories.py --smoke"
    results = report["results"]
    assert results["steps"] == STEPS
    assert len(results["rates"]) == 51
    assert (results["rates"][0], results["rates"][-1]) == (1e-4, 10)
    for name in NAMES:
        for method in (*METHODS, "Adadelta"):
            walked = results["walks"][name][method]
            x, y = np.array(walked["x"]), np.array(walked["y"])
            assert len(x) == len(y) == STEPS + 1
            value = results["last"][name][method][walked["setting"]]
            # The points have six decimals.
            assert height(name, x[-1], y[-1]) == pytest.approx(value, rel=2e-3, abs=1e-8)
    assert (smoke[1] / "trajectories-smoke.json").stat().st_size < 300_000


def test_the_saved_learning_rates_are_those_of_algorithm_1(report):
    walked = report["results"]["walks"]["Ravine"]["Adadelta"]
    points = np.array([walked["x"], walked["y"]]).T
    own = report["results"]["own_rates"]
    rates = np.array([own["x"], own["y"]]).T
    np.testing.assert_array_equal(rates[0], [1, 1])
    for rate, step in zip(rates[1:], algorithm_1(points[:-1] * [1, 100], eps=1e-5), strict=True):
        expected = np.sqrt(step.e_x + 1e-5) / np.sqrt(step.e_g + 1e-5)
        np.testing.assert_allclose(rate, expected, rtol=1e-3)
    assert (rates[1:, 0] > 10 * rates[1:, 1]).all()


def told(value):
    """A value as the tables have it."""
    return f"{value:.1e}" if value > 1e-8 else "<= 1e-08"


def test_the_tables_agree_with_the_numbers(smoke, report):
    printed, results = smoke[0].replace("<= ", "<="), report["results"]
    last = {name: results["last"][name] for name in NAMES}
    first, second = re.split(r"^The same .*\n", printed, flags=re.MULTILINE)
    assert first.startswith(f"Value after {STEPS} steps")
    rows = {line.split()[0]: line.split()[1:] for line in first.splitlines()[2:]}
    assert tuple(rows) == (*METHODS, "Adadelta")
    for method, cells in rows.items():
        for name, value, rate in zip(NAMES, cells[::2], cells[1::2], strict=True):
            at = results["walks"][name][method]["setting"]
            assert value == told(last[name][method][at]).replace(" ", "")
            assert rate == ("(none)" if method == "Adadelta" else f"({results['rates'][at]:.2g})")

    def mean(method, at):
        values = [last[name][method][at] for name in NAMES]
        return np.inf if None in values else np.prod(np.maximum(values, 1e-8)) ** 0.25

    def cells(method, at):
        values = [*(last[name][method][at] for name in NAMES), mean(method, at)]
        return [told(value).replace(" ", "") for value in values]

    expected = {}
    for method in METHODS:
        at = results["shared"][method]
        expected[f"{method}, {results['rates'][at]:.2g}"] = cells(method, at)
    for at, eps in enumerate(EPSILONS):
        expected[f"Adadelta, eps {eps:.0e}"] = cells("Adadelta", at)
    table = [re.split(r"\s{2,}", line.strip()) for line in second.splitlines()[1:10]]
    assert {label: values for label, *values in table} == expected

    own = mean("Adadelta", EPSILONS.index(1e-5))
    better = {method: sum(mean(method, at) < own for at in range(51)) for method in METHODS}
    counted = re.findall(r"(\d+) of (\w+)", second)
    assert {method: int(count) for count, method in counted} == better
    assert 0 < sum(better.values()) < 5 * 51
    (found,) = re.findall(r"after 30 steps: (\S+) along it, (\S+) across it\.", second)
    assert found == tuple(f"{results['own_rates'][key][30]:.2g}" for key in "xy")


def test_draw_only_draws_the_same_from_the_file_and_walks_nothing(smoke, report, tmp_path):
    printed, folder = smoke
    saved = (folder / "trajectories-smoke.json").read_text()
    (tmp_path / "trajectories-smoke.json").write_text(saved)
    again = run("trajectories", "--smoke", "--draw-only", "--output", tmp_path)
    assert again == printed.replace(str(folder), str(tmp_path))
    for kind in ("json", "png", "gif"):
        name = f"trajectories-smoke.{kind}"
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def main(trajectories, monkeypatch, *arguments):
    """Runs the script's main in this process."""
    monkeypatch.setattr(sys, "argv", ["trajectories.py", *map(str, arguments)])
    trajectories.main()


def test_draw_only_believes_the_file(trajectories, monkeypatch, report, tmp_path, capsys):
    report = json.loads(json.dumps(report))
    report["results"]["last"]["Beale"]["Adadelta"][EPSILONS.index(1e-5)] = 123.0
    report["results"]["last"]["Beale"]["Adadelta"][EPSILONS.index(1e-3)] = None
    (tmp_path / "trajectories-smoke.json").write_text(json.dumps(report))
    for drawing in ("draw", "animate"):
        monkeypatch.setattr(trajectories, drawing, lambda *_: None)
    main(trajectories, monkeypatch, "--smoke", "--draw-only", "--output", tmp_path)
    printed = capsys.readouterr().out
    assert printed.count("1.2e+02") == printed.count("diverges") == 2


def test_draw_only_without_a_file_says_so(trajectories, monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match=r"no .*trajectories\.json to draw from"):
        main(trajectories, monkeypatch, "--draw-only", "--output", tmp_path)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("steps", ["0", "29", "1001"])
def test_steps_out_of_range(trajectories, monkeypatch, capsys, tmp_path, steps):
    with pytest.raises(SystemExit) as refused:
        main(trajectories, monkeypatch, "--smoke", "--steps", steps, "--output", tmp_path)
    assert refused.value.code == 2
    assert "--steps must be at least 30 and at most 1000" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
