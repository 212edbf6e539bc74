"""Gradients that break an Adadelta, through torch, Optax, Keras and this package.

Every optimizer gets the same gradients, rho and eps, with a learning rate of 1. Its updates are
compared with Algorithm 1 of the paper in NumPy float64. Parameters are set to zero before each
step, so the new parameter is the update itself, rounded once to its dtype. Packages that are not
installed are left out. The committed results have all of them.

Needs: pip install -e ".[peers]"
"""

import argparse
import functools
import os
import warnings

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import optax_adadelta
from studies._lib.results import Reports, Results, markdown
from studies._lib.study import Study, run

HUGE_AT = 50
NORMAL = np.random.default_rng(0).standard_normal


def exact(gradients, rho, eps):
    """Algorithm 1 in float64, written here so that the benchmark stands on its own."""
    e_g = e_x = np.zeros(gradients.shape[1])
    for g in gradients:
        e_g = rho * e_g + (1 - rho) * np.abs(g) ** 2
        dx = np.sqrt(e_x + eps) / np.sqrt(e_g + eps) * g
        e_x = rho * e_x + (1 - rho) * np.abs(dx) ** 2
        yield dx, e_g


def through_optax(optimizer, gradients, dtype):
    """The updates of an Optax optimizer, uphill so that they have the sign of the gradient."""
    zeros = jnp.zeros(gradients.shape[1], dtype)
    state = optimizer.init(zeros)
    update = jax.jit(optimizer.update)
    for g in gradients:
        dx, state = update(jnp.asarray(g, dtype), state, zeros)
        yield -np.asarray(dx), np.asarray(optax.tree_utils.tree_get(state, "e_g"))


def through_torch(gradients, rho, eps, dtype):
    """The updates of torch.optim.Adadelta, its for-loop."""
    import torch

    dtype = getattr(torch, np.dtype(dtype).name if dtype != jnp.bfloat16 else "bfloat16")
    p = torch.zeros(gradients.shape[1], dtype=dtype)
    optimizer = torch.optim.Adadelta([p], rho=rho, eps=eps, foreach=False)
    for g in gradients:
        p.zero_()
        p.grad = torch.tensor(g).to(dtype)
        optimizer.step()
        e_g = optimizer.state[p]["square_avg"]
        yield tuple(
            (x.to(torch.complex128) if x.is_complex() else x.double()).numpy().copy()
            for x in (-p, e_g)
        )


def through_keras(gradients, rho, eps, dtype):
    """The updates of keras.optimizers.Adadelta on its JAX backend."""
    import keras

    name = jnp.dtype(dtype).name
    variable = keras.Variable(np.zeros(gradients.shape[1]), dtype=name)
    optimizer = keras.optimizers.Adadelta(learning_rate=1.0, rho=rho, epsilon=eps)
    optimizer.build([variable])
    at = [v.path.endswith("accumulated_grad") for v in optimizer.variables].index(True)
    zeros, state = jnp.zeros(gradients.shape[1], dtype), [v.value for v in optimizer.variables]
    apply = jax.jit(optimizer.stateless_apply)
    for g in gradients:
        (p,), state = apply(state, [jnp.asarray(g, dtype)], [zeros])
        yield -np.asarray(p), np.asarray(state[at])


OPTIMIZERS = {
    "torch": through_torch,
    "optax": lambda g, rho, eps, dtype: through_optax(optax.adadelta(1.0, rho, eps), g, dtype),
    "keras": through_keras,
    "optax_adadelta": lambda g, rho, eps, dtype: through_optax(
        optax_adadelta.adadelta(1.0, rho, eps), g, dtype
    ),
}


def after_one(huge):
    """Ordinary gradients, one huge one, and enough ordinary ones to outlive it."""
    return np.concatenate([np.full(HUGE_AT, 0.1), [huge], np.full(2500, 0.1)])[:, None]


def steps_to_recover(made, reference):
    """Steps after the huge gradient until an update has half its size from before."""
    ordinary = np.abs(reference[HUGE_AT - 1][0][0])
    back = [np.abs(dx[0]) > ordinary / 2 for dx, _ in made[HUGE_AT + 1 :]]
    return back.index(True) + 1 if any(back) else "never"


def worst_update(made, reference):
    """The largest relative error of an update that float64 has above 1e-30."""
    return max(
        float(np.max(np.abs(dx - e) / np.where(np.abs(e) > 1e-30, np.abs(e), np.inf)))
        for (dx, _), (e, _) in zip(made, reference, strict=True)
    )


def last_average(made, reference):
    """The largest relative error of E[g^2] at the end."""
    e_g, exactly = np.real(made[-1][1]), reference[-1][1]
    return float(np.max(np.abs(e_g - exactly) / np.where(exactly > 0, exactly, 1)))


