"""Fingerprints that tell whether a picture or a timing still belongs to today's code.

A picture carries the fingerprint of the program that drew it and of the results it was drawn from.
A file of results carries that of the arithmetic that was measured. Comments, docstrings and layout
do not change a fingerprint, and it is the same on every version of Python and JAX.
"""

import ast
import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from optax_adadelta import adadelta

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG\r\n\x1a\n"
# Where the text goes in a picture, which viewers do not show.
KEY = b"tEXtFingerprint\0"
STORAGES = {"float32": None, "16 bits": 16, "8 bits": 8}
# These move or cast numbers. JAX's releases differ in how many of them they need.
MOVES = ("broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze")


def shortened(text: str) -> str:
    """Returns the first digits of the text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def of_data(*results: Any) -> str:
    """Returns the fingerprint of results, as they are in JSON."""
    return shortened(json.dumps(results, sort_keys=True))


def of_program(path: Path) -> str:
    """Returns the fingerprint of a script and of the modules beside it that it imports."""
    paths = sorted(_with_imports(path, set()))
    return shortened("\n".join(_outline(ast.parse(p.read_text("utf-8"))) for p in paths))


def of_arithmetic() -> dict[str, str]:
    """Returns the fingerprint of the operations in one update, for each storage."""
    found = {}
    for name, bits in STORAGES.items():
        optimizer, params = adadelta(state_bits=bits), jnp.zeros((2, 128))
        program = jax.make_jaxpr(optimizer.update)(params, optimizer.init(params))
        found[name] = shortened(" ".join(_operations(program.jaxpr)))
    return found


def stamp(picture: Path, program: Path, *results: Any) -> None:
    """Writes into the picture what drew it and from what."""
    text = {"program": program.resolve().relative_to(ROOT).as_posix(), "code": of_program(program)}
    comment = json.dumps(text | ({"data": of_data(*results)} if results else {})).encode()
    content = picture.read_bytes()
    if content.startswith(PNG):
        chunk = KEY + comment
        length, checksum = (n.to_bytes(4, "big") for n in (len(chunk) - 4, zlib.crc32(chunk)))
        end = content.rindex(b"IEND") - 4
        picture.write_bytes(content[:end] + length + chunk + checksum + content[end:])
    else:  # A comment of a GIF, before the byte that ends it.
        block = b"\x21\xfe" + bytes([len(comment)]) + comment + b"\0"
        picture.write_bytes(content[:-1] + block + content[-1:])


def stamp_of(picture: Path) -> dict[str, str]:
    """Returns what was written into the picture."""
    content = picture.read_bytes()
    if content.startswith(PNG):
        start = content.rindex(KEY) + len(KEY)
    else:
        start = content.rindex(b"\x21\xfe") + 3
    return json.JSONDecoder().raw_decode(content[start:].decode("latin-1"))[0]


def _with_imports(path: Path, known: set[Path]) -> set[Path]:
    """Adds the script and the helpers that it imports, except those of benchmarks that write."""
    known.add(path)
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
            helper = ROOT / f"{name.replace('.', '/')}.py"
            if helper.parent == path.parent and helper.is_file() and helper not in known:
                _with_imports(helper, known)
    return known


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
