"""Adadelta without g', the paper's rescaled gradient: exercise 2 of airfoil.py.

The step and the average of its square can do with one quotient, (E[dx^2] + eps) / (E[g^2] + eps),
of which the step takes the root and the average does not.
"""

import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments._airfoil import COLORS, EPS, RHO, draw_lines, train
from optax_adadelta import adadelta

TINY = 1e-30  # An eps to see what gradients the forms can take.
COUNTED = {"bytes accessed": "bytes", "flops": "flops", "transcendentals": "roots", "ms": "ms"}


def with_g(g, e_g, e_x, rho, eps):
    """One step as in the book, by way of g'."""
    e_g = rho * e_g + (1 - rho) * g**2
    rescaled = jnp.sqrt(e_x + eps) / jnp.sqrt(e_g + eps) * g
    return -rescaled, e_g, rho * e_x + (1 - rho) * rescaled**2


def without_g(g, e_g, e_x, rho, eps):
    """One step without g': a quotient, and its root where the gradient is multiplied."""
    e_g = rho * e_g + (1 - rho) * g**2
    quotient = (e_x + eps) / (e_g + eps)
    return -jnp.sqrt(quotient) * g, e_g, rho * e_x + (1 - rho) * quotient * g**2


def written_out(rule, rho: float, eps: float) -> optax.GradientTransformation:
    """Returns the optimizer of one array that one of the two functions above makes."""

    def update(g, state, w=None):
        del w
        updates, *state = rule(g, *state, rho, eps)
        return updates, tuple(state)

    return optax.GradientTransformation(lambda w: (jnp.zeros_like(w), jnp.zeros_like(w)), update)


FORMS = {
    "adadelta": adadelta,
    "with g'": partial(written_out, with_g),
    "without g'": partial(written_out, without_g),
}


def run(data, seeds: int, epochs: int, smoke: bool) -> dict:
    """Returns how the forms differ, what they cost, and what gradients they take."""
    shape = (100, 100) if smoke else (1000, 1000)
    grads = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    updates, final = {}, {}
    for name, form in FORMS.items():
        method = form(rho=RHO, eps=EPS)
        scan = partial(jax.lax.scan, lambda state, g, method=method: method.update(g, state)[::-1])
        updates[name] = np.asarray(jax.jit(scan)(method.init(grads[0]), grads)[1], np.float64)
        settings = {"rho": [RHO], "eps": [EPS]}
        final[name] = train(form, settings, data, seeds, epochs)[0, :, -1].tolist()
    apart = abs(updates["without g'"] / updates["adadelta"] - 1) / np.finfo(np.float32).eps
    return {
        "steps": shape[0],
        "apart": apart.max(axis=1).tolist(),
        "final": final,
        "costs": costs(2**16 if smoke else 2**22, 3 if smoke else 51),
        "range": exponent_range(),
    }


def costs(size: int, rounds: int) -> dict:
    """Returns what XLA counts for a step on one leaf, and the median time of steps in turns."""
    grads = jnp.asarray(np.random.default_rng(1).normal(size=size), jnp.float32)
    programs, at, counts = {}, {}, {}
    for name, form in FORMS.items():
        method = form(rho=RHO, eps=EPS)

        def step(w, state, grads, method=method):
            updates, state = method.update(grads, state)
            return w + updates, state

        at[name] = (jnp.zeros(size), method.init(grads))
        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*at[name], grads).compile()
        programs[name], counted = compiled, compiled.cost_analysis()
        counts[name] = {key: counted.get(key, 0) / size for key in list(COUNTED)[:3]}
    times = {name: [] for name in FORMS}
    for _ in range(rounds):
        for name, program in programs.items():
            begin = time.perf_counter()
            at[name] = jax.block_until_ready(program(*at[name], grads))
            times[name].append(time.perf_counter() - begin)
    medians = {name: {"ms": 1000 * float(np.median(times[name]))} for name in FORMS}
    return {"size": size, "forms": {name: counts[name] | medians[name] for name in FORMS}}


def exponent_range() -> dict:
    """Returns the first step of each form, as a share of the exact one, by the gradient's size."""
    g = 10.0 ** np.arange(-16, 19)
    exact = -np.sqrt(TINY) / np.sqrt((1 - RHO) * g**2 + TINY) * g
    share = {}
    for name, form in FORMS.items():
        method, g32 = form(rho=RHO, eps=TINY), jnp.asarray(g, jnp.float32)
        share[name] = (np.asarray(method.update(g32, method.init(g32))[0]) / exact).tolist()
    return {"gradients": g.tolist(), "share": share}


def draw(found: dict, output: Path) -> None:
    """Writes the picture."""
    figure = Figure(figsize=(9.5, 3.5), dpi=120, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    draw_lines(left, range(1, found["steps"] + 1), {"largest of all coordinates": found["apart"]})
    left.set(title="Updates with and without g'", xlabel="step", ylim=(0, None))
    left.set_ylabel("difference, in float32's rounding")
    forms = found["costs"]["forms"]
    for place, (name, color) in enumerate(zip(forms, COLORS, strict=True)):
        shares = [forms[name][key] / (forms["adadelta"][key] or 1) for key in COUNTED]
        middle.bar(np.arange(4) + 0.27 * (place - 1), shares, 0.25, color=color, label=name)
    middle.set_xticks(range(4), ["bytes", "flops", "roots", "time"])
    middle.set(title="Cost of a step", ylabel="share of adadelta's", ylim=(0, 1.5))
    middle.spines[["top", "right"]].set_visible(False)
    middle.legend(frameon=False, fontsize=8)
    draw_lines(right, found["range"]["gradients"], found["range"]["share"])
    right.set(title=f"First step, eps {TINY:g}", xlabel="gradient", xscale="log")
    right.set(ylabel="share of the exact one", xticks=[1e-15, 1e-5, 1e5, 1e15])
    figure.savefig(output)


def tell(found: dict) -> None:
    """Prints what came out."""
    trained = np.ptp([found["final"]["adadelta"], found["final"]["without g'"]], axis=0).max()
    costs = found["costs"]["forms"]
    less = [costs["without g'"][key] < costs["with g'"][key] for key in COUNTED]
    verdict = "cheaper" if all(less) else "cheaper in part" if any(less) else "not cheaper"
    words = [
        f"{name}: " + ", ".join(f"{unit} {cost[key]:.3g}" for key, unit in COUNTED.items())
        for name, cost in costs.items()
    ]
    sizes, share = found["range"]["gradients"], found["range"]["share"]["without g'"]
    lost = [g for g, kept in zip(sizes, share, strict=True) if kept < 0.5]
    steps, size = found["steps"], found["costs"]["size"]
    print(
        f"2. Without g' the updates differ from adadelta's by at most {max(found['apart']):.0f}"
        f" times the rounding of float32 in {steps} steps and the final losses by {trained:.0e},"
        f" and a step is {verdict} here than with g' written out (for a coordinate, and in ms for"
        f" {size}; {'; '.join(words)}). But the quotient underflows where roots do not: at eps"
        f" {TINY:g} the first step"
        + (f" is lost for gradients from {min(lost):.0e} on." if lost else " is kept here.")
    )