LARGEST = float(np.finfo(np.float32).max)
DROP = np.concatenate([np.ones(3000), np.full(3000, 0.1)])[:, None]
SAME = np.full((20_000, 8), 1.1) * 10.0 ** np.linspace(-6, 4, 8)
TINY = float(np.finfo(np.float32).tiny)
MANY = NORMAL((20_000, 64))
FEW = MANY[:300]
# What it is, what is measured, the gradients, rho, eps and the dtype.
HAZARDS = (
    ("ordinary gradients, 300 steps", worst_update, FEW, 0.95, 1e-6, "float32"),
    ("one gradient of 1e20", steps_to_recover, after_one(1e20), 0.9, 1e-6, "float32"),
    ("one gradient of 1e30", steps_to_recover, after_one(1e30), 0.9, 1e-6, "float32"),
    ("one of the largest float32", steps_to_recover, after_one(LARGEST), 0.9, 1e-6, "float32"),
    ("one infinite gradient", steps_to_recover, after_one(np.inf), 0.9, 1e-6, "float32"),
    ("gradients of 1e-20, eps 1e-30", worst_update, 1e-20 * FEW, 0.95, 1e-30, "float32"),
    ("gradients of 1e-17, eps 1e-33", worst_update, 1e-17 * FEW, 0.95, 1e-33, "float32"),
    ("gradients of 1e-17, eps 1e-36", worst_update, 1e-17 * FEW, 0.95, 1e-36, "float32"),
    ("gradients of 1e-17, smallest normal eps", worst_update, 1e-17 * FEW, 0.95, TINY, "float32"),
    ("eps 1e-46, zero gradients", worst_update, 0 * FEW, 0.95, 1e-46, "float32"),
    ("100,000 steps", worst_update, NORMAL((100_000, 8)), 0.95, 1e-6, "float32"),
    ("the same gradient, 20,000 steps", worst_update, SAME, 0.95, 1e-6, "float32"),
    ("rho 0.9999, 20,000 steps", last_average, MANY, 0.9999, 1e-6, "float32"),
    ("bfloat16, the drop at rho 0.99", last_average, DROP, 0.99, 1e-6, "bfloat16"),
    ("bfloat16, gradients drop tenfold", last_average, DROP, 0.999, 1e-6, "bfloat16"),
    ("float16, gradients drop tenfold", last_average, DROP, 0.999, 1e-6, "float16"),
    ("float16, eps 1e-8, zero gradients", last_average, 0 * FEW, 0.95, 1e-8, "float16"),
    ("complex, by modulus", last_average, FEW * (0.6 + 0.8j), 0.95, 1e-6, "complex64"),
    ("rho 1.5", worst_update, FEW, 1.5, 1e-6, "float32"),
    ("eps -1", worst_update, FEW, 0.95, -1.0, "float32"),
)


def rounded(gradients, dtype):
    """The gradients as the dtype holds them, in float64; infinity as the largest float."""
    g = np.asarray(jnp.asarray(gradients, dtype))
    wide = g.astype(np.complex128 if np.iscomplexobj(g) else np.float64)
    return np.nan_to_num(wide, posinf=LARGEST) if np.isinf(wide).any() else wide


def measured(run, measure, reference, allowed):
    """The error, or in words why there is none."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            made = list(run())
            if not all(np.isfinite(part).all() for step in made for part in step):
                return "never" if measure is steps_to_recover else "NaN"
            return measure(made, reference)
    except ImportError:
        return "not installed"
    except (TypeError, ValueError) as error:
        if allowed:
            raise  # This script's mistake, not the optimizer's refusal.
        return f"refused ({type(error).__name__})"


def measure(given: argparse.Namespace, results: Results) -> None:
    results.load("hazards")
    found = {}
    for name, what, gradients, rho, eps, dtype in tqdm(HAZARDS, desc="Hazards", unit="hazard"):
        dtype = jnp.dtype(dtype)
        g = gradients[:100] if given.smoke else gradients
        with np.errstate(all="ignore"):
            reference = list(exact(rounded(g, dtype), rho, eps))
        row = {"measured": what.__doc__.rstrip(".")}
        if what is steps_to_recover:
            row["float64"] = what(reference, reference)
        for optimizer, steps in OPTIMIZERS.items():
            made = functools.partial(steps, g, rho, eps, dtype)
            row[optimizer] = measured(made, what, reference, 0 <= rho < 1 and eps > 0)
        found[name] = row
    results.save("hazards", {**results.made, "results": found})


def tables(reports: Reports) -> dict[str, str]:
    columns = ("float64", *OPTIMIZERS)
    found = reports["hazards"]["results"]
    rows = [[name, *(cell(row.get(c)) for c in columns)] for name, row in found.items()]
    return {"hazards": markdown(["hazard", *columns], rows)}


def cell(result: float | int | str | None) -> str:
    """Returns an error with one digit, a number of steps as such."""
    if isinstance(result, float):
        return f"{result:.0e}"
    return f"{result:,} steps" if isinstance(result, int) else result or ""


STUDY = Study("hazards", __doc__, "numerics", measure, tables)

if __name__ == "__main__":
    run(STUDY)
