"""The parameter trees that are timed, and how a study goes through them."""

import argparse
import gc
import math
from collections.abc import Callable

import jax
from tqdm import tqdm

from studies._lib.results import Report, Results
from studies._lib.study import at_least

Shape = tuple[int, ...]


def _resnet_50() -> list[Shape]:
    shapes: list[Shape] = [(7, 7, 3, 64), (64,), (64,)]
    inputs = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            kernels = [(1, 1, inputs, width), (3, 3, width, width), (1, 1, width, 4 * width)]
            if block == 0:
                kernels.append((1, 1, inputs, 4 * width))
            for kernel in kernels:
                shapes += [kernel, kernel[-1:], kernel[-1:]]
            inputs = 4 * width
    return [*shapes, (2048, 1000), (1000,)]


def transformer(layers: int, width: int) -> list[Shape]:
    """Returns the leaves of a transformer without embeddings, 12 per layer."""
    norm: list[Shape] = [(width,), (width,)]
    attention: list[Shape] = [(width, 3 * width), (3 * width,), (width, width), (width,)]
    mlp: list[Shape] = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [*layers * [*norm, *attention, *norm, *mlp], *norm]


CASES: dict[str, list[Shape]] = {
    "2 leaves of 8M": 2 * [(8_000_000,)],
    "128 leaves, 16.8M": 8 * [(1024, 1024)] + 32 * [(512, 512)] + 40 * [(1024,)] + 48 * [(64,)],
    "784-500-300-10": [(784, 500), (500,), (500, 300), (300,), (300, 10), (10,)],
    "500 leaves of 4096": 500 * [(4096,)],
    "500 leaves of 1": 500 * [(1,)],
    "1 leaf of 100M": [(100_000_000,)],
    "ResNet-50": _resnet_50(),
    "12-layer transformer": [(50257, 768), (1024, 768), *transformer(12, 768)],
}

SMOKE: dict[str, list[Shape]] = {
    "2 leaves of 1000": 2 * [(1000,)],
    "8-6-4": [(8, 6), (6,), (6, 4), (4,)],
}


def options(parser: argparse.ArgumentParser, rounds: int, cases: bool = True) -> None:
    """Adds the options of a study that times steps."""
    text = "turns of each, at least 2 (default: %(default)s)"
    parser.add_argument("--rounds", type=at_least(2), default=rounds, help=text)
    if cases:
        text = f"some of: {', '.join(CASES)} (default: all)"
        given = {"nargs": "+", "choices": CASES, "default": list(CASES), "metavar": "CASE"}
        parser.add_argument("--cases", help=text, **given)


def measure_each(
    name: str,
    cases: dict[str, list[Shape]],
    measure: Callable[[list[Shape]], Report],
    results: Results,
    **known: Report,
) -> Report:
    """Measures one case after the other, and saves each in a file of this device and JAX."""
    name = f"{name}-{jax.default_backend()}-jax-{jax.__version__}"
    results.load(name)
    report = {**results.made, **known, "cases": {}}
    for case, shapes in (bar := tqdm(cases.items(), unit="case")):
        bar.set_description(case)
        sizes = {"parameters": sum(map(math.prod, shapes)), "leaves": len(shapes)}
        report["cases"][case] = {**sizes, **measure(shapes)}
        gc.collect()
        jax.clear_caches()
        results.save(name, report)
    return report
