"""Watch Adadelta and five other methods walk down four functions of two numbers.

SGD, Momentum, Adagrad, RMSProp and Adam need a learning rate. On each function, each of them gets
the best of 51 learning rates between 1e-4 and 10. Best means that the highest value in the last 30
steps is the lowest, so one lucky jump does not win. Adadelta has no learning rate. It uses rho 0.95
and eps 1e-5 on every function.

The picture shows the paths, the values on the way, the learning rates that Adadelta finds for the
two coordinates of the ravine, and what happens if one learning rate must serve all four functions.
The animation shows the paths as they grow. Tuned methods can be faster than Adadelta: it is slow in
Rosenbrock's valley, and near Beale's minimum its growing learning rates make it jump away.

Needs: pip install -e ".[examples]"
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

try:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patheffects import Normal, Stroke
    from PIL import Image
    from tqdm import tqdm

    from optax_adadelta import adadelta
    from optax_adadelta.diagnostics import effective_learning_rate
except ModuleNotFoundError as error:
    raise SystemExit(f'No {error.name}. Run: pip install -e ".[examples]"') from None


class Function(NamedTuple):
    """A function of x and y, where the walks start, and its minima, where it is 0."""

    value: Callable
    start: tuple[float, float]
    minima: list[tuple[float, float]]


def beale(x, y):
    """Returns Beale's function."""
    return sum((c - x + x * y**n) ** 2 for n, c in ((1, 1.5), (2, 2.25), (3, 2.625)))


FUNCTIONS = {
    name: Function(*rest)
    for name, *rest in (
        ("Rosenbrock", lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2, (-1.2, 1), [(1, 1)]),
        ("Beale", beale, (1, 1), [(3, 0.5)]),
        ("Ravine", lambda x, y: (x**2 + 100 * y**2) / 2, (-2, 0.5), [(0, 0)]),
        # The start is just off the ridge between the two minima.
        ("Saddle", lambda x, y: x**2 / 2 + (y**2 - 1) ** 2 / 4, (-1.5, 0.01), [(0, 1), (0, -1)]),
    )
}
# Lowest and highest x, lowest and highest y.
WINDOWS = {"Rosenbrock": (-1.7, 2, -1.3, 2.8), "Beale": (0.5, 4.1, -1.2, 1.3)}
WINDOWS |= {"Ravine": (-2.3, 1, -0.65, 0.65), "Saddle": (-1.8, 1.5, -1.4, 1.6)}
METHODS = {
    "SGD": optax.sgd,
    "Momentum": partial(optax.sgd, momentum=0.9),
    # The paper of Adagrad starts from zero, Optax from 0.1.
    "Adagrad": partial(optax.adagrad, initial_accumulator_value=0.0),
    "RMSProp": optax.rmsprop,
    "Adam": optax.adam,
}
RATES = np.geomspace(1e-4, 10, 51)
RHO, EPS = 0.95, 1e-5
LAST = 30  # Steps whose highest value counts.
FOUND = 1e-8  # A lower value counts as this.
STEPS, FRAMES, SMOKE_STEPS, SMOKE_FRAMES = 300, 90, 40, 5
STYLES = {
    name: {"color": color, "linestyle": line, "linewidth": width}
    for name, color, line, width in (
        ("SGD", "#E69F00", "-", 1.4),
        ("Momentum", "#56B4E9", (0, (9, 1)), 1.4),
        ("Adagrad", "#009E73", (0, (5, 1.5)), 1.4),
        ("RMSProp", "#CC79A7", (0, (3, 1, 1, 1)), 1.6),
        ("Adam", "#0072B2", (0, (1.5, 1)), 1.4),
        ("Adadelta", "#D55E00", "-", 2.2),
    )
}


def walk(optimizer: optax.GradientTransformation, function: Function, steps: int):
    """Returns the points, the start and that after each step, and the optimizer's states there."""
    gradient = jax.grad(lambda point: function.value(point[0], point[1]))

    def step(here, _):
        point, state = here
        updates, state = optimizer.update(gradient(point), state, point)
        return (optax.apply_updates(point, updates), state), here

    start = jnp.array(function.start, float)
    return jax.lax.scan(step, (start, optimizer.init(start)), length=steps + 1)[1]


