"""What it costs to clamp gradients to the largest value whose square is finite.

A step with and without the clamp, in turns in one process. A step is the update and its
application, with parameters and state donated.

    pip install -e ".[examples]" && python -m studies.overflow_guard
"""

import functools
import statistics
import time
from unittest import mock

import jax
import jax.numpy as jnp
import optax
from tqdm import trange

from studies._lib.report import RESULTS, check_writable, options, provenance, run, save
from optax_adadelta import _equation, adadelta


def stepper(size: int, guarded: bool):
    """Returns a function that makes one step and waits for it."""
    optimizer = adadelta()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, grads = jnp.ones(size), jnp.full(size, 0.1)
    state = optimizer.init(params)
    guard = _equation.clip_to_squarable if guarded else lambda g: (g, jnp.square(g))
    jax.clear_caches()
    with mock.patch.object(_equation, "clip_to_squarable", guard):
        carry = [step.lower(params, state, grads).compile(), params, state]

    def once() -> float:
        start = time.perf_counter()
        carry[1:] = jax.block_until_ready(carry[0](carry[1], carry[2], grads))
        return time.perf_counter() - start

    return once


def main() -> None:
    """Reads the options, measures, writes, and prints the results."""
    parser = options(__spec__.name, __doc__, "overflow_guard-jax-VERSION.json")
    add = parser.add_argument
    add("--size", type=int, default=8_000_000, help="parameters (default: %(default)s)")
    add("--steps", type=int, default=60, help="steps of each (default: %(default)s)")
    given = parser.parse_args()
    size, steps = (1000, 3) if given.smoke else (given.size, given.steps)

    output = given.output or RESULTS / f"overflow_guard-jax-{jax.__version__}.json"
    check_writable(output)
    steppers = {"with": stepper(size, True), "without": stepper(size, False)}
    for once in steppers.values():
        once()
    times = {name: [] for name in steppers}
    for _ in trange(steps, desc="Steps", unit="step"):
        for name, once in steppers.items():
            times[name].append(once())
    nanoseconds = {name: 1e9 * statistics.median(t) / size for name, t in times.items()}
    quartiles = {
        name: [1e9 * q / size for q in statistics.quantiles(t, n=4)[::2]]
        for name, t in times.items()
    }
    report = {
        **provenance(parser, given),
        "nanoseconds per parameter": nanoseconds,
        "quartiles": quartiles,
        "ratio": nanoseconds["with"] / nanoseconds["without"],
    }
    save(output, report)
    for name, median in nanoseconds.items():
        low, high = quartiles[name]
        print(f"{name} the guard: {median:.2f} ns per parameter, quartiles {low:.2f} to {high:.2f}")
    print(f"With the guard a step takes {report['ratio']:.3f} times as long. Results: {output}")


if __name__ == "__main__":
    run(main)
