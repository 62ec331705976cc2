"""Rules that make mutants of Python functions: each changes one node of the syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.mutants import Mutant, mutant

OPERATORS = {ast.Add: "-", ast.Sub: "+", ast.Mult: "+", ast.Div: "*", ast.FloorDiv: "*"}
NAMES = {"bias": "beta", "beta": "bias", "gamma": "running_var", "running_mean": "beta", "running_var": "gamma",
         "height": "width", "width": "height", "i": "j", "j": "i", "stride": "dilation", "dilation": "stride",
         "sqrt": "square", "rsqrt": "sqrt", "a": "b", "b": "a"}  # fmt: skip


def mutants(file: str, text: str) -> list[Mutant]:
    """Return every mutant of the functions in ``text``, rule by rule."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def place(node: ast.AST) -> tuple[int, int]:
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

    nodes = [
        node
        for function in ast.parse(text).body
        if isinstance(function, ast.FunctionDef)
        for statement in function.body
        for node in ast.walk(statement)
    ]
    found = []
    for rule, make in RULES.items():
        changes = sorted({(*place(old), new) for node in nodes for old, new in make(node)})
        found += [mutant(file, text, rule, start, end, new) for start, end, new in changes]
    return found


def _arithmetic(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Take another operator."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield node, f"({ast.unparse(node.left)}) {OPERATORS[type(node.op)]} ({ast.unparse(node.right)})"


def _operands(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Leave the right operand out."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield node, f"({ast.unparse(node.left)})"


def _constants(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Add one to a number."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        yield node, str(node.value + 1)


def _names(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Read another name."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in NAMES:
        yield node, NAMES[node.id]
    if isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield node, f"{ast.unparse(node.value)}.{NAMES[node.attr]}"


def _arguments(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Swap the first two arguments, or leave the last out."""
    if isinstance(node, ast.Call) and len(node.args) + len(node.keywords) > 1:
        call = ast.unparse(node.func)
        rest = [ast.unparse(each) for each in [*node.args, *node.keywords]]
        if len(node.args) > 1:
            yield node, f"{call}({', '.join([rest[1], rest[0], *rest[2:]])})"
        yield node, f"{call}({', '.join(rest[:-1])})"


def _statements(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Leave out what adds to a sum; let no condition hold."""
    if isinstance(node, ast.AugAssign):
        yield node, "pass"
    if isinstance(node, ast.If):
        yield node.test, "False"


RULES = {
    "arithmetic": _arithmetic,
    "operand": _operands,
    "constant": _constants,
    "name": _names,
    "argument": _arguments,
    "statement": _statements,
}
