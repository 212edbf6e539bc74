"""The shortest possible step: one pass of a compiled loop, or as many bytes at copy speed."""

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from studies._lib.timing import Contender, Run, timed

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


def floor(gradients: list[np.ndarray]) -> tuple[str, Contender]:
    """Returns what the floor is here, and its contender."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    copying = "copy bandwidth", Contender(lambda: _copying(sum(g.size for g in gradients)), {})
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
    params, e_g, e_x = ([np.zeros_like(g) for g in gradients] for _ in range(3))
    trees = [params, gradients, e_g, e_x]
    pointers = [(ctypes.c_void_p * len(tree))(*(g.ctypes.data for g in tree)) for tree in trees]
    sizes = (ctypes.c_long * len(gradients))(*(g.size for g in gradients))
    run = timed(lambda: step(len(gradients), sizes, *pointers))
    run.trees = trees  # They live as long as the pointers into them are used.
    return "a one-pass C loop", Contender(lambda: run, {})


def _copying(parameters: int) -> Run:
    source = np.ones(16_000_000, np.float32)
    target = np.zeros_like(source)
    share = BYTES * parameters / (2 * source.nbytes)
    run = timed(lambda: np.copyto(target, source))
    return lambda count: 2 * (share * run(count)[1],)
