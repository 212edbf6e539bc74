"""Compilers and device descriptions for the GPU and the TPU, which need not be there."""

import importlib.metadata
import importlib.util
import os

import jaxlib
import numpy as np
from jax.experimental import topologies

# The packages that hold each card's compiler.
CARDS = {"H100": ("jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12"), "TPU v5e": ("libtpu",)}
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def problem(card: str) -> str | None:
    """Returns why nothing can be compiled for this card, or None if it can."""
    for package in CARDS[card]:
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return f"{package}, the compiler for {card} or a part of it, is not installed"
        if package == "jax-cuda12-pjrt" and found != jaxlib.__version__:
            return f"{package} {found} does not match jaxlib {jaxlib.__version__}; install that"
    return None


def environment() -> dict[str, str]:
    """Returns the environment variables of a process that compiles."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    env |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_LOG_DIR": "disabled", "XLA_FLAGS": ""}
    if not problem("H100"):
        (nvcc,) = importlib.util.find_spec("nvidia.cuda_nvcc").submodule_search_locations
        env["XLA_FLAGS"] = f"--xla_gpu_cuda_data_dir={nvcc}"
        env["PATH"] = os.pathsep.join([os.path.join(nvcc, "bin"), env.get("PATH", "")])
    return env


def devices_of(card: str, count: int) -> np.ndarray:
    """Returns abstract devices of this card: at most eight GPUs, at most 16 TPUs."""
    if card == "H100":
        described = {"target_config": H100, "topology": f"1x1x{count}"}
        found = topologies.get_topology_desc("", "cuda", **described)
    else:
        name = "v5e:2x2" if count <= 4 else "v5e:4x4"
        found = topologies.get_topology_desc(platform="tpu", topology_name=name)
    return np.array(found.devices[:count])
