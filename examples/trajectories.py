"""Watch Adadelta and five other methods walk down four functions of two numbers.

SGD, Momentum, Adagrad, RMSProp and Adam need a learning rate. On each function they get the best
of 51 between 1e-4 and 10: the one whose highest value in the last 30 steps is the lowest, for a
walk that jumps about must not win by one lucky jump. Adadelta has none. Its rho is 0.95 and its
eps 1e-5, which makes the first steps sqrt(eps / (1 - rho)) = 0.014 long; those of the usual 1e-6
are 0.0045, too short to get far in 300 steps. The tables have other eps too.

The picture shows the paths, the values on the way, the learning rates that Adadelta finds for the
two coordinates of the ravine, and what becomes of each method when one learning rate must serve
all four functions: the geometric mean of the last values, where less than 1e-8 counts as 1e-8.
The animation shows the paths as they grow. Adadelta is not the fastest where others are tuned.
It creeps along Rosenbrock's valley, and jumps away from Beale's minimum when its learning rates,
which return to 1 as the gradients die away, have become too large for the curvature there.

Needs: pip install "optax_adadelta[examples]"
"""

import argparse
from functools import partial
from itertools import product
from pathlib import Path

import _results
import jax
import numpy as np
from _methods import METHODS
from _walks import FUNCTIONS, LAST, WINDOWS, walk, walks
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from PIL import Image
from tqdm import tqdm

from optax_adadelta import adadelta
from optax_adadelta.diagnostics import effective_learning_rate

RATES = [float(f"{rate:.5g}") for rate in np.geomspace(1e-4, 10, 51)]
EPSILONS = [1e-6, 1e-5, 1e-4, 1e-3]
RHO, EPS = 0.95, 1e-5
OWN = EPSILONS.index(EPS)
FOUND = 1e-8
SMOKE_STEPS, SMOKE_FRAMES, FRAMES = 40, 5, 90
STYLES = {
    "SGD": {"color": "#E69F00", "linestyle": "-", "linewidth": 1.4},
    "Momentum": {"color": "#56B4E9", "linestyle": (0, (9, 1)), "linewidth": 1.4},
    "Adagrad": {"color": "#009E73", "linestyle": (0, (5, 1.5)), "linewidth": 1.4},
    "RMSProp": {"color": "#CC79A7", "linestyle": (0, (3, 1, 1, 1)), "linewidth": 1.6},
    "Adam": {"color": "#0072B2", "linestyle": (0, (1.5, 1)), "linewidth": 1.4},
    "Adadelta": {"color": "#D55E00", "linestyle": "-", "linewidth": 2.2},
}


def measure(steps: int) -> dict:
    """Walks all walks, and returns what the picture and the tables show."""
    drawn, last, highest = ({name: {} for name in FUNCTIONS} for _ in range(3))
    for name, method in tqdm([*product(FUNCTIONS, STYLES)], desc="Training", unit="method"):
        tuned = method in METHODS
        make = METHODS[method] if tuned else partial(adadelta, 1.0, RHO)
        settings = RATES if tuned else EPSILONS
        points, values, highs = walks(make, settings, FUNCTIONS[name], steps)
        setting = int(highs.argmin()) if tuned else OWN
        x, y = points[setting].round(6).T.tolist()
        drawn[name][method] = {"setting": setting, "x": x, "y": y}
        last[name][method], highest[name][method] = plain(values), plain(highs)
    _, states = jax.jit(lambda: walk(adadelta(1.0, RHO, EPS), FUNCTIONS["Ravine"], steps))()
    own = np.asarray(effective_learning_rate(states, EPS))
    return {
        "steps": steps,
        "rates": RATES,
        "epsilons": EPSILONS,
        "last": last,
        "shared": {method: int(means.argmin()) for method, means in together(highest).items()},
        "own_rates": {"x": plain(own[:, 0]), "y": plain(own[:, 1])},
        "walks": drawn,
    }


def plain(values) -> list:
    """Returns the values as JSON has them, with five digits, and None for infinity."""
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]


def together(values: dict) -> dict[str, np.ndarray]:
    """Returns the geometric mean over the functions for each method's settings."""

    def mean(method):
        of_functions = np.array([values[name][method] for name in FUNCTIONS], float)
        return np.exp(
            np.log(np.maximum(np.nan_to_num(of_functions, nan=np.inf), FOUND)).mean(axis=0)
        )

    return {method: mean(method) for method in STYLES}


def draw_lines(axes) -> dict:
    """Returns a line for each method, empty yet, Adadelta's on top with a white seam."""
    lines = {name: axes.plot([], [], label=name, **style)[0] for name, style in STYLES.items()}
    lines["Adadelta"].set_path_effects([Stroke(linewidth=4.2, foreground="white"), Normal()])
    return lines


def draw_function(axes, name: str) -> dict:
    """Draws contours, minima and the start, and returns the lines for the paths."""
    function = FUNCTIONS[name]
    left, right, bottom, top = WINDOWS[name]
    x, y = np.meshgrid(np.linspace(left, right, 200), np.linspace(bottom, top, 200))
    heights = np.log10(np.maximum(function.value(x, y), 1e-9))
    levels = np.linspace(-1.75, heights.max(), 13)
    colors = LinearSegmentedColormap.from_list("ground", ["#9DB2C7", "#F2F5F8"])
    axes.contourf(x, y, heights, levels, cmap=colors, extend="min")
    axes.contour(x, y, heights, levels, colors="white", linestyles="solid", linewidths=0.6)
    axes.plot(*zip(*function.minima, strict=True), "k*", markersize=10, zorder=4)
    axes.plot(*function.start, "ko", markersize=6, zorder=4)
    axes.set(title=name, xlim=(left, right), ylim=(bottom, top))
    axes.tick_params(labelsize=8)
    return draw_lines(axes)