def walks(make: Callable, rates: np.ndarray, function: Function, steps: int):
    """Returns each rate's points, its last value and the highest of its last values."""

    @jax.jit
    def run(rates):
        points = jax.vmap(lambda rate: walk(make(rate), function, steps)[0])(rates)
        values = function.value(points[:, -LAST:, 0], points[:, -LAST:, 1])
        values = jnp.where(jnp.isfinite(values), values, jnp.inf)
        return points, values[:, -1], values.max(axis=1)

    return [np.asarray(part, float) for part in run(jnp.asarray(rates, jnp.float32))]


def measure(steps: int) -> dict:
    """Walks all walks and returns what the pictures and the table show."""
    results = {"steps": steps, "points": {}, "rate": {}, "last": {}, "mean": {}}
    methods = {name: (make, RATES) for name, make in METHODS.items()}
    methods["Adadelta"] = (partial(adadelta, rho=RHO, eps=EPS), np.ones(1))
    for at in tqdm([*product(FUNCTIONS, methods)], desc="Training", unit="walk"):
        make, rates = methods[at[1]]
        points, results["last"][at], highest = walks(make, rates, FUNCTIONS[at[0]], steps)
        best = highest.argmin()
        results["rate"][at], results["points"][at] = rates[best], points[best]
    _, states = walk(adadelta(rho=RHO, eps=EPS), FUNCTIONS["Ravine"], steps)
    results["own rates"] = np.asarray(effective_learning_rate(states, EPS))
    # The geometric mean over the functions, for each learning rate.
    for method in methods:
        last = np.maximum([results["last"][name, method] for name in FUNCTIONS], FOUND)
        results["mean"][method] = np.exp(np.log(last).mean(axis=0))
    return results


def draw_lines(axes) -> dict:
    """Returns an empty line for each method; Adadelta's is on top and has a white border."""
    lines = {name: axes.plot([], [], label=name, **style)[0] for name, style in STYLES.items()}
    lines["Adadelta"].set_path_effects([Stroke(linewidth=4.2, foreground="white"), Normal()])
    return lines


def draw_function(axes, name: str) -> dict:
    """Draws contours, minima and the start, and returns the lines for the paths."""
    function, (left, right, bottom, top) = FUNCTIONS[name], WINDOWS[name]
    x, y = np.meshgrid(np.linspace(left, right, 200), np.linspace(bottom, top, 200))
    heights = np.log10(np.maximum(function.value(x, y), 1e-9))
    levels = np.linspace(-1.75, heights.max(), 13)
    colors = LinearSegmentedColormap.from_list("ground", ["#9DB2C7", "#F2F5F8"])
    axes.contourf(x, y, heights, levels, cmap=colors, extend="min")
    axes.contour(x, y, heights, levels, colors="white", linestyles="solid", linewidths=0.6)
    axes.plot(*zip(*function.minima, strict=True), "k*", *function.start, "ko", ms=8, zorder=4)
    axes.set(title=name, xlim=(left, right), ylim=(bottom, top))
    axes.tick_params(labelsize=8)
    return draw_lines(axes)


def draw_rates(own, shared, results: dict) -> None:
    """Draws Adadelta's learning rates in the ravine, and one learning rate for all functions."""
    style, (along, across) = STYLES["Adadelta"], results["own rates"].T
    own.axhline(results["rate"]["Ravine", "SGD"], **STYLES["SGD"])
    own.plot(along, **style)
    own.plot(across, **style | {"linestyle": (0, (3, 1))})
    own.legend(["SGD, for both", "Adadelta, along (x)", "Adadelta, across (y)"], frameon=False)
    own.set(yscale="log", xlim=(0, results["steps"]), xlabel="steps")
    own.set(title="Adadelta's own learning rates in the ravine", ylabel="RMS[dx] / RMS[g]")
    for method in METHODS:
        means = results["mean"][method]
        shared.plot(RATES, means, **STYLES[method])
        last = np.flatnonzero(np.isfinite(means))[-1]
        if last + 1 < len(RATES):
            shared.plot(RATES[last], means[last], "x", color=STYLES[method]["color"])
    line = shared.axhline(results["mean"]["Adadelta"][0], **style)
    shared.legend([line], ["Adadelta, no learning rate"], frameon=False, loc="upper left")
    shared.set(xscale="log", yscale="log", ylim=(None, 1e5))
    shared.set(xlabel="learning rate (above a cross, a walk diverges)")
    shared.set(title="One learning rate for all four functions", ylabel="mean value at the end")


