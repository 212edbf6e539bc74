"""A paper estimate: what Adadelta costs for a large model on many accelerators.

Nothing here is measured. All parameters, gradients and averages are split evenly over all devices
(FSDP). A step of the optimizer reads the gradient, and reads and writes the parameter and the
averages. It cannot take less time than its bytes need at the device's memory bandwidth. A training
step takes `6 * parameters * tokens` floating-point operations, at a share of the device's peak.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from studies._lib.results import markdown
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


def table() -> str:
    """Returns the estimate."""
    rows = []
    for dtype, size in PARAMETER_BYTES.items():
        for storage in STORAGES:
            state = state_bytes(storage)
            held = [f"{1e-9 * EACH * count:.2f}" for count in (state, 2 * size + state)]
            times = [f"{1e3 * least_seconds(dtype, storage, chip):.2f}" for chip in CHIPS.values()]
            rows.append([f"{dtype}, {storage}", *held, f"{moved_bytes(dtype, storage)}", *times])
    head = ["parameters, state", "state, GB", "all three, GB", "bytes of a step"]
    return markdown([*head, *(f"{name}, ms" for name in CHIPS)], rows)
