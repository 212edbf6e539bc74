"""Adadelta without g', the book's rescaled gradient: exercise 2 of airfoil.py.

Both the step and the average of its square can use the quotient (E[dx^2] + eps) / (E[g^2] + eps).
The step takes its root. The average does not.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from studies._lib.report import markdown
from studies._airfoil import COLORS, EPS, RHO, draw_lines, train
from optax_adadelta import adadelta

TINY = 1e-30  # An eps that shows the range of gradients of each form.
COUNTED = {"bytes accessed": "bytes", "transcendentals": "roots", "ms": "time"}


def with_g(g, e_g, e_x, rho, eps):
    """Makes one step as in the book, with g'."""
    e_g = rho * e_g + (1 - rho) * g**2
    rescaled = jnp.sqrt(e_x + eps) / jnp.sqrt(e_g + eps) * g
    return -rescaled, e_g, rho * e_x + (1 - rho) * rescaled**2


def without_g(g, e_g, e_x, rho, eps):
    """Makes one step without g', from the quotient and its root."""
    e_g = rho * e_g + (1 - rho) * g**2
    quotient = (e_x + eps) / (e_g + eps)
    return -jnp.sqrt(quotient) * g, e_g, rho * e_x + (1 - rho) * quotient * g**2


def written_out(rule, rho: float, eps: float) -> optax.GradientTransformation:
    """Returns the optimizer of a single array that makes these steps."""

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
    """Returns how the forms differ, what they cost, and which gradients they can take."""
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
        "costs": costs(2**16 if smoke else 2**22, 3 if smoke else 101),
        "range": exponent_range(),
    }


def costs(size: int, rounds: int) -> dict:
    """Returns what XLA counts for a step on one leaf, and the median time of a step.

    The forms take turns, so they are slowed down alike by whatever else the machine does.
    """
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
        counts[name] = {key: counted.get(key, 0) / size for key in list(COUNTED)[:2]}
    times = {name: [] for name in FORMS}
    for _ in range(rounds):
        for name, program in programs.items():
            begin = time.perf_counter()
            at[name] = jax.block_until_ready(program(*at[name], grads))
            times[name].append(time.perf_counter() - begin)
    medians = {name: {"ms": 1000 * float(np.median(times[name]))} for name in FORMS}
    return {"size": size, "forms": {name: counts[name] | medians[name] for name in FORMS}}


def exponent_range() -> dict:
    """Returns the first step of each form relative to the exact one, by the gradient's size."""
    g = 10.0 ** np.arange(-16, 19)
    exact = -np.sqrt(TINY) / np.sqrt((1 - RHO) * g**2 + TINY) * g
    share = {}
    for name, form in FORMS.items():
        method, g32 = form(rho=RHO, eps=TINY), jnp.asarray(g, jnp.float32)
        share[name] = (np.asarray(method.update(g32, method.init(g32))[0]) / exact).tolist()
    return {"gradients": g.tolist(), "share": share}


def draw(found: dict) -> Figure:
    """Returns the picture."""
    figure = Figure(figsize=(9.5, 3.5), dpi=120, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    draw_lines(left, range(1, found["steps"] + 1), {"largest of all parameters": found["apart"]})
    left.set(title="Updates, without g' and adadelta", xlabel="step", ylim=(0, None))
    left.set_ylabel("difference in float32 roundings")
    forms = found["costs"]["forms"]
    for place, (name, color) in enumerate(zip(forms, COLORS, strict=True)):
        shares = [forms[name][key] / (forms["adadelta"][key] or 1) for key in COUNTED]
        at = np.arange(len(COUNTED)) + 0.27 * (place - 1)
        middle.bar(at, shares, 0.25, color=color, label=name)
    middle.set_xticks(range(len(COUNTED)), COUNTED.values())
    middle.set(title="Cost of a step (lower is better)", ylabel="relative to adadelta")
    middle.set_ylim(0, 1.4 * middle.get_ylim()[1])  # Room for the legend.
    middle.spines[["top", "right"]].set_visible(False)
    middle.legend(frameon=False, fontsize=8)
    draw_lines(right, found["range"]["gradients"], found["range"]["share"])
    right.set(title=f"First step, eps {TINY:g}", xlabel="gradient", xscale="log")
    right.set(ylabel="relative to the exact step", xticks=[1e-15, 1e-5, 1e5, 1e15])
    return figure


def table(found: dict) -> str:
    """Returns what each form costs and where its first step is lost, as Markdown."""
    rows = []
    sizes, costs = found["range"]["gradients"], found["costs"]
    for name, cost in costs["forms"].items():
        shares = zip(sizes, found["range"]["share"][name], strict=True)
        lost = [g for g, share in shares if share < 0.5]
        rows.append(
            [
                name,
                f"{cost['bytes accessed']:.0f}",
                f"{cost['transcendentals']:.0f}",
                f"{cost['ms']:.1f}",
                f"{min(lost):.0e}" if lost else "none",
            ]
        )
    head = ["form", "bytes per parameter", "roots per parameter"]
    head.append(f"ms per step, {costs['size'] / 1e6:.1f}M parameters")
    return markdown([*head, f"first step lost at eps {TINY:g} for gradients from"], rows)
