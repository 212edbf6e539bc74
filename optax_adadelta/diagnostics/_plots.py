"""Plots of a run. matplotlib is imported only when something is drawn."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from optax_adadelta.diagnostics._samples import Sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_samples(samples: Sample | Sequence[Sample], figure: Figure | None = None) -> Figure:
    """Draws effective learning rates and updates over the steps, as the paper's Figure 2.

    Args:
      samples: a :class:`Sample` whose arrays have a leading axis of time, as ``jax.lax.scan``
        stacks them, or a sequence of Samples.
      figure: the matplotlib figure to draw into; by default a new one.

    Returns:
      The figure. It has a column for each leaf, with its rates above and its updates below, and a
      line for each coordinate. Complex updates appear with their real part. Save it with its method
      ``savefig``.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: there are no samples, or not exactly one axis of time.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_adadelta import adadelta
      >>> from optax_adadelta.diagnostics import choose_coordinates, plot_samples, sample
      >>> optimizer = adadelta()
      >>> params = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}
      >>> state = optimizer.init(params)
      >>> coordinates = choose_coordinates(state)
      >>> def step(state, _):
      ...     updates, state = optimizer.update(params, state, params)
      ...     return state, sample(state, updates, coordinates, eps=1e-6)
      >>> _, samples = jax.lax.scan(step, state, length=100)
      >>> figure = plot_samples(samples)
      >>> [axes.get_title() for axes in figure.axes]
      ['a', 'b', '', '']

    References:
      Zeiler, `ADADELTA: An Adaptive Learning Rate Method
      <https://arxiv.org/abs/1212.5701>`_, 2012, Figure 2.
    """
    if not isinstance(samples, Sample):
        if not samples:
            raise ValueError("There are no samples to draw: pass a Sample of at least one step.")
        samples = jax.tree.map(lambda *leaves: np.stack(leaves), *samples)
    if np.ndim(samples.count) != 1:
        raise ValueError(
            f"samples.count must have one axis, the time, but its shape is"
            f" {np.shape(samples.count)}. Stack the samples of one run along a leading axis."
        )
    names = list(samples.rate)
    if not names:
        raise ValueError("The samples have no leaf: choose the coordinates of at least one leaf.")
    if figure is None:
        figure = _new_figure(2.9 * len(names) + 0.4, 5.0)
    top, bottom = figure.subplots(2, len(names), sharex=True, sharey="row", squeeze=False)
    for name, rates, updates in zip(names, top, bottom, strict=True):
        rates.plot(samples.count, _real(samples.rate[name]), linewidth=0.9)
        updates.plot(samples.count, _real(samples.update[name]), linewidth=0.9)
        rates.set_title(name or "parameters")
        updates.set_xlabel("steps")
    top[0].set_ylabel("RMS[dx] / RMS[g]")
    top[0].set_ylim(bottom=0)
    bottom[0].set_ylabel("update")
    return figure


def plot_curves(curves: Mapping[str, Any], axes: Axes | None = None, steps: Any = None) -> Axes:
    """Draws the mean of each method's runs as a line, in a band from the lowest to the highest run.

    Args:
      curves: a dictionary from a method's name to its values, an array of shape ``[times]`` or
        ``[runs, times]``.
      axes: the matplotlib axes to draw into; by default those of a new figure.
      steps: the values on the horizontal axis, of shape ``[times]``; by default 1, 2, 3 and so on.

    Returns:
      The axes, with a legend. Label them as you like; ``axes.figure.savefig`` saves them.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: there are no curves; or a curve is empty, has another number of axes, or does not
        have the length of ``steps``.

    Example:
      >>> from optax_adadelta.diagnostics import plot_curves
      >>> axes = plot_curves({"Adadelta": [[3.1, 2.2, 1.9], [2.9, 2.4, 1.8]]})
      >>> print(axes.set_ylabel("test error (%)"))
      Text(0, 0.5, 'test error (%)')
    """
    if not curves:
        raise ValueError("There are no curves to draw: pass the values of at least one method.")
    if axes is None:
        axes = _new_figure(6.0, 4.0).subplots()
    for (name, runs), style in zip(curves.items(), itertools.cycle(_STYLES), strict=False):
        runs = np.atleast_2d(_real(runs))
        if runs.ndim > 2 or not runs.size:
            raise ValueError(
                f"The values of {name!r} must have the shape [times] or [runs, times] and must not"
                f" be empty; got shape {runs.shape}."
            )
        x = np.arange(1, runs.shape[1] + 1) if steps is None else np.asarray(steps)
        axes.plot(x, runs.mean(axis=0), label=name, **style)
        if len(runs) > 1:
            low, high = runs.min(axis=0), runs.max(axis=0)
            axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
    axes.legend(frameon=False)
    return axes


# Okabe and Ito's colours. The dashes tell lines apart where colours do not.
_STYLES = [
    {"color": color, "linestyle": dashes}
    for color, dashes in (
        ("#0072B2", "-"),
        ("#D55E00", "--"),
        ("#009E73", "-."),
        ("#CC79A7", ":"),
        ("#E69F00", (0, (6, 1))),
        ("#56B4E9", (0, (3, 1, 1, 1))),
    )
]


def _real(values: Any) -> np.ndarray:
    return np.asarray(np.real(values), np.float64)


def _new_figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install "optax_adadelta[plot]".') from error
    return Figure(figsize=(width, height), dpi=130, layout="constrained")
