"""Six problems that break Adadelta, why they do, and what cures them: exercise 3 of airfoil.py.

Three train on the airfoil data, three are written out here. Each problem is a function that
returns {"x": values, "lines": {name: a value for each x}} and what its sentences need.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments._airfoil import BATCH, EPS, GOOD, RHO, draw_lines, train
from optax_adadelta import adadelta

SCALES = [10.0**n for n in range(-3, 5)]
CURVATURES = [0.5, 1.0, 1.5, 1.9, 2.1, 2.5, 4.0, 10.0, 30.0, 100.0, 1000.0]
RARITIES = [2, 5, 10, 30, 100, 300, 1000]
SPIKES = [10.0**n for n in range(9)]
CLIP = 10.0
DISTANCE = 100.0


def other_units(scale, eps) -> optax.GradientTransformation:
    """Returns Adadelta as it is where target, parameters and gradients are `scale` times larger.

    The parameters stay in their own units, so that the losses can be compared.
    """
    return optax.chain(optax.scale(scale), adadelta(rho=RHO, eps=eps), optax.scale(1 / scale))


def scale(data, seeds: int, epochs: int) -> dict:
    """The parameters are far larger or far smaller than one."""
    x = np.array(SCALES)
    settings = {"scale": [*x, *x], "eps": [EPS] * len(x) + list(EPS * x**2)}
    final = train(other_units, settings, data, seeds, epochs)[:, :, -1]
    plain = train(optax.sgd, {"learning_rate": [1.0]}, data, seeds, epochs)[0, :, -1]
    fixed, scaled = np.median(final, axis=1).reshape(2, -1).tolist()
    descent = [float(np.median(plain))] * len(x)
    lines = {"eps 1e-5": fixed, "eps 1e-5 scale²": scaled, "gradient descent, step 1": descent}
    return {"x": SCALES, "lines": lines}


def curvature(data, steps: int) -> dict:
    """The gradients die away, for every step sees all rows; the features set the curvature."""
    x, y = (part.astype(np.float64) for part in data)
    hessian, best = x.T @ x / len(y), np.linalg.lstsq(x, y)[0]
    largest = np.linalg.eigvalsh(hessian).max()
    x, y, hessian, best = (jnp.asarray(part, jnp.float32) for part in (x, y, hessian, best))

    def run(factor, learning_rate):
        optimizer = adadelta(learning_rate, rho=RHO, eps=EPS)

        def step(at, _):
            w, state = at
            grads = factor * x.T @ (factor * x @ w - y) / len(y)
            updates, state = optimizer.update(grads, state)
            w = w + updates
            off = factor * w - best
            return (w, state), off @ hessian @ off / 2

        w = jnp.zeros(len(best))
        excess = jax.lax.scan(step, (w, optimizer.init(w)), length=steps)[1]
        return excess[-steps // 10 :].max()

    rates = {
        "learning rate 1": 1.0,
        "learning rate 0.1": 0.1,
        "falling from 1 to 0": optax.cosine_decay_schedule(1.0, steps),
    }
    factors = jnp.sqrt(jnp.asarray(CURVATURES, jnp.float32) / largest.astype(np.float32))
    lines = {
        name: jax.jit(jax.vmap(partial(run, learning_rate=rate)))(factors).tolist()
        for name, rate in rates.items()
    }
    return {"x": CURVATURES, "lines": lines, "steps": steps}


def rare(steps: int) -> dict:
    """The mean is sought of targets that are n once in n steps, and zero otherwise: it is 1."""

    def run(n, optimizer):
        def step(at, t):
            w, state = at
            target = jnp.where(t % n == n // 2, n.astype(jnp.float32), 0.0)
            updates, state = optimizer.update(w - target, state)
            return (w + updates, state), w

        w = jnp.zeros(())
        path = jax.lax.scan(step, (w, optimizer.init(w)), jnp.arange(steps))[1]
        return path[-steps // 5 :].mean()

    methods = {f"rho {rho}": adadelta(rho=rho, eps=EPS) for rho in (0.9, 0.99, 0.9999)}
    methods["Adagrad"] = optax.adagrad(0.1, initial_accumulator_value=0.0)
    lines = {
        name: jax.jit(jax.vmap(partial(run, optimizer=method)))(jnp.asarray(RARITIES)).tolist()
        for name, method in methods.items()
    }
    return {"x": RARITIES, "lines": lines, "steps": steps}


def spike(data, seeds: int, epochs: int) -> dict:
    """One gradient, a tenth of the way, is far too large."""
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


def noise(data, seeds: int, epochs: int, optimum: float) -> dict:
    """The minibatches never agree on where the gradient is zero."""
    steps = epochs * (len(data[1]) // BATCH)
    falling = optax.cosine_decay_schedule(1.0, steps)
    lines = {}
    for name, rate in {"learning rate 1": 1.0, "falling from 1 to 0": falling}.items():
        losses = train(partial(adadelta, rate, eps=EPS), {"rho": [RHO]}, data, seeds, epochs)[0]
        lines[name] = (losses.mean(axis=0)[:: steps // epochs] - optimum).tolist()
    return {"x": list(range(epochs + 1)), "lines": lines}


def sparse(most: int) -> dict:
    """The gradient of (w - DISTANCE)^2 / 2 comes in one step of 100, and is zero in the others."""

    def run(gap, rho):
        optimizer = adadelta(rho=rho, eps=EPS)

        def visit(at, _):
            w, state = at
            updates, state = optimizer.update(w - DISTANCE, state)
            state = jax.lax.fori_loop(
                1, gap, lambda _, state: optimizer.update(jnp.zeros(()), state)[1], state
            )
            return (w + updates, state), w

        w = jnp.zeros(())
        return jax.jit(lambda: jax.lax.scan(visit, (w, optimizer.init(w)), length=most)[1])()

    runs = {"every step": (1, RHO), "1 in 100": (100, RHO), "1 in 100, rho 0.999": (100, 0.999)}
    paths = {name: np.asarray(run(*setting)) for name, setting in runs.items()}
    arrived = {name: np.flatnonzero(path > 0.9 * DISTANCE)[:1] for name, path in paths.items()}
    thin = most // 100
    return {
        "x": list(range(0, most, thin)),
        "lines": {name: path[::thin].tolist() for name, path in paths.items()},
        "arrived": {name: int(first[0]) if len(first) else None for name, first in arrived.items()},
    }


def run(data, seeds: int, epochs: int, optimum: float, smoke: bool) -> dict:
    """Returns what every problem found."""
    return {
        "scale": scale(data, seeds, epochs),
        "curvature": curvature(data, 200 if smoke else 5000),
        "rare": rare(2000 if smoke else 100_000),
        "spike": spike(data, seeds, epochs),
        "noise": noise(data, seeds, 2 if smoke else 50, optimum),
        "sparse": sparse(1000 if smoke else 10_000),
    }


PANELS = {
    "scale": ("a. Parameters of another scale", "scale", "loss / scale²", "log", "log"),
    "curvature": (
        "b. Curvature above 2",
        "largest curvature",
        "loss above least squares",
        "log",
        "log",
    ),
    "rare": (
        "c. Rare and large gradients",
        "one target in",
        "mean found, 1 is right",
        "log",
        "linear",
    ),
    "spike": ("d. One gradient too large", "times too large", "final loss", "log", "linear"),
    "noise": ("e. Noise that stays", "epochs", "loss above least squares", "linear", "log"),
    "sparse": (
        "f. Gradients seldom seen",
        "gradients seen",
        f"w, {DISTANCE:g} is right",
        "linear",
        "linear",
    ),
}


def draw(found: dict, output) -> None:
    """Writes the picture, a panel for each problem."""
    figure = Figure(figsize=(9.5, 5.4), dpi=96, layout="constrained")
    for axes, (name, panel) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
        title, xlabel, ylabel, xscale, yscale = panel
        draw_lines(axes, found[name]["x"], found[name]["lines"])
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscale)
        if name == "curvature":
            axes.axvline(2, color="#999999", linewidth=1, zorder=0)
            axes.set_ylim(top=1e12)  # Room for the legend.
            axes.legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(output)


def cure(name: str, value: str, works: bool) -> str:
    """Says what the cure reached, and whether it is one."""
    return f"{name}: {value}, which {'cures it' if works else 'is no cure here'}."


def tell(found: dict) -> None:
    """Prints a few sentences for each problem: what goes wrong and why, and what cures it."""

    def at(problem, x):
        """Returns what the lines of a problem have at one x."""
        place = found[problem]["x"].index(x)
        return [line[place] for line in found[problem]["lines"].values()]

    print("3. No. It has a scale of its own, eps, a memory of its own, and noise that stays:")

    ordinary, *_ = at("scale", 1.0)
    (large, cured_large, _), (small, cured_small, descent) = at("scale", 1e4), at("scale", 1e-3)
    print(
        f"a. First steps are {(EPS / (1 - RHO)) ** 0.5:g} long whatever the scale: where parameters"
        f" are 1e4 times larger, the loss over scale² ends at {large:.3g}, and where 1e3 times"
        f" smaller, gradients are below sqrt(eps) and the ratio is near 1, at {small:.3g}"
        f" (gradient descent with step 1: {descent:.3g}). "
        + cure(
            "eps 1e-5 scale²",
            f"{cured_large:.4f} and {cured_small:.4f}",
            max(cured_large, cured_small) < (1 + GOOD) * ordinary,
        )
    )

    (calm, *_), (wild, tenth, falling) = at("curvature", 1.9), at("curvature", 10.0)
    (just, *_), (_, too_much, _) = at("curvature", 2.1), at("curvature", 100.0)
    print(
        f"b. As gradients die away both roots come down to sqrt(eps) and the ratio to 1: with all"
        f" rows in every step the loss stays {calm:.0e} above least squares at curvature 1.9,"
        f" {just:.0e} at 2.1 and {wild:.0e} at 10, after {found['curvature']['steps']} steps. "
        + cure("At 10, a learning rate that falls to 0", f"{falling:.0e}", falling < wild / 100)
        + f" One of 0.1, whose limit is 20, leaves {tenth:.0e} at 10 and {too_much:.0e} at 100."
    )

    short, _, long, adagrad = at("rare", 100)
    print(
        f"c. Where one target in 100 is 100 and the others 0, the mean 1 is sought and {short:.2f}"
        f" found at rho 0.9: one step can be {(1 - RHO) ** -0.5:.1f} times RMS[dx] at most, and the"
        f" 99 between, for which E[g²] has forgotten the large one, outvote it. "
        + cure("rho 0.9999", f"{long:.2f}", abs(long - 1) < min(0.1, abs(short - 1)))
        + f" Adagrad, which forgets nothing, finds {adagrad:.2f}."
    )

    (ordinary, _), (broken, clipped) = at("spike", 1.0), at("spike", 1e6)
    still = np.log(1e12) / -np.log(RHO)
    print(
        f"d. One gradient 1e6 times too large, at step {found['spike']['step']}, leaves a loss of"
        f" {broken:.4f} instead of {ordinary:.4f}: E[g²] takes {still:.0f} steps to forget it, and"
        f" the coordinates stand nearly still. "
        + cure(
            f"Clipping the norm to {CLIP:g}",
            f"{clipped:.4f}",
            clipped - ordinary < (broken - ordinary) / 10,
        )
    )

    constant, falling = found["noise"]["lines"].values()
    epochs = found["noise"]["x"][-1]
    floor = float(np.mean(constant[-(epochs // 2) :]))
    print(
        f"e. Minibatches keep the steps alive: in the second half of {epochs} epochs the loss is"
        f" {floor:.1e} above least squares on average, and {constant[-1]:.1e} at the end. "
        + cure("A learning rate that falls to 0", f"{falling[-1]:.1e}", falling[-1] < floor / 3)
    )

    every, seldom, cured = found["sparse"]["arrived"].values()
    print(
        f"f. A coordinate {DISTANCE:g} away whose gradient comes at one step of 100 goes 90 % of"
        f" the way after {seldom or 'more'} gradients, with one at every step after"
        f" {every or 'more'}: between them both averages are forgotten, and each step is a first"
        f" step. "
        + cure(
            "rho 0.999", f"{cured or 'more'}", bool(cured and (not seldom or cured < seldom / 3))
        )
    )
