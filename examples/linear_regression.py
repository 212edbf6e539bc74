"""Fit a line with Adadelta, and see how long it really takes.

The points are y = 3 x + 2 plus noise. The loss is the mean squared error over all points. Adadelta
(rho 0.95, eps 1e-6) starts from the line y = 0. Many introductions stop after 100 epochs. That is
too early: the first steps are sqrt(eps / (1 - rho)) = 0.0045 long and grow slowly, so 100 steps
reach a slope of 0.5. This script continues until the fit is within 1 % of least squares.

Needs: pip install -e ".[examples]"
"""

import argparse
import sys
from pathlib import Path

try:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from matplotlib.figure import Figure

    from optax_adadelta import adadelta
except ModuleNotFoundError as error:
    raise SystemExit(f'No {error.name}. Run: pip install -e ".[examples]"') from None

TRUE_LINE = np.array([3.0, 2.0])
NOISE = 0.5
POINTS = 100
TOLERANCE = 0.01
MOST_EPOCHS = 10_000
SMOKE_EPOCHS = 10


def data(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the points' x, uniform between -1 and 1, and y."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1.0, 1.0, POINTS)
    return x, np.polyval(TRUE_LINE, x) + NOISE * rng.normal(size=POINTS)


def fit(x: np.ndarray, y: np.ndarray, epochs: int) -> np.ndarray:
    """Returns (slope, intercept) before the first epoch and after each."""
    optimizer = adadelta(rho=0.95, eps=1e-6)
    x, y = jnp.asarray(x), jnp.asarray(y)

    def loss(line):
        slope, intercept = line
        return jnp.mean((slope * x + intercept - y) ** 2)

    def epoch(carry, _):
        line, state = carry
        updates, state = optimizer.update(jax.grad(loss)(line), state, line)
        line = optax.apply_updates(line, updates)
        return (line, state), line

    @jax.jit
    def run(line):
        _, lines = jax.lax.scan(epoch, (line, optimizer.init(line)), length=epochs)
        return jnp.concatenate([line[None], lines])

    return np.asarray(run(jnp.zeros(2)))


def settled(lines: np.ndarray, target: np.ndarray) -> int | None:
    """Returns the epoch from which on every line is within TOLERANCE of the target's numbers."""
    outside = (abs(lines - target) > TOLERANCE * abs(target)).any(axis=1)
    first = int(np.flatnonzero(outside).max(initial=-1)) + 1
    return first if first < len(lines) else None


def draw(x: np.ndarray, y: np.ndarray, fits: dict[str, np.ndarray], output: Path) -> None:
    """Writes the picture: the points, and the points with the lines."""
    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes in (left, right):
        axes.plot(x, y, "o", color="#999999", markersize=4, label=f"{len(x)} points")
        axes.set(xlabel="x", ylabel="y", xticks=(-1, -0.5, 0, 0.5, 1))
        axes.spines[["top", "right"]].set_visible(False)
    ends = np.array([-1.0, 1.0])
    styles = (("#56B4E9", "-", 5), ("#D55E00", "-", 2), ("black", "--", 1.5))
    for (name, line), (color, dashes, width) in zip(fits.items(), styles, strict=False):
        right.plot(ends, np.polyval(line, ends), dashes, color=color, linewidth=width, label=name)
    left.set_title("The data")
    right.set_title("The data with the fitted lines")
    right.legend(frameon=False)
    figure.savefig(output)


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
    """Reads the options, fits, draws, and prints the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    text = "epochs of the first fit (default: %(default)s)"
    add("--epochs", type=int, default=100, help=text)
    text = "sets the points and their noise (default: %(default)s)"
    add("--seed", type=int, default=0, help=text)
    text = "where to write the picture (default: %(default)s)"
    add("--output", type=Path, default=Path("linear_regression.png"), help=text)
    text = f"quick check: at most {SMOKE_EPOCHS} epochs in the first fit (default: off)"
    add("--smoke", action="store_true", help=text)
    options = parser.parse_args()
    if options.epochs < 1 or options.seed < 0:
        parser.error("--epochs must be at least 1 and --seed at least 0")
    if options.output.suffix not in (".png", ".pdf", ".svg"):
        parser.error("--output must end in .png, .pdf or .svg")
    check_writable(options.output)
    epochs = min(options.epochs, SMOKE_EPOCHS) if options.smoke else options.epochs

    x, y = data(options.seed)
    best = np.polyfit(x, y, 1)
    last = max(epochs, MOST_EPOCHS)
    lines = fit(x, y, last)
    enough = settled(lines, best)
    fits = {"least squares": best, f"Adadelta, {epochs} epochs": lines[epochs]}
    if enough is not None:
        fits[f"Adadelta, {enough} epochs"] = lines[enough]
    draw(x, y, fits, options.output)

    for name, (slope, intercept) in {"true line": TRUE_LINE, **fits}.items():
        print(f"{name + ':':24} slope {slope:.3f}, intercept {intercept:.3f}")
    slope, intercept = abs(lines[epochs] / best - 1)
    print(f"After {epochs} epochs, difference from least squares: ", end="")
    print(f"slope {slope:.1%}, intercept {intercept:.1%}.")
    if enough is None:
        print(f"They do not stay within {TOLERANCE:.0%} in {last} epochs.")
    else:
        print(f"Both stay within {TOLERANCE:.0%} from epoch {enough} to the last, {last}.")
    print(f"Picture: {options.output}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        sys.exit(130)
