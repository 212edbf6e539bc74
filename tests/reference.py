"""An independent Adadelta in NumPy, to compare with: it uses nothing of the package."""

from typing import NamedTuple

import numpy as np


class Step(NamedTuple):
    """The results of one step of Algorithm 1, each of the gradient's shape."""

    dx: np.ndarray
    e_g: np.ndarray
    e_x: np.ndarray


def one_step(g, e_g, e_x, rho, eps):
    """The step that Algorithm 1 makes from these averages."""
    e_g = rho * e_g + (1 - rho) * np.abs(g) ** 2
    dx = -np.sqrt(e_x + eps) / np.sqrt(e_g + eps) * g
    return Step(dx, e_g, rho * e_x + (1 - rho) * np.abs(dx) ** 2)


def algorithm_1(gradients, rho=0.95, eps=1e-6):
    """The steps of Zeiler's Algorithm 1 on these gradients, in float64, by modulus if complex.

    `rho` and `eps` may be numbers or functions of the step. As in the paper, `dx` descends.
    """
    gradients = np.asarray(gradients)
    gradients = gradients.astype(np.result_type(gradients.dtype, np.float64))
    e_g = e_x = np.zeros(gradients.shape[1:])
    for t, g in enumerate(gradients):
        rho_t = rho(t) if callable(rho) else rho
        eps_t = eps(t) if callable(eps) else eps
        step = one_step(g, e_g, e_x, rho_t, eps_t)
        e_g, e_x = step.e_g, step.e_x
        yield step


def gradients(kind, steps, size, seed=0):
    """Float32-representable gradients, random or made to be hard, as (steps, size) float64."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((steps, size))
    t = np.arange(steps)[:, None]
    made = {
        "normal": normal,
        "scales": normal * 10.0 ** np.linspace(-8, 8, size),
        "constant": np.ones((steps, 1)) * np.linspace(-2, 2, size),
        "alternating": (-1.0) ** t * np.abs(normal[:1]),
        "sparse": normal * (rng.random((steps, size)) < 0.02),
        "bursts": normal * np.where(t % 40 == 0, 1e6, 1e-3),
        "growing": normal * 1.1**t,
        "dying": normal * 0.9**t,
        "zero": 0 * normal,
    }[kind]
    return made.astype(np.float32).astype(np.float64)


KINDS = "normal scales constant alternating sparse bursts growing dying zero".split()


def root_mean_squares(arrays):
    """The scale of each array: its own, the others' mean if it is zero, 0.3 if all are zero."""
    arrays = [np.asarray(a).astype(np.result_type(a.dtype, np.float64)) for a in arrays]
    scales = [np.sqrt(np.mean(np.abs(a) ** 2)) for a in arrays]
    known = [scale for scale in scales if scale]
    mean = np.prod(known) ** (1 / len(known)) if known else 0.3
    return [scale or mean for scale in scales]


def relative(gradients, scale, rho=0.95, eps=1e-5, k=1e-16, momentum=0.9, nesterov=True):
    """Algorithm 1 on `y = x / scale` in float64, then momentum; the results are those of `x`."""
    gradients = np.asarray(gradients)
    gradients = gradients.astype(np.result_type(gradients.dtype, np.float64))
    e_g = e_y = trace = np.zeros(gradients.shape[1:])
    for g in gradients:
        g_y = scale * g
        e_g = rho * e_g + (1 - rho) * np.abs(g_y) ** 2
        dy = -np.sqrt(e_y + eps) / np.sqrt(e_g + k) * g_y
        e_y = rho * e_y + (1 - rho) * np.abs(dy) ** 2
        trace = momentum * trace + dy
        update = dy + momentum * trace if nesterov else trace
        yield Step(scale * update, e_g / scale**2, scale**2 * e_y)
