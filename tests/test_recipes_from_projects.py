"""The recipes of docs/recipes_from_projects.md against what each project does, step by step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import recipes
from reference import one_step

from optax_adadelta.diagnostics import find_state

pytestmark = pytest.mark.scripts

STEPS, SIZE = 40, 16
CURVATURE = 10.0 ** np.linspace(-2, 2, SIZE)
NOISE = np.random.default_rng(0).standard_normal((STEPS, SIZE))
# Schedules of Optax are float32, and so is eps; parameters pass through zero.
CLOSE = dict(rtol=2e-6, atol=1e-7)


class Original(NamedTuple):
    """The settings of a project, and the number of steps made before those compared."""

    rho: float = 0.9
    eps: float = 1e-6
    clip: float = np.inf
    rate: callable = lambda step: 1.0
    before: int = 0


ORIGINALS = {
    "PyTorch's MNIST example": Original(
        rate=lambda step: 0.7 ** ((step - 1) // 938), before=2 * 938 - 20
    ),
    "CRNN": Original(),
    "deep-text-recognition-benchmark": Original(0.95, 1e-8, clip=5.0),
    "ESPnet": Original(0.95, 1e-8, clip=5.0),
    "OpenNMT-py": Original(
        clip=5.0,
        rate=lambda step: 0.5 ** (max(step - 50_000 + 10_000, 0) // 10_000),
        before=50_000 - 20,
    ),
    "H2O": Original(0.99, 1e-8),
    "Keras": Original(0.95, 1e-7, rate=lambda step: 0.001),
    "Dive into Deep Learning": Original(eps=1e-5),
}


@pytest.fixture(scope="module")
def sections():
    found = recipes.run("recipes_from_projects.md")
    assert list(found)[1:] == list(ORIGINALS)
    return found


def clipped(g, limit):
    return g * min(1.0, limit / (np.linalg.norm(g) + 1e-6))


def path_of(optimizer, before):
    """The parameters after each step, from the given count on, in float64."""
    x = jnp.ones(SIZE, jnp.float64)
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(x)
        count = jnp.int32(before)
        state = optax.tree.set(state, count=count)
        update = jax.jit(optimizer.update)
        for noise in NOISE:
            updates, state = update(jnp.asarray(CURVATURE * np.asarray(x) + noise), state, x)
            x = optax.apply_updates(x, updates)
            yield np.asarray(x)
    assert find_state(state).count == before + STEPS


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ORIGINALS)
def test_a_recipe_makes_the_steps_of_its_original(sections, name):
    names = sections[name]
    rho, eps, clip, rate, before = ORIGINALS[name]
    x, e_g, e_x, norms = np.ones(SIZE), np.zeros(SIZE), np.zeros(SIZE), []
    for t, found in enumerate(path_of(names["optimizer"], before)):
        g = CURVATURE * x + NOISE[t]
        norms.append(np.linalg.norm(g))
        dx, e_g, e_x = one_step(clipped(g, clip), e_g, e_x, rho, eps)
        x = x + rate(before + t + 1) * dx
        np.testing.assert_allclose(found, x, **CLOSE)
    assert np.isinf(clip) or max(norms) > clip
    rates = {rate(before + t + 1) for t in range(STEPS)}
    assert len(rates) == (2 if before else 1)


@pytest.mark.usefixtures("x64")
def test_a_run_of_espnet_lowers_eps_goes_back_and_skips_a_gradient_that_is_nan(sections):
    """Accuracies that never repeat, because ESPnet takes a tie for an improvement."""
    names = sections["ESPnet"]
    optimizer, plateau = names["optimizer"], names["plateau"]
    accuracies = np.random.default_rng(1).permutation(8) / 10
    params, x = jnp.ones(SIZE, jnp.float64), np.ones(SIZE)
    e_g, e_x, eps, best, lowered = np.zeros(SIZE), np.zeros(SIZE), 1e-8, (-1.0,), 0
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(params)
        watch = plateau.init((params, state))
        update = jax.jit(optimizer.update)
        for t, accuracy in enumerate(np.repeat(accuracies, 4)):
            g = CURVATURE * x + NOISE[t]
            if t % 8 == 5:
                g = g * np.where(np.arange(SIZE) == 3, np.nan, 1.0)
            else:
                dx, e_g, e_x = one_step(clipped(g, 5.0), e_g, e_x, 0.95, eps)
                x = x + dx
            updates, state = update(jnp.asarray(g), state, params)
            params = optax.apply_updates(params, updates)
            np.testing.assert_allclose(params, x, **CLOSE)
            if t % 4 < 3:
                continue
            if accuracy > best[0]:
                best = accuracy, x, e_g, e_x
            elif eps > 1e-12:
                _, x, e_g, e_x = best
                eps, lowered = max(0.01 * eps, 1e-12), lowered + 1
            (params, state), watch = plateau.update((params, state), watch, value=accuracy)
            found = optax.tree.get(state, "eps")
            np.testing.assert_allclose(found, eps, rtol=1e-6)
            np.testing.assert_allclose(params, x, **CLOSE)
    assert lowered == 2
