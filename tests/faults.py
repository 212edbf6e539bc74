"""The small faults that `mutation.py` plants: what they are, and where they may be.

Not mutated are annotations, type aliases, decorators, strings, errors that are raised (only whether
they are), and the `strict` of a `zip`, which only guards against other faults.
"""

import ast
import copy
import hashlib
from typing import NamedTuple

SWAPS = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr},
    **{ast.BitXor: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift},
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
}
PAIRS = ("maximum minimum", "max min", "any all", "zeros ones", "real imag", "float32 float64")
NAMES = {a: b for pair in PAIRS for a, b in (pair.split(), pair.split()[::-1])}
NOT_ENTERED = ("annotation", "returns", "decorator_list", "exc", "cause")


class Fault(NamedTuple):
    """One fault: where it is, what it changes, and the faulty source."""

    file: str
    line: str
    change: str
    number: int
    text: str

    @property
    def name(self):
        """Names it in `mutation_equivalent.toml`, also after its line has moved."""
        return self.file, self.line, self.change

    @property
    def digest(self):
        """Tells apart faults of the same name."""
        return hashlib.sha256(f"{self.file} {self.text}".encode()).hexdigest()[:16]


def faults(path, folder):
    """Yields every fault of a file in a folder."""
    source = path.read_text(encoding="utf-8")
    tree, lines = ast.parse(source), source.splitlines()
    seen = {ast.unparse(tree)}
    for parent, field, index, node in slots(tree):
        # A number says little by itself, so the expression that it is in is shown with it.
        shown = parent if isinstance(parent, ast.expr | ast.keyword) else node
        before, siblings = ast.unparse(shown), getattr(parent, field)
        for new in replacements(parent, field, node):
            part = new
            if isinstance(siblings, list):
                part = [*siblings[:index], new, *siblings[index + 1 :]]
            setattr(parent, field, part)
            text, after = ast.unparse(tree), ast.unparse(new if shown is node else parent)
            setattr(parent, field, siblings)
            if text not in seen:
                seen.add(text)
                number = getattr(node, "lineno", getattr(parent, "lineno", 0))
                file = path.relative_to(folder).as_posix()
                change = " ".join(f"{before} -> {after}".split())
                yield Fault(file, lines[number - 1].strip(), change, number, text)


def slots(node):
    """Yields every part of a tree that may be mutated, with its parent and where it is in it."""
    for field, value in ast.iter_fields(node):
        if field in NOT_ENTERED or isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom):
            continue
        for index, part in enumerate(value if isinstance(value, list) else [value]):
            alias = isinstance(part, ast.AnnAssign) and ast.unparse(part.annotation) == "TypeAlias"
            strict = isinstance(part, ast.keyword) and part.arg == "strict"
            if isinstance(part, ast.AST) and not alias and not strict:
                yield node, field, index, part
                yield from slots(part)


def changed(node, **fields):
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def replacements(parent, field, node):
    """Yields what is put in place of a part of the tree."""
    if field in ("test", "ifs") and not negated_below(node):
        yield ast.UnaryOp(ast.Not(), node)
    match node:
        case ast.BinOp(left, ast.BitOr(), right):  # of types too
            yield from (left, right)
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op) if type(op) in SWAPS:
            yield changed(node, op=SWAPS[type(op)]())
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                yield changed(node, ops=[*ops[:i], SWAPS[type(op)](), *ops[i + 1 :]])
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(2 * value or 1.0)
        case ast.Name(id=name) if name in NAMES:
            yield changed(node, id=NAMES[name])
        case ast.Attribute(attr=name) if name in NAMES:
            yield changed(node, attr=NAMES[name])
        case ast.Call():
            yield from calls(node)
    if isinstance(node, ast.AugAssign | ast.Raise) or (
        isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
    ):
        yield ast.Pass()


def negated_below(node):
    """Returns whether another replacement is the negation of this one."""
    negation = ast.Not | ast.Eq | ast.NotEq | ast.Is | ast.IsNot | ast.In | ast.NotIn
    return isinstance(getattr(node, "op", getattr(node, "ops", [None])[0]), negation)


def calls(node):
    """Yields what is put in place of a call."""
    args, name = node.args, getattr(node.func, "attr", getattr(node.func, "id", ""))
    for i in range(len(node.keywords)):
        if node.keywords[i].arg != "strict":
            yield changed(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])
    if name in ("where", "select") and len(args) == 3:
        yield changed(node, args=[args[0], args[2], args[1]])
    if name in ("clamp", "clip"):
        yield args[name == "clamp"]
    if name == "fromkeys":  # in an order that differs from process to process
        yield ast.Call(ast.Name("set"), args, [])
    elif name == "astype":
        yield node.func.value
    elif name not in ("finfo", "dtype") and len(args) == 1 and not isinstance(args[0], ast.Starred):
        yield args[0]
