"""How long a step of Adadelta takes in this package, Optax, Keras on JAX and torch.

A step is the update and its application, with parameters and state donated. The packages take turns
in one process, with a floor: the bytes of the step at the speed at which JAX adds one to a large
array in place. Packages that are not installed are left out. It takes fifteen minutes and 12 GB.

The results also have torch's training step, which is measured no more. It took a quarter longer
than with this package.

Needs: pip install -e ".[peers]"
"""

import argparse
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from studies._lib import cases
from studies._lib.cases import CASES, SMOKE, Shape
from studies._lib.contenders import (
    bound,
    donated,
    eager,
    gradients_of,
    of_keras,
    of_optax,
    of_torch,
)
from studies._lib.models import perceptron
from studies._lib.results import Report, Reports, Results, markdown, said
from studies._lib.storages import RULES as ALL
from studies._lib.study import Study, run
from studies._lib.timing import Contender, in_turns

RULES = {"optax_adadelta": ALL["float32"], "optax": ALL["optax"]}
WHO = ("optax_adadelta", "optax", "keras", "torch for-loop", "torch foreach", "torch compiled")
WHO += ("floor",)
# torch writes and compiles a kernel a tree, which for hundreds of leaves takes many minutes.
LEAVES_COMPILED = 170
FEW = 1000  # parameters, of which nanoseconds per parameter say nothing
BYTES = 28  # per parameter: the gradient read; the parameter and two averages read and written
SMALL = 1e6  # parameters, below which a step is also made without jit
BATCH = 100


def contenders(setting: str, gradients: list[np.ndarray]) -> dict[str, Contender]:
    """Returns the contenders of that setting, "alone" or "eager"."""
    made: dict[str, Contender] = {}
    for name, rule in RULES.items():
        if setting == "eager":
            made[name] = eager(rule, gradients, apply=True)
            made[f"{name}, update alone"] = eager(rule, gradients, apply=False)
        else:
            made[name] = of_optax(rule, gradients)
    if setting == "alone" and find_spec("keras"):
        made["keras"] = of_keras(gradients)
    if find_spec("torch"):
        compiled = setting == "alone" and len(gradients) <= LEAVES_COMPILED
        for mode in ("for-loop", "foreach", *["compiled"] * compiled):
            made[f"torch {mode}"] = of_torch(gradients, mode)
    return made


def measure_case(shapes: list[Shape], rounds: int) -> Report:
    """Returns the measurements of one tree."""
    gradients = gradients_of(shapes)
    size = sum(g.size for g in gradients)
    report: Report = {"floor is": "adding one to a large array"}
    for setting in ("alone", *["eager"] * (size < SMALL)):
        steps = {**contenders(setting, gradients), "floor": bound(BYTES * size)}
        report[setting] = in_turns(steps, rounds, samples=3 if size > SMALL else 20)
        del steps
        jax.clear_caches()
    return report


