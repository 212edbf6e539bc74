"""A paper estimate: what Adadelta costs for a large model on many accelerators.

Nothing here is measured. All parameters, gradients and averages are split evenly over all devices
(FSDP). A step of the optimizer reads the gradient, and reads and writes the parameter and the two
averages. It cannot take less time than its bytes need at the device's memory bandwidth. A training
step takes `6 * parameters * tokens` floating-point operations, at a share of the device's peak.
"""

from typing import Any, NamedTuple

from studies._lib.report import markdown

PARAMETERS = 70_000_000_000
DEVICES = 256
TOKENS = 8192  # per device in each training step, so 2.1 million over all devices
UTILIZATION = 0.4  # of the peak, in a training step
PARAMETER_BYTES = {"bfloat16": 2, "float32": 4}  # a gradient has as many
STATE_BYTES = {"float32": 8, "16 bits": 4, "8 bits": 2}  # both averages of a parameter


class Chip(NamedTuple):
    """What the vendor says of a chip.

    Attributes:
      bandwidth: bytes per second of its memory.
      memory: its bytes.
      flops: dense bfloat16 operations per second.
    """

    bandwidth: float
    memory: float
    flops: float


CHIPS = {
    "H100": Chip(3.35e12, 80e9, 989e12),
    "H200": Chip(4.8e12, 141e9, 989e12),
    "TPU v5e": Chip(819e9, 16e9, 197e12),
    "TPU v5p": Chip(2765e9, 95e9, 459e12),
}


def state_bytes(storage: str) -> float:
    """Returns the bytes of state on each device."""
    return STATE_BYTES[storage] * PARAMETERS / DEVICES


def held_bytes(dtype: str, storage: str) -> float:
    """Returns the bytes of parameters, gradients and state on each device."""
    return 2 * PARAMETER_BYTES[dtype] * PARAMETERS / DEVICES + state_bytes(storage)


def bytes_per_parameter(dtype: str, storage: str) -> int:
    """Returns the bytes that a step of the optimizer reads and writes for each parameter."""
    gradient = parameter = PARAMETER_BYTES[dtype]
    return gradient + 2 * parameter + 2 * STATE_BYTES[storage]


def step_bytes(dtype: str, storage: str) -> float:
    """Returns the bytes that a step of the optimizer reads and writes on each device."""
    return bytes_per_parameter(dtype, storage) * PARAMETERS / DEVICES


def least_seconds(dtype: str, storage: str, chip: Chip) -> float:
    """Returns the time below which no step of the optimizer can be."""
    return step_bytes(dtype, storage) / chip.bandwidth


def training_seconds(chip: Chip) -> float:
    """Returns the assumed time of a whole training step."""
    return 6 * PARAMETERS * TOKENS / (UTILIZATION * chip.flops)


def fsdp_bytes(dtype: str) -> float:
    """Returns the bytes that FSDP sends from each device in a training step.

    It gathers the parameters for the forward and again for the backward pass, and reduces and
    scatters the gradients. In each of the three, a device sends all but its own part once.
    """
    return 3 * PARAMETER_BYTES[dtype] * PARAMETERS * (DEVICES - 1) / DEVICES


def memory_table() -> str:
    """Returns bytes on each device and times, for each type of parameters and storage."""
    rows = []
    for dtype in PARAMETER_BYTES:
        for storage in STATE_BYTES:
            least = (1e3 * least_seconds(dtype, storage, chip) for chip in CHIPS.values())
            rows.append(
                [
                    dtype,
                    storage,
                    f"{1e-9 * state_bytes(storage):.2f}",
                    f"{1e-9 * held_bytes(dtype, storage):.2f}",
                    f"{bytes_per_parameter(dtype, storage)}",
                    f"{1e-9 * step_bytes(dtype, storage):.2f}",
                    *(f"{ms:.2f}" for ms in least),
                ]
            )
    head = ["parameters and gradients", "state", "state, GB", "all three, GB"]
    head += ["bytes per parameter of a step", "GB of a step", *(f"{c}, least ms" for c in CHIPS)]
    return markdown(head, rows)


# The case of accelerators.py whose program a row of the table below is compared with.
COMPILED = {
    "float32": "(4096, 2048), four devices",
    "bfloat16": "(4096, 2048), bfloat16, stochastic_round",
}


def compiled_table(accelerators: dict[str, Any]) -> str:
    """Returns the bytes per parameter that were counted, and those of the compiled programs."""
    rows = []
    for dtype, case in COMPILED.items():
        for storage in STATE_BYTES:
            row = [case, storage, f"{bytes_per_parameter(dtype, storage)}"]
            for found in accelerators["cards"].values():
                facts = found["cases"][case][storage]
                row.append(f"{facts['bytes'] / facts['parameters on a device']:.2f}")
            rows.append(row)
    return markdown(["leaf", "state", "counted", *accelerators["cards"]], rows)


def share_table() -> str:
    """Returns which part of a training step the optimizer's bound is."""
    rows = []
    for name, chip in CHIPS.items():
        whole = training_seconds(chip)
        shares = (least_seconds("bfloat16", storage, chip) / whole for storage in STATE_BYTES)
        figures = (1e-12 * chip.bandwidth, 1e-9 * chip.memory, 1e-12 * chip.flops)
        rows.append([name, *(f"{n:.4g}" for n in figures), f"{whole:.1f}"])
        rows[-1] += [f"{100 * share:.2g}" for share in shares]
    head = ["chip", "memory, TB/s", "memory, GB", "peak bfloat16, TFLOP/s", "assumed step, s"]
    return markdown([*head, *(f"% of it, {storage}" for storage in STATE_BYTES)], rows)


def tables(accelerators: dict[str, Any]) -> str:
    """Returns the whole estimate as Markdown."""
    each = PARAMETERS / DEVICES
    between = " and ".join(
        f"{1e-9 * fsdp_bytes(dtype):.0f} GB in {dtype}" for dtype in PARAMETER_BYTES
    )
    return "\n\n".join(
        [
            f"An estimate, not a measurement: {1e-9 * PARAMETERS:.0f}B parameters with FSDP over"
            f" {DEVICES} accelerators, so {1e-6 * each:.1f}M parameters on each device.",
            memory_table(),
            "Bytes per parameter that were counted for the table above, and those of programs"
            f" compiled for two chips (jax {accelerators['versions']['jax']}):",
            compiled_table(accelerators),
            "Bytes that each device sends to others in a training step: 0 for the optimizer. FSDP"
            f" itself sends {between}.",
            f"The least time of the optimizer's step with bfloat16 parameters, as a part of a"
            f" training step with {TOKENS} tokens per device at {100 * UTILIZATION:.0f} % of the"
            " peak:",
            share_table(),
        ]
    )
