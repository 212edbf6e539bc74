"""A paper estimate: what Adadelta costs for a large model on many accelerators.

Nothing here is measured. All parameters, gradients and averages are split evenly over all devices
(FSDP). A step of the optimizer reads the gradient, and reads and writes the parameter and the
averages. It cannot take less time than its bytes need at the device's memory bandwidth. A training
step takes `6 * parameters * tokens` floating-point operations, at a share of the device's peak.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from studies._lib.results import Report, markdown
from studies._lib.storages import RULES, STORAGES

PARAMETERS, DEVICES = 70_000_000_000, 256
EACH = PARAMETERS / DEVICES  # parameters on each device
TOKENS = 8192  # per device in each training step, so 2.1 million over all devices
UTILIZATION = 0.4  # of the peak, in a training step
PARAMETER_BYTES = {"bfloat16": 2, "float32": 4}  # a gradient has as many


class Chip(NamedTuple):
    """What the vendor says: bytes per second of memory, dense bfloat16 operations per second."""

    bandwidth: float
    flops: float


CHIPS = {
    "H100": Chip(3.35e12, 989e12),
    "H200": Chip(4.8e12, 989e12),
    "TPU v5e": Chip(819e9, 197e12),
    "TPU v5p": Chip(2765e9, 459e12),
}
# The case of accelerators.py whose program is compared with what is counted here.
COMPILED = {
    "float32": "(4096, 2048), four devices",
    "bfloat16": "(4096, 2048), bfloat16, stochastic_round",
}


def state_bytes(storage: str) -> int:
    """Returns the bytes of the averages of a parameter."""
    state = jax.eval_shape(RULES[storage].init, jax.ShapeDtypeStruct((1,), jnp.float32))
    return sum(leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if leaf.ndim)


def moved_bytes(dtype: str, storage: str) -> int:
    """Returns the bytes that a step of the optimizer reads and writes for each parameter."""
    return 3 * PARAMETER_BYTES[dtype] + 2 * state_bytes(storage)


def least_seconds(dtype: str, storage: str, chip: Chip) -> float:
    """Returns the time below which no step of the optimizer can be."""
    return moved_bytes(dtype, storage) * EACH / chip.bandwidth


def training_seconds(chip: Chip) -> float:
    """Returns the assumed time of a whole training step."""
    return 6 * PARAMETERS * TOKENS / (UTILIZATION * chip.flops)


def compiled_bytes(accelerators: Report, dtype: str, storage: str) -> list[float]:
    """Returns the bytes per parameter that a compiled step moves, on each card."""
    cases = [card["cases"].get(COMPILED[dtype]) for card in accelerators["cards"].values()]
    found = [case[storage] for case in cases if case and storage in case]
    return [facts["bytes"] / facts["parameters on a device"] for facts in found]


def table(accelerators: Report) -> str:
    """Returns the estimate."""
    rows = []
    for dtype, size in PARAMETER_BYTES.items():
        for storage in STORAGES:
            state = state_bytes(storage)
            held = (1e-9 * EACH * count for count in (state, 2 * size + state))
            compiled = (f"{count:.2f}" for count in compiled_bytes(accelerators, dtype, storage))
            row = [*(f"{gb:.2f}" for gb in held), f"{moved_bytes(dtype, storage)}"]
            for chip in CHIPS.values():
                least = least_seconds(dtype, storage, chip)
                row.append(f"{1e3 * least:.2f} ({100 * least / training_seconds(chip):.2g})")
            rows.append([dtype, storage, *row[:3], " / ".join(compiled), *row[3:]])
    head = ["parameters and gradients", "state", "state, GB", "all three, GB"]
    head += ["bytes per parameter of a step", f"compiled, {' / '.join(accelerators['cards'])}"]
    return markdown([*head, *(f"{name}, least ms (% of training)" for name in CHIPS)], rows)
