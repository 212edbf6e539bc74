"""Six problems that break Adadelta, and a cure for each: exercise 3 of airfoil.py.

Three of them train on the airfoil data. Each is a function that returns at least
{"x": values, "lines": {name: a value for each x}}.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from optax_adadelta import adadelta
from studies._airfoil import BATCH, EPS, RHO, draw_lines, train
from studies._lib.results import Report, markdown

SCALES = [10.0**n for n in range(-3, 5)]
CURVATURES = [0.5, 1.0, 1.5, 1.9, 2.1, 2.5, 4.0, 10.0, 30.0, 100.0, 1000.0]
RARITIES = [2, 5, 10, 30, 100, 300, 1000]
SPIKES = [10.0**n for n in range(9)]
CLIP = 10.0
DISTANCE = 100.0


def path(optimizer, gradient, w, steps: int) -> jax.Array:
    """Returns the parameters before each step and after the last; `gradient` is one of w and t."""

    def step(at, t):
        w, state = at
        updates, state = optimizer.update(gradient(w, t), state)
        return (w + updates, state), w

    return jax.lax.scan(step, (w, optimizer.init(w)), jnp.arange(steps + 1))[1]


def other_units(scale, eps) -> optax.GradientTransformation:
    """Returns Adadelta on a problem with target, parameters and gradients `scale` times larger.

    The parameters keep their own units, so the losses can be compared.
    """
    return optax.chain(optax.scale(scale), adadelta(rho=RHO, eps=eps), optax.scale(1 / scale))


def scale(data, seeds: int, epochs: int) -> Report:
    """The parameters are much larger or smaller than one."""
    x = np.array(SCALES)
    settings = {"scale": [*x, *x], "eps": [EPS] * len(x) + list(EPS * x**2)}
    final = train(other_units, settings, data, seeds, epochs)[:, :, -1]
    plain = train(optax.sgd, {"learning_rate": [1.0]}, data, seeds, epochs)[0, :, -1]
    fixed, scaled = np.median(final, axis=1).reshape(2, -1).tolist()
    descent = [float(np.median(plain))] * len(x)
    lines = {"eps 1e-5": fixed, "eps 1e-5 scale²": scaled, "gradient descent, step 1": descent}
    return {"x": SCALES, "lines": lines}


def curvature(data, steps: int) -> Report:
    """Every step sees all rows, so the gradients go to zero; the features set the curvature."""
    x, y = (part.astype(np.float64) for part in data)
    hessian, best = x.T @ x / len(y), np.linalg.lstsq(x, y)[0]
    factors = np.float32(np.sqrt(CURVATURES / np.linalg.eigvalsh(hessian).max()))
    x, y, hessian, best = (jnp.asarray(part, jnp.float32) for part in (x, y, hessian, best))

    def excess(factor, rate):
        def gradient(w, t):
            return factor * x.T @ (factor * x @ w - y) / len(y)

        w = path(adadelta(rate, rho=RHO, eps=EPS), gradient, jnp.zeros(len(best)), steps)
        off = factor * w[-steps // 10 :] - best
        return jnp.max(jnp.sum(off @ hessian * off, axis=1) / 2)

    rates = {"learning rate 1": 1.0, "learning rate 0.1": 0.1}
    rates["falling from 1 to 0"] = optax.cosine_decay_schedule(1.0, steps)
    lines = {n: jax.jit(jax.vmap(partial(excess, rate=r)))(factors) for n, r in rates.items()}
    lines = {name: line.tolist() for name, line in lines.items()}
    return {"x": CURVATURES, "lines": lines, "steps": steps}


def rare(steps: int) -> Report:
    """The targets are n once in n steps and zero otherwise, so their mean is 1."""

    def mean(n, optimizer):
        def gradient(w, t):
            return w - jnp.where(t % n == n // 2, n.astype(jnp.float32), 0.0)

        return path(optimizer, gradient, jnp.zeros(()), steps - 1)[-steps // 5 :].mean()

    methods = {f"rho {rho}": adadelta(rho=rho, eps=EPS) for rho in (0.9, 0.99, 0.9999)}
    methods["Adagrad"] = optax.adagrad(0.1, initial_accumulator_value=0.0)
    n = jnp.asarray(RARITIES)
    means = {name: jax.jit(jax.vmap(partial(mean, optimizer=m)))(n) for name, m in methods.items()}
    lines = {name: line.tolist() for name, line in means.items()}
    return {"x": RARITIES, "lines": lines, "steps": steps}


def spike(data, seeds: int, epochs: int) -> Report:
    """One gradient is far too large, after a tenth of the training."""
    step = epochs * (len(data[1]) // BATCH) // 10

    def spiked(size, clip):
        return optax.chain(
            optax.scale_by_schedule(lambda count: jnp.where(count == step, size, 1.0)),
            optax.clip_by_global_norm(clip),
            adadelta(rho=RHO, eps=EPS),
        )

    settings = {"size": 2 * SPIKES, "clip": len(SPIKES) * [np.inf] + len(SPIKES) * [CLIP]}
    final = train(spiked, settings, data, seeds, epochs)[:, :, -1]
    as_is, clipped = final.mean(axis=1).reshape(2, -1).tolist()
    lines = {"as it is": as_is, f"norm clipped to {CLIP:g}": clipped}
    return {"x": SPIKES, "lines": lines, "step": step}


def noise(data, seeds: int, epochs: int, optimum: float) -> Report:
    """Minibatches disagree on where the gradient is zero."""
    steps = epochs * (len(data[1]) // BATCH)
    falling = optax.cosine_decay_schedule(1.0, steps)
    lines = {}
    for name, rate in {"learning rate 1": 1.0, "falling from 1 to 0": falling}.items():
        losses = train(partial(adadelta, rate, eps=EPS), {"rho": [RHO]}, data, seeds, epochs)[0]
        lines[name] = (losses.mean(axis=0)[:: steps // epochs] - optimum).tolist()
    return {"x": list(range(epochs + 1)), "lines": lines}


def sparse(most: int) -> Report:
    """The gradient of (w - DISTANCE)^2 / 2 is zero in 99 of 100 steps."""

    def visits(gap, rho):
        def gradient(w, t):
            return jnp.where(t % gap == 0, w - DISTANCE, 0.0)

        optimizer, steps = adadelta(rho=rho, eps=EPS), most * gap - 1
        return jax.jit(lambda: path(optimizer, gradient, jnp.zeros(()), steps)[::gap])()

    runs = {"every step": (1, RHO), "1 in 100": (100, RHO), "1 in 100, rho 0.999": (100, 0.999)}
    paths = {name: np.asarray(visits(*setting)) for name, setting in runs.items()}
    arrived = {name: np.flatnonzero(path > 0.9 * DISTANCE)[:1] for name, path in paths.items()}
    thin = most // 100
    return {
        "x": list(range(0, most, thin)),
        "lines": {name: path[::thin].tolist() for name, path in paths.items()},
        "arrived": {name: int(first[0]) if len(first) else None for name, first in arrived.items()},
    }


def run(data, seeds: int, epochs: int, optimum: float, smoke: bool) -> Report:
    """Returns the results of every problem."""
    return {
        "scale": scale(data, seeds, epochs),
        "curvature": curvature(data, 200 if smoke else 5000),
        "rare": rare(2000 if smoke else 100_000),
        "spike": spike(data, seeds, epochs),
        "noise": noise(data, seeds, 2 if smoke else 50, optimum),
        "sparse": sparse(1000 if smoke else 10_000),
    }


def draw(found: Report) -> Figure:
    figure = Figure(figsize=(9.5, 5.6), dpi=96, layout="constrained")
    panels = {
        "scale": ("a. Parameters of another scale", "scale", "loss / scale²"),
        "curvature": ("b. Curvature above 2", "largest curvature", "loss above least squares"),
        "rare": ("c. Rare and large gradients", "one target in", "mean found (correct: 1)"),
        "spike": ("d. One gradient too large", "times too large", "final loss"),
        "noise": ("e. Gradient noise", "epochs", "loss above least squares"),
        "sparse": ("f. Mostly zero gradients", "nonzero gradients", f"w (correct: {DISTANCE:g})"),
    }
    for axes, (name, (title, xlabel, ylabel)) in zip(
        figure.subplots(2, 3).flat, panels.items(), strict=True
    ):
        draw_lines(axes, found[name]["x"], found[name]["lines"])
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        axes.set_xscale("linear" if name in ("noise", "sparse") else "log")
        axes.set_yscale("log" if name in ("scale", "curvature", "noise") else "linear")
        if name == "curvature":
            axes.axvline(2, color="#999999", linewidth=1, zorder=0)
            axes.set_ylim(top=1e16)  # Room for the legend.
            axes.legend(frameon=False, fontsize=8, loc="upper right")
        if name == "sparse":
            axes.locator_params(axis="x", nbins=3)
    return figure


def table(found: Report) -> str:
    """Returns what goes wrong in each problem, and the cure, as Markdown."""

    def at(problem, x):
        place = found[problem]["x"].index(x)
        return [line[place] for line in found[problem]["lines"].values()]

    (large, cured_large, _), (small, cured_small, _) = at("scale", 1e4), at("scale", 1e-3)
    cured_large, cured_small = f"{cured_large:.3f}", f"{cured_small:.3f}"
    wild, _, falling = at("curvature", 10.0)
    short, _, long, _ = (f"{mean:.2f}" for mean in at("rare", 100))
    (usual, _), (broken, clipped) = at("spike", 1.0), at("spike", 1e6)
    still, annealed = (line[-1] for line in found["noise"]["lines"].values())
    dense, seldom, cured = (n or "none" for n in found["sparse"]["arrived"].values())
    scaled, to_zero = "eps times scale²", "a learning rate that falls to 0"
    above, correct = "loss above least squares", "mean found (correct: 1)"
    clip = f"clip to {CLIP:g}"
    usually, epochs = f"loss ({usual:.3f} without it)", found["noise"]["x"][-1]
    arrival = f"gradients to 90 % of the way ({dense} if dense)"
    rows = [
        ("a. parameters 1e4 times larger", "loss / scale²", f"{large:.3f}", scaled, cured_large),
        ("a. parameters 1e3 times smaller", "loss / scale²", f"{small:.3g}", scaled, cured_small),
        ("b. curvature 10", above, f"{wild:.1g}", to_zero, f"{falling:.0e}"),
        ("c. one target in 100 is 100, the others 0", correct, short, "rho 0.9999", long),
        ("d. one gradient 1e6 times too large", usually, f"{broken:.3f}", clip, f"{clipped:.4f}"),
        (f"e. gradient noise, {epochs} epochs", above, f"{still:.1e}", to_zero, f"{annealed:.1e}"),
        ("f. a gradient in 1 of 100 steps", arrival, seldom, "rho 0.999", cured),
    ]
    head = ["problem", "measured", "without the cure", "cure", "with the cure"]
    return markdown(head, [list(map(str, row)) for row in rows])
