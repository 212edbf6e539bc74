"""The picture of paths: the functions, the walks, the choice of learning rates, the output."""

import itertools
import re

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
    """What a short run printed, and its picture."""
    picture = tmp_path_factory.mktemp("smoke") / "new" / "walks.png"
    # Optax's Adam takes a power of an integer, which strict promotion refuses.
    return run("trajectories", "--smoke", "--output", picture, promotion="standard"), picture


@pytest.fixture(scope="module")
def results(trajectories):
    """What a short run measures."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return trajectories.measure(STEPS)


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


def test_the_rate_is_the_one_whose_last_steps_are_the_lowest(trajectories, monkeypatch):
    rng = np.random.default_rng(0)
    ends = {}

    def walks(make, rates, function, steps):
        points = rng.normal(size=(len(rates), steps + 1, 2))
        last, highest = rng.uniform(0.1, 9, (2, len(rates)))
        if len(rates) > 1:
            last[-1], highest[-1] = 1e-12, 10
            highest[0] = last[0] = np.inf
        ends.setdefault(function.start, []).append((points, last, highest))
        return points, last, highest

    monkeypatch.setattr(trajectories, "walks", walks)
    results = trajectories.measure(30)
    rates = np.geomspace(1e-4, 10, 51)
    for name, of_methods in zip(NAMES, ends.values(), strict=True):
        for method, (points, last, highest) in zip(METHODS, of_methods, strict=False):
            best = highest.argmin()
            assert best != last.argmin()
            assert results["rate"][name, method] == pytest.approx(rates[best])
            np.testing.assert_array_equal(results["points"][name, method], points[best])
            np.testing.assert_array_equal(results["last"][name, method], last)
        assert len(of_methods[-1][0]) == 1
    # The geometric mean, in which what is below 1e-8 counts as 1e-8.
    for at, method in enumerate((*METHODS, "Adadelta")):
        lasts = np.maximum([of_methods[at][1] for of_methods in ends.values()], 1e-8)
        np.testing.assert_allclose(results["mean"][method], np.prod(lasts, axis=0) ** 0.25)


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


def test_the_picture_and_the_animation_are_pictures(smoke):
    printed, picture = smoke
    animation = picture.with_suffix(".gif")
    assert {path.name for path in picture.parent.iterdir()} == {"walks.png", "walks.gif"}
    assert printed.endswith(f"Picture: {picture}\nAnimation: {animation}\n")
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


def test_the_learning_rates_in_the_ravine_are_those_of_algorithm_1(results):
    points, rates = results["points"]["Ravine", "Adadelta"], results["own rates"]
    np.testing.assert_array_equal(rates[0], [1, 1])
    for rate, step in zip(rates[1:], algorithm_1(points[:-1] * [1, 100], eps=1e-5), strict=True):
        expected = np.sqrt(step.e_x + 1e-5) / np.sqrt(step.e_g + 1e-5)
        np.testing.assert_allclose(rate, expected, rtol=1e-3)
    assert (rates[1:, 0] > 10 * rates[1:, 1]).all()


def test_the_table_agrees_with_the_numbers(results, trajectories, capsys):
    trajectories.tell(results)
    first, second = capsys.readouterr().out.rsplit("\n", 2)[0:2]
    assert first.startswith(f"Value after {STEPS} steps")
    rows = {line.split()[0]: line.split()[1:] for line in first.splitlines()[2:]}
    assert tuple(rows) == (*METHODS, "Adadelta")
    for method, cells in rows.items():
        for name, value, rate in zip(NAMES, cells[::2], cells[1::2], strict=True):
            end = height(name, *results["points"][name, method][-1])
            assert float(value) == pytest.approx(max(end, 1e-8), rel=0.06)
            best = results["rate"][name, method]
            assert rate == ("(none)" if method == "Adadelta" else f"({best:.2g})")
    (found,) = re.findall(r"step 30: (\S+) along it, (\S+) across\.", second)
    assert found == tuple(f"{rate:.2g}" for rate in results["own rates"][30])