def image(figure: Figure) -> Image.Image:
    """Returns the figure as an image."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def draw(results: dict, output: Path) -> None:
    """Writes the picture."""
    figure = Figure(figsize=(10, 8.4), dpi=120, layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.8, 1])
    upper, lower = above.subplots(2, 4, height_ratios=[1.4, 1])
    for name, over, under in zip(FUNCTIONS, upper, lower, strict=True):
        paths, curves = draw_function(over, name), draw_lines(under)
        for method in STYLES:
            x, y = results["points"][name, method].T
            paths[method].set_data(x, y)
            curves[method].set_data(np.arange(len(x)), FUNCTIONS[name].value(x, y))
        under.set(yscale="log", xlim=(0, results["steps"]), ylim=(FOUND, 100), xlabel="steps")
        under.tick_params(labelsize=8)
    lower[0].set_ylabel("value")
    own, shared = below.subplots(1, 2)
    draw_rates(own, shared, results)
    for axes in (*lower, own, shared):
        axes.spines[["top", "right"]].set_visible(False)
    above.legend(handles=[*paths.values()], loc="outside upper center", ncols=6, frameon=False)
    image(figure).quantize(dither=Image.Dither.NONE).save(output, optimize=True)


def animate(results: dict, output: Path, frames: int) -> None:
    """Writes the animation, slow at the start, where most happens."""
    figure = Figure(figsize=(7, 6.2), dpi=100, layout="constrained")
    panels = zip(figure.subplots(2, 2).flat, FUNCTIONS, strict=True)
    lines = {name: draw_function(axes, name) for axes, name in panels}
    key = {"ncols": 6, "frameon": False, "fontsize": 9}
    figure.legend(handles=[*lines["Saddle"].values()], loc="outside lower center", **key)
    for line in (line for paths in lines.values() for line in paths.values()):
        line.set(marker="o", markersize=5, markevery=[-1])
    steps = results["steps"]
    title = figure.suptitle(f"Step {steps} of {steps}")
    figure.draw_without_rendering()
    figure.set_layout_engine("none")

    def frame(moment):
        title.set_text(f"Step {moment} of {steps}")
        for name, paths in lines.items():
            for method, line in paths.items():
                line.set_data(*results["points"][name, method][: moment + 1].T)
        return image(figure)

    # One palette for all frames, so what does not move stays the same and takes no space.
    palette = frame(steps).quantize()
    moments = np.unique((np.linspace(0, 1, frames) ** 2 * steps).round().astype(int))
    first, *others = [
        frame(moment).quantize(palette=palette, dither=Image.Dither.NONE)
        for moment in tqdm(moments, desc="Drawing", unit="frame")
    ]
    times = [70] * len(others) + [2500]
    first.save(output, save_all=True, append_images=others, duration=times, loop=0)


def tell(results: dict) -> None:
    """Prints where the walks ended."""
    print(f"Value after {results['steps']} steps (best learning rate for this function):")
    print(" " * 10 + "".join(f"{name:>20}" for name in FUNCTIONS))
    for method in STYLES:
        cells = []
        for name in FUNCTIONS:
            value = max(FUNCTIONS[name].value(*results["points"][name, method][-1]), FOUND)
            rate = f"{results['rate'][name, method]:.2g}" if method in METHODS else "none"
            cells.append(f"{value:11.1e} {f'({rate})':8}")
        print(f"{method:10}{''.join(cells)}")
    along, across = results["own rates"][LAST]
    print(f"Adadelta's own in the ravine, step {LAST}: {along:.2g} along it, {across:.2g} across.")


def check_writable(path: Path) -> None:
    """Makes the file's folder, and exits if the file cannot be written."""
    new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise SystemExit(f"Cannot write --output {path}: {error.strerror}.") from None
    if new:
        path.unlink()


def main() -> None:
    """Reads the options, walks, draws, and prints the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    text = "where to write the picture; the animation goes beside it (default: %(default)s)"
    add("--output", type=Path, default=Path("trajectories.png"), help=text)
    add("--smoke", action="store_true", help="quick check in a few seconds (default: off)")
    options = parser.parse_args()
    if options.output.suffix != ".png":
        parser.error("--output must end in .png")
    animation = options.output.with_suffix(".gif")
    check_writable(options.output)
    check_writable(animation)

    results = measure(SMOKE_STEPS if options.smoke else STEPS)
    draw(results, options.output)
    animate(results, animation, SMOKE_FRAMES if options.smoke else FRAMES)
    tell(results)
    print(f"Picture: {options.output}\nAnimation: {animation}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        sys.exit(130)
