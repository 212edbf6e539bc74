"""Stamps: whether a picture, and the time of a step, still belong to today's code.

`stamps.json` beside the pictures has one for each: what a figure shows, or the program of an
example. A file of results has the arithmetic that was measured. Names, comments and layout of code
change no stamp, and a stamp is the same on every version of Python and JAX.
"""

import ast
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from optax_adadelta import adadelta
from studies._lib.storages import STORAGES

# These move or cast numbers. JAX's releases differ in how many of them they need.
MOVES = ("broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze")


def shortened(text: str) -> str:
    """Returns the first digits of the text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def of_figure(figure: Figure) -> str:
    """Returns the stamp of what a figure shows: its texts, lines, marks, bars and images."""
    return shortened("\n".join(_shown(figure)))


def _shown(figure: Figure) -> Iterator[str]:
    yield _numbers(figure.get_size_inches())
    yield from (text.get_text() for text in figure.texts)
    yield from (text.get_text() for legend in figure.legends for text in legend.get_texts())
    for axes in figure.axes:
        yield f"{axes.get_title()} {axes.get_xlabel()} {axes.get_ylabel()}"
        yield f"{axes.get_xscale()} {axes.get_yscale()} {_numbers(axes.axis())}"
        for line in axes.lines:
            style = line.get_color(), line.get_marker(), line.get_linestyle()
            yield f"{line.get_label()} {style} {_numbers(line.get_xydata())}"
        for patch in axes.patches:
            ends = patch.get_path().get_extents(patch.get_patch_transform()).extents
            yield f"{_numbers(patch.get_facecolor())} {_numbers(ends)}"
        for group in axes.collections:
            yield _numbers(group.get_offsets()) + _numbers(group.get_facecolor())
            yield from (_numbers(path.vertices) for path in group.get_paths())
        yield from (_numbers(image.get_array()) for image in axes.images)
        yield from (text.get_text() for text in axes.texts)


def _numbers(values: Any) -> str:
    return " ".join(f"{value:.5g}" for value in np.ravel(np.ma.filled(values, np.nan)) + 0.0)


def of_program(path: Path) -> str:
    """Returns the stamp of a script that imports nothing of this repository but the package."""
    return shortened(_outline(ast.parse(path.read_text("utf-8"))))


def _outline(node: Any) -> str:
    """Returns a syntax tree as text, alike on every version of Python; without docstrings."""
    if isinstance(node, list):
        return f"[{' '.join(_outline(n) for n in node if not _is_text(n))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    # Newer versions have more fields, which are empty where there is nothing new.
    fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
    return f"{type(node).__name__}({' '.join(f'{n}={_outline(v)}' for n, v in fields)})"


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def of_arithmetic() -> dict[str, str]:
    """Returns the stamp of the operations in one update, for each storage."""
    params, found = jnp.zeros((2, 128)), {}
    for name, bits in STORAGES.items():
        optimizer = adadelta(state_bits=bits)
        program = jax.make_jaxpr(optimizer.update)(params, optimizer.init(params))
        found[name] = shortened(" ".join(_operations(program.jaxpr)))
    return found


def _operations(program: Any) -> Iterator[str]:
    """Yields the operations on arrays in a traced program and in the functions that it calls."""
    for equation in program.eqns:
        inner = [getattr(value, "jaxpr", value) for value in equation.params.values()]
        inner = [value for value in inner if hasattr(value, "eqns")]
        for called in inner:
            yield from _operations(called)
        result = equation.outvars[0].aval
        if not inner and result.shape and equation.primitive.name not in MOVES:
            yield f"{equation.primitive.name}:{result.dtype}"


def write(picture: Path, stamp: str) -> None:
    """Writes the stamp of a picture into the file beside it."""
    path = picture.with_name("stamps.json")
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    text = json.dumps(dict(sorted({**known, picture.name: stamp}.items())), indent=1)
    path.write_text(text + "\n", encoding="utf-8")
