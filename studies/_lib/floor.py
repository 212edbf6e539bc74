"""The shortest possible step: one pass of a compiled loop, or as many bytes at copy speed."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

BYTES = 28  # per parameter: the gradient read; the parameter and two averages read and written

_SOURCE = r"""
#include <math.h>
static const long SHARED = 100000;  // a leaf of fewer is left to one thread
static void loop(long n, float *restrict p, const float *restrict g,
                 float *restrict e_g, float *restrict e_x) {
  #pragma omp parallel for simd if (parallel: n >= SHARED)
  for (long i = 0; i < n; i++) {
    float a = 0.95f * e_g[i] + 0.05f * g[i] * g[i];
    float dx = sqrtf(e_x[i] + 1e-6f) / sqrtf(a + 1e-6f) * g[i];
    e_g[i] = a;
    e_x[i] = 0.95f * e_x[i] + 0.05f * dx * dx;
    p[i] -= dx;
  }
}
void step(int leaves, const long *n, float **p, float **g, float **e_g, float **e_x) {
  for (int i = 0; i < leaves; i++)
    if (n[i] >= SHARED) loop(n[i], p[i], g[i], e_g[i], e_x[i]);
  #pragma omp parallel for schedule(dynamic, 8) if (leaves > 16)
  for (int i = 0; i < leaves; i++)
    if (n[i] < SHARED) loop(n[i], p[i], g[i], e_g[i], e_x[i]);
}
"""


def floor(gradients: list[np.ndarray]) -> tuple[str, Callable[[], float]]:
    """Returns what the floor is here, and a function that returns the seconds of one step."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    copying = "copy bandwidth", lambda: _copying(sum(g.size for g in gradients))
    if compiler is None:
        return copying
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "step.c"), Path(folder, "step.so")
        source.write_text(_SOURCE, encoding="utf-8")
        options = "-O3 -march=native -ffast-math -fopenmp -shared -fPIC".split()
        done = subprocess.run([compiler, *options, "-o", library, source, "-lm"])
        if done.returncode != 0:
            return copying
        step = ctypes.CDLL(str(library)).step
    arrays = [[np.zeros_like(g) for g in gradients] for _ in range(3)]
    trees = [arrays[0], gradients, arrays[1], arrays[2]]
    pointers = [
        (ctypes.c_void_p * len(tree))(*(leaf.ctypes.data for leaf in tree)) for tree in trees
    ]
    sizes = (ctypes.c_long * len(gradients))(*(g.size for g in gradients))

    def once(arrays: list[list[np.ndarray]]) -> float:
        start = time.perf_counter()
        step(len(gradients), sizes, *pointers)
        return time.perf_counter() - start

    # The arrays live as long as the function that has pointers into them.
    return "a one-pass C loop", functools.partial(once, trees)


def _copying(parameters: int) -> float:
    source = np.ones(16_000_000, np.float32)
    target = np.zeros_like(source)
    start = time.perf_counter()
    np.copyto(target, source)
    return (time.perf_counter() - start) * BYTES * parameters / (2 * source.nbytes)