def trainers(sizes: tuple[int, ...]) -> dict[str, Contender]:
    """Returns the training steps of a network, and the gradients alone."""
    model, rng = perceptron(*sizes), np.random.default_rng(0)
    params = jax.device_get(model.init(jax.random.key(0)))
    images = rng.standard_normal((BATCH, sizes[0])).astype(np.float32)
    labels = rng.integers(0, sizes[-1], BATCH)

    def loss(params, images, labels):
        scores = model.apply(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    def trained(rule: optax.GradientTransformation) -> Contender:
        def step(params, state, *data):
            grads = jax.grad(loss)(params, *data)
            updates, state = rule.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        given = jax.tree.map(jnp.array, params)
        return donated(step, given, rule.init(given), images, labels)

    def gradients(params, grads, *data):
        del grads  # The parameters are not changed, so the gradients go where a state would.
        return params, jax.grad(loss)(params, *data)

    steps = {name: trained(rule) for name, rule in RULES.items()}
    given, zeros = (jax.tree.map(f, params) for f in (jnp.array, jnp.zeros_like))
    return {**steps, "jax, gradients alone": donated(gradients, given, zeros, images, labels)}


def measure(given: argparse.Namespace, results: Results) -> None:
    sizes, rounds = ((8, 6, 4), 2) if given.smoke else ((784, 500, 300, 10), given.rounds)
    chosen = SMOKE if given.smoke else {name: CASES[name] for name in given.cases}
    trained = in_turns(trainers(sizes), rounds, samples=20)
    cases.measure_each(
        "step", chosen, lambda shapes: measure_case(shapes, rounds), results, training=trained
    )


def nanoseconds(case: Report, setting: str, who: str) -> float:
    """Returns the nanoseconds per parameter of a step."""
    return 1e9 * case[setting][who]["seconds"] / case["parameters"]


def sizeable(report: Report) -> dict[str, Report]:
    """Returns the cases with parameters enough to speak of nanoseconds per parameter."""
    return {name: case for name, case in report["cases"].items() if case["parameters"] >= FEW}


def versions(reports: Reports) -> dict[str, Report]:
    """Returns the reports by their versions of JAX."""
    return {f"jax {report['versions']['jax']}": report for report in reports.values()}


def ratios_table(reports: Reports) -> str:
    """Returns how many times as fast as Optax a step is, and the nanoseconds of the newest JAX."""
    found = {version: sizeable(report) for version, report in versions(reports).items()}
    newest, rows = list(found)[-1], []
    who = ("optax_adadelta", "optax", "floor")
    for name, case in found[newest].items():
        steps = [cases[name]["alone"] for cases in found.values()]
        faster = [s["optax"]["seconds"] / s["optax_adadelta"]["seconds"] for s in steps]
        ns = [nanoseconds(case, "alone", w) for w in who]
        rows.append([name, *(f"{f:.1f}" for f in faster), *(f"{n:.2f}" for n in ns)])
    head = [f"times as fast as Optax, {version}" for version in found]
    return markdown(["case", *head, *(f"{w}, ns" for w in who)], rows)


def step_table(report: Report) -> str:
    """Returns nanoseconds per parameter of everyone."""
    found = sizeable(report)
    who = [w for w in WHO if any(w in case["alone"] for case in found.values())]
    rows = [
        [name, *(f"{nanoseconds(case, 'alone', w):.2f}" if w in case["alone"] else "" for w in who)]
        for name, case in found.items()
    ]
    return markdown(["case", *who], rows)


COLUMNS = (
    ("peak, MB", "peak bytes", 1e-6, ".0f"),
    ("bytes", "bytes per parameter", 1, ".0f"),
    ("scratch", "scratch bytes per parameter", 1, ".0f"),
    ("loops", "kernels", 1, "d"),
    ("trace, s", "trace", 1, ".2f"),
    ("lower, s", "lower", 1, ".2f"),
    ("compile, s", "compile", 1, ".2f"),
)


def program_table(report: Report) -> str:
    """Returns what the compiled programs are, ours before optax's."""
    rows = []
    for name, case in report["cases"].items():
        both = [case["alone"][who] for who in RULES]
        cells = [
            " / ".join(
                "?" if facts[key] is None else f"{scale * facts[key]:{form}}" for facts in both
            )
            for _, key, scale, form in COLUMNS
        ]
        rows.append([name, *cells])
    return markdown(["case", *(head for head, *_ in COLUMNS)], rows)


def seconds_table(measured: dict[str, Report]) -> str:
    """Returns the milliseconds of each version of JAX."""
    who = {name: None for steps in measured.values() for name in steps if name != "floor"}
    rows = [
        [w, *(f"{1e3 * s[w]['seconds']:.2f}" if w in s else "" for s in measured.values())]
        for w in who
    ]
    return markdown(["ms", *measured], rows)


def tables(reports: Reports) -> dict[str, str]:
    found = versions(reports)
    small = {
        version: next(case["eager"] for case in report["cases"].values() if "eager" in case)
        for version, report in found.items()
    }
    every = [f"{said(r, 'keras', 'torch')}.\n\n{step_table(r)}" for r in found.values()]
    return {
        "steps": ratios_table(reports),
        "every step": "\n\n".join(every),
        "programs": program_table(list(found.values())[-1]),
        "training": seconds_table({v: report["training"] for v, report in found.items()}),
        "eager": seconds_table(small),
    }


def draw(reports: Reports) -> dict[str, Figure]:
    """Draws the times of the JAX with which most packages were timed."""
    report = max(reports.values(), key=lambda report: len(report["versions"]))
    found = sizeable(report)
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    panel = figure.subplots()
    styles = dict(zip(WHO, ("DC3", "oC0", "sC4", "^C1", "vC8", "PC2", "|black"), strict=True))
    for place, (who, style) in enumerate(styles.items()):
        off, size = (0, 420) if who == "floor" else (0.09 * (place - 2.5), 60)
        points = [
            (nanoseconds(case, "alone", who), i + off)
            for i, case in enumerate(found.values())
            if who in case["alone"]
        ]
        if points:
            x, y = zip(*points, strict=True)
            panel.scatter(x, y, size, style[1:], marker=style[0], label=who, zorder=3)
    ticks = [0.3, 0.5, 1, 2, 3, 5, 10]
    panel.set(xscale="log", xlim=(0.25, 12))
    panel.set_xlabel("nanoseconds per parameter, median (left is better)", fontsize=12)
    panel.set_yticks(range(len(found)), found, fontsize=12)
    panel.set_xticks(ticks, [str(t) for t in ticks], fontsize=12)
    panel.minorticks_off()
    panel.grid(axis="x", alpha=0.4)
    cores = report["machine"].split(",")[1].strip()
    panel.set_title(f"jax {report['versions']['jax']}, CPU, {cores}")
    panel.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=12)
    return {"step": figure}


STUDY = Study(
    "step",
    __doc__,
    "performance",
    measure,
    tables,
    draw,
    options=lambda parser: cases.options(parser, rounds=15),
    files="step-cpu-*",
)

if __name__ == "__main__":
    run(STUDY)