def draw_rates(own, shared, results: dict) -> None:
    """Draws Adadelta's learning rates in the ravine, and what each one does for all functions."""
    style = STYLES["Adadelta"]
    own.axhline(RATES[results["walks"]["Ravine"]["SGD"]["setting"]], **STYLES["SGD"])
    own.plot(results["own_rates"]["x"], **style)
    own.plot(results["own_rates"]["y"], **style | {"linestyle": (0, (3, 1))})
    labels = ["SGD, for both", "Adadelta, along (x)", "Adadelta, across (y)"]
    own.legend(labels, frameon=False, fontsize=9)
    own.set(yscale="log", xlim=(0, results["steps"]), xlabel="steps")
    own.set(title="Adadelta's own learning rates in the ravine", ylabel="RMS[dx] / RMS[g]")

    means = together(results["last"])
    for method in METHODS:
        shared.plot(RATES, means[method], **STYLES[method])
        last = np.flatnonzero(np.isfinite(means[method]))[-1]
        if last + 1 < len(RATES):
            shared.plot(RATES[last], means[method][last], "x", color=STYLES[method]["color"])
    mean = means["Adadelta"][OWN]
    shared.axhline(mean, **style)
    where = {"fontsize": 9, "color": style["color"], "va": "top"}
    shared.text(RATES[0], mean / 1.5, f"Adadelta: none (eps {EPS:.0e})", **where)
    shared.set(xscale="log", yscale="log", xlabel="learning rate (above a cross, a walk diverges)")
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
        for method, walked in results["walks"][name].items():
            x, y = np.array(walked["x"]), np.array(walked["y"])
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
    handles = [*lines["Saddle"].values()]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
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
                walked = results["walks"][name][method]
                line.set_data(walked["x"][: moment + 1], walked["y"][: moment + 1])
        return image(figure)

    # One palette for all frames, so that what does not move is the same and takes no room.
    palette = frame(steps).quantize()
    moments = np.unique((np.linspace(0, 1, frames) ** 2 * steps).round().astype(int))
    first, *others = [
        frame(moment).quantize(palette=palette, dither=Image.Dither.NONE)
        for moment in tqdm(moments, desc="Drawing", unit="frame")
    ]
    times = [70] * len(others) + [2500]
    first.save(output, save_all=True, append_images=others, duration=times, loop=0)


def tell(results: dict) -> None:
    """Prints the tables and what follows from them."""
    last, means = results["last"], together(results["last"])

    def row(label, cells):
        print(f"  {label:20}" + "".join(f"{cell:>18}" for cell in cells))

    def told(value):
        if value is None or np.isinf(value):
            return "diverges"
        return f"{value:.1e}" if value > FOUND else f"<= {FOUND:.0e}"

    print(f"Value after {results['steps']} steps (learning rate, the best for this function):")
    row("", FUNCTIONS)
    for method in STYLES:
        at = {name: results["walks"][name][method]["setting"] for name in FUNCTIONS}
        rates = {n: f"{RATES[i]:.2g}" if method in METHODS else "none" for n, i in at.items()}
        row(method, [f"{told(last[n][method][at[n]])} ({rates[n]})" for n in FUNCTIONS])
    print("The same where one learning rate, the best, must serve all four functions:")
    row("", [*FUNCTIONS, "mean"])
    shown = [(m, results["shared"][m], f"{m}, {RATES[results['shared'][m]]:.2g}") for m in METHODS]
    shown += [("Adadelta", at, f"Adadelta, eps {eps:.0e}") for at, eps in enumerate(EPSILONS)]
    for method, at, label in shown:
        values = [last[name][method][at] for name in FUNCTIONS]
        row(label, map(told, [*values, means[method][at]]))

    better = {method: (means[method] < means["Adadelta"][OWN]).sum() for method in METHODS}
    counts = ", ".join(f"{count} of {method}" for method, count in better.items())
    print(f"Of {len(RATES)} learning rates for all four, these beat Adadelta with eps {EPS:.0e}:")
    print(f"  {counts}.")
    x, y = (results["own_rates"][key][LAST] for key in "xy")
    print(f"Its own in the ravine, after {LAST} steps: {x:.2g} along it, {y:.2g} across it.")


def main() -> None:
    """Reads the options, walks or loads, draws, and says what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    text = f"steps of each walk, from {LAST} to 1000 (default: %(default)s)"
    add("--steps", type=int, default=300, help=text)
    text = "folder for trajectories.json, .png and .gif (default: %(default)s)"
    add("--output", type=Path, default=Path("results"), help=text)
    text = "draw again from the JSON file in that folder and compute nothing (default: off)"
    add("--draw-only", action="store_true", help=text)
    text = f"only try that all works: {SMOKE_STEPS} steps, files of other names (default: off)"
    add("--smoke", action="store_true", help=text)
    options = parser.parse_args()
    if not LAST <= options.steps <= 1000:
        parser.error(f"--steps must be at least {LAST} and at most 1000")
    steps = min(options.steps, SMOKE_STEPS) if options.smoke else options.steps

    path = options.output / f"trajectories{'-smoke' if options.smoke else ''}.json"
    if not options.draw_only:
        _results.make_folder(options.output)
        made = _results.provenance(parser, options)
        _results.save(path, {**made, "results": measure(steps)})
    results = _results.load(path)["results"]
    draw(results, path.with_suffix(".png"))
    animate(results, path.with_suffix(".gif"), SMOKE_FRAMES if options.smoke else FRAMES)

    tell(results)
    print(f"Picture: {path.with_suffix('.png')}\nAnimation: {path.with_suffix('.gif')}")


if __name__ == "__main__":
    main()
