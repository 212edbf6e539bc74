"""Reads a compiled program: its kernels, the bytes they move, its copies and its collectives."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

BYTES = {"token": 0, "pred": 1, "bf16": 2, "c64": 8, "c128": 16}
BYTES |= {f"{kind}{bits}": bits // 8 for kind in "suf" for bits in (8, 16, 32, 64)}
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?([\w.-]+) = (.*)$")
# These move nothing: they name a part of an array, or an array that is already there.
NO_KERNEL = ("parameter", "constant", "iota", "bitcast", "tuple", "get-tuple-element")
NO_KERNEL += ("after-all", "partition-id", "replica-id", "optimization-barrier")
CALLS = ("call", "while", "async-start")
PREFETCHES = ("copy-start", "slice", "slice-start", "dynamic-slice", "dynamic-slice-start")
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
COLLECTIVES += ("collective-broadcast", "ragged-all-to-all")


class Array(NamedTuple):
    """An array of the program."""

    dtype: str
    shape: tuple[int, ...]
    layout: str

    @property
    def size(self) -> int:
        """Returns the number of elements."""
        return math.prod(self.shape)

    @property
    def in_main_memory(self) -> bool:
        """Returns whether it is in the device's main memory, not in a fast memory of the chip."""
        return not re.search(r"S\([1-9]\d*\)", self.layout)

    @property
    def bytes(self) -> int:
        """Returns its bytes, with the padding of its tiles."""
        order, _, tiles = self.layout.partition(":")
        tiled = re.match(r"T\(([\d,]+)\)", tiles)
        if not tiled or not self.size:
            return self.size * BYTES[self.dtype]
        tile = [int(n) for n in tiled[1].split(",")]
        dims = [self.shape[int(axis)] for axis in reversed(order.split(",")) if axis]
        dims = [1] * (len(tile) - len(dims)) + dims
        for axis, step in enumerate(reversed(tile), 1):
            dims[-axis] = step * math.ceil(dims[-axis] / step)
        return math.prod(dims) * BYTES[self.dtype]


class Instruction(NamedTuple):
    """An instruction: what it returns, its name as an operation, what it reads, and the rest."""

    name: str
    results: list[Array]
    op: str
    operands: list[str]
    attributes: str


Program = dict[str, list[Instruction]]  # the computations by name; "ENTRY" runs first


def arrays(text: str) -> list[Array]:
    """Returns the arrays of a type, which may be a tuple."""
    return [
        Array(dtype, tuple(int(n) for n in shape.split(",") if n), layout)
        for dtype, shape, layout in ARRAY.findall(text)
        if dtype in BYTES
    ]


def closing(text: str, start: int) -> int:
    """Returns where the parenthesis that opens at `start` closes."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"a parenthesis is not closed: {text[start : start + 80]}")


def instruction(line: str) -> Instruction | None:
    """Returns the instruction of a line, if it has one."""
    found = INSTRUCTION.match(line)
    if not found:
        return None
    name, text = found.groups()
    end = closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opened = text.index("(", end)
    closed = closing(text, opened)
    operands = re.findall(r"%([\w.-]+)", text[opened:closed])
    return Instruction(
        name, arrays(text[:end]), text[end:opened].strip(), operands, text[closed + 1 :]
    )


def computations(text: str) -> Program:
    """Returns the program that a compiler printed."""
    found: Program = {}
    inside: list[Instruction] = []
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if head:
            inside = found.setdefault("ENTRY" if head[1] else head[2], [])
        elif read := instruction(line):
            inside.append(read)
    return found


def launched(program: Program, name: str = "ENTRY") -> Iterator[tuple[Instruction, list[Array]]]:
    """Yields each instruction that is launched by itself, and the arrays that it reads."""
    known = {each.name: each for each in program[name]}
    for each in program[name]:
        if each.op in CALLS:
            for called in re.findall(r"(?:to_apply|calls|body)=%?([\w.-]+)", each.attributes):
                yield from launched(program, called)
        elif each.op not in NO_KERNEL and not each.op.endswith(("-done", "-update")):
            yield each, [array for name in each.operands for array in known[name].results]


def moved(each: Instruction, read: list[Array]) -> int:
    """Returns the bytes of main memory that an instruction reads and writes."""
    if each.op in PREFETCHES:
        # It reads as much as it writes. What has -start returns both ends, the source too.
        ends = each.results[:2] if each.op.endswith("-start") else [read[0], each.results[0]]
        return sum(a.in_main_memory for a in ends) * min(a.bytes for a in ends)
    return sum(a.bytes for a in (*read, *each.results) if a.in_main_memory)


def is_kernel(each: Instruction) -> bool:
    """Returns whether it is a kernel or a prefetch, not arithmetic of a TPU's scalar core."""
    if '"ConcatBitcast"' in each.attributes:  # names the slices of a prefetch as one array
        return False
    return each.op in ("fusion", "custom-call") or any(array.size > 1 for array in each.results)


def collectives(text: str) -> Counter[tuple[str, str, tuple[int, ...]]]:
    """Returns how often a program has each operation between devices, by name and result."""

    def results(each: Instruction) -> list[Array]:
        count = len(each.operands)
        # What has -start returns its operands before its results, except for a reduction in place.
        is_both = each.op.endswith("-start") and each.op != "all-reduce-start"
        return each.results[count : 2 * count] if is_both else each.results

    return Counter(
        (name, array.dtype, array.shape)
        for inside in computations(text).values()
        for each in inside
        if (name := each.op.removesuffix("-start")) in COLLECTIVES
        for array in results(each)
    )


def read_program(text: str, sizes: Iterable[int]) -> dict[str, int]:
    """Returns the counts of a program whose leaves have these sizes on each device.

    A kernel touches a leaf if it reads or writes an array of a leaf's size. Integers of 32 bits do
    not count as a leaf's: they are step counts and dithers.
    """
    program, sizes = computations(text), set(sizes)

    def on_leaf(arrays: Iterable[Array]) -> bool:
        return any(a.size in sizes and a.dtype not in ("u32", "s32", "pred") for a in arrays)

    launches = [(each, read) for each, read in launched(program) if is_kernel(each)]
    kernels = [(each, read) for each, read in launches if each.op not in PREFETCHES]
    everything = [each for inside in program.values() for each in inside]
    copies = [each for each, _ in kernels if each.op in ("copy", "transpose")]
    collectives = [each.op.removesuffix("-start") for each in everything]
    return {
        "kernels": len(kernels),
        "kernels on leaves": sum(on_leaf((*read, *each.results)) for each, read in kernels),
        "bytes": sum(moved(each, read) for each, read in launches),
        "copies": sum(on_leaf(each.results) for each in copies),
        "collectives": sum(name in COLLECTIVES for name in collectives),
    }
