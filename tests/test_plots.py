"""The pictures show the numbers they are given."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from optax_adadelta.diagnostics import Sample, plot_curves, plot_samples

TIMES, COORDINATES = 6, 4
RNG = np.random.default_rng(0)


def samples(dtype=jnp.float32):
    def numbers():
        return {name: jnp.asarray(RNG.random((TIMES, COORDINATES)), dtype) for name in ("a", "b")}

    return Sample(60 * jnp.arange(1, TIMES + 1), numbers(), numbers())


def drawn(axes):
    """The points of each line, [lines, 2, points]."""
    return np.array([line.get_data() for line in axes.get_lines()])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_samples_are_drawn_a_column_a_leaf(dtype, tmp_path):
    given = samples(dtype)
    figure = plot_samples(given)
    panels = np.reshape(figure.axes, (2, 2))
    for row, values in zip(panels, (given.rate, given.update), strict=True):
        for axes, name in zip(row, ("a", "b"), strict=True):
            lines = drawn(axes)
            np.testing.assert_array_equal(lines[:, 0], [given.count] * COORDINATES)
            np.testing.assert_array_equal(lines[:, 1], np.asarray(values[name], float).T)
    assert [axes.get_title() for axes in panels[0]] == ["a", "b"]
    assert [axes.get_xlabel() for axes in panels[1]] == ["steps", "steps"]
    figure.savefig(tmp_path / "samples.png")
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_a_list_of_samples_is_drawn_as_they_stacked():
    given = samples()
    one_by_one = [jax.tree.map(lambda array, t=t: array[t], given) for t in range(TIMES)]
    for axes, stacked in zip(plot_samples(one_by_one).axes, plot_samples(given).axes, strict=True):
        np.testing.assert_array_equal(drawn(axes), drawn(stacked))


def test_of_complex_updates_the_real_part():
    given = samples()
    given = given._replace(update={name: np.asarray(u) + 1j for name, u in given.update.items()})
    *_, last = plot_samples(given).axes
    np.testing.assert_array_equal(drawn(last)[:, 1], np.real(given.update["b"]).T)


def test_a_figure_of_one_s_own():
    figure = Figure(figsize=(3, 3))
    assert plot_samples(samples(), figure) is figure
    axes = figure.axes[0]
    assert plot_curves({"x": [1, 2]}, axes) is axes


def test_samples_that_cannot_be_drawn():
    given = samples()
    with pytest.raises(ValueError, match="no samples"):
        plot_samples([])
    with pytest.raises(ValueError, match=r"its shape is \(\)"):
        plot_samples(jax.tree.map(lambda array: array[0], given))
    with pytest.raises(ValueError, match=r"its shape is \(1, 6\)"):
        plot_samples([given])
    with pytest.raises(ValueError, match="no leaf"):
        plot_samples(given._replace(rate={}, update={}))


def test_curves_count_from_one_and_their_means_are_not_rounded():
    (line,) = drawn(plot_curves({"x": jnp.array([[1.0, 2.0], [1.0078125, 2.0]], jnp.bfloat16)}))
    np.testing.assert_array_equal(line, [[1, 2], [1.00390625, 2]])


def test_parameters_that_are_one_array():
    given = Sample(jnp.arange(2), {"": jnp.ones((2, 3))}, {"": jnp.ones((2, 3))})
    assert plot_samples(given).axes[0].get_title() == "parameters"


def test_curves_are_the_means_of_their_runs_within_the_range():
    runs = RNG.random((3, 5))
    axes = plot_curves({"several": runs, "one": runs[0]}, steps=range(10, 15))
    several, one = drawn(axes)
    np.testing.assert_array_equal(several, [range(10, 15), runs.mean(axis=0)])
    np.testing.assert_array_equal(one, [range(10, 15), runs[0]])
    (band,) = axes.collections
    corners = {tuple(point) for point in band.get_paths()[0].vertices}
    for edge in (runs.min(axis=0), runs.max(axis=0)):
        assert set(zip(range(10, 15), edge, strict=True)) <= corners
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["several", "one"]


def test_more_curves_than_styles_are_told_apart_as_far_as_it_goes():
    axes = plot_curves({str(n): [n, n] for n in range(8)})
    looks = [(line.get_color(), line.get_linestyle()) for line in axes.get_lines()]
    assert len(set(looks[:6])) == 6
    assert looks[6:] == looks[:2]


def test_curves_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"'x' must .*\[times\].*\[runs, times\].*\(2, 2, 2\)"):
        plot_curves({"x": np.ones((2, 2, 2))})
    with pytest.raises(ValueError, match=r"'x' must .*\(0, 3\)"):
        plot_curves({"x": np.ones((0, 3))})
    with pytest.raises(ValueError, match="no curves"):
        plot_curves({})
    with pytest.raises(ValueError, match="same first dimension"):
        plot_curves({"x": [1, 2]}, steps=[1])


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (lambda: plot_samples(samples()), lambda: plot_curves({"x": [1, 2]})):
        with pytest.raises(ImportError, match=r'pip install "optax_adadelta\[plot\]"'):
            draw()
