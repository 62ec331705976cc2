"""Rules that make mutants of CUDA C. They read the text, not the language: spaces mark a binary operator."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.mutants import Mutant, mutant

SWAPS = {
    "arithmetic": {"+": "-", "-": "+", "*": "+", "/": "*", "%": "/"},
    "comparison": {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="},
    "logic": {"&&": "||", "||": "&&"},
    "bits": {"<<": ">>", ">>": "<<", "&": "|", "|": "&", "^": "|"},
    "assignment": {"+=": "-=", "-=": "+=", "*=": "=", "|=": "="},
}
AXES = {"HEIGHT": "WIDTH", "WIDTH": "HEIGHT", "height": "width", "width": "height", "row": "column", "column": "row",
        "rows": "columns", "columns": "rows", "threadIdx.x": "threadIdx.y", "threadIdx.y": "threadIdx.x",
        "_H": "_W", "_W": "_H"}  # fmt: skip
BARRIER = re.compile(
    r"\b(?:__syncthreads|__syncwarp|__threadfence\w*|(?:ptx::)?\w*(?:_wait|_sync|_fence|fence_|wait_)\w*(?:<\w+>)?"
    r"|all_are_ready)\([^;{}]*\);"
)
NOT_CODE = re.compile(
    r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|^[ \t]*#[^\n]*|static_assert\([^;]*;', re.DOTALL | re.MULTILINE
)
DECLARATION = re.compile(
    r"^\s*(?:alignas\(\w+\) |extern |const |__shared__ |static )*[A-Za-z_][\w:<>]*[*&]? \w+(?:\[|, )"
)


def mutants(file: str, text: str) -> list[Mutant]:
    """Return every mutant of ``text``, in the order of the rules below and of the places in the file."""
    code = NOT_CODE.sub(lambda found: re.sub(r"[^\n]", "~", found[0]), text)  # same length, so that places agree
    found = []
    for rule, make in RULES.items():
        places = sorted(set(make(code)))
        found += [mutant(file, text, rule, start, end, new) for start, end, new in places if code[start:end] != new]
    return found


def _operators(rule: str):
    swaps = SWAPS[rule]
    pattern = re.compile(f"(?<= )({'|'.join(map(re.escape, sorted(swaps, key=len, reverse=True)))})(?= )")

    def make(code: str) -> Iterator[tuple[int, int, str]]:
        for found in pattern.finditer(code):
            yield found.start(), found.end(), swaps[found[0]]

    return make


def _closing(code: str, opening: int) -> int:
    """Return the place of the bracket that closes the one at ``opening``."""
    depth = 0
    for place in range(opening, len(code)):
        depth += (code[place] in "([{") - (code[place] in ")]}")
        if depth == 0:
            return place
    raise ValueError(f"nothing closes {code[opening : opening + 40]!r}")


def _guards(answer: str):
    def make(code: str) -> Iterator[tuple[int, int, str]]:
        """Make the condition of an ``if`` always true, or never."""
        for found in re.finditer(r"\bif (?:constexpr )?\(", code):
            yield found.end(), _closing(code, found.end() - 1), answer

    return make


def _barriers(code: str) -> Iterator[tuple[int, int, str]]:
    """Remove barriers, fences and waits."""
    for found in BARRIER.finditer(code):
        yield found.start(), found.end(), ";"


def _constants(code: str) -> Iterator[tuple[int, int, str]]:
    """Add one to a number."""
    for found in re.finditer(r"(?<![\w.~])(\d+)(\.\d*f)?(?![\w.])", code):
        yield found.start(), found.end(), f"{int(found[1]) + 1}{found[2] or ''}"


def _indices(code: str) -> Iterator[tuple[int, int, str]]:
    """Add one to an index."""
    for found in re.finditer(r"(?<=[\w\])])\[", code):
        line = code[code.rfind("\n", 0, found.start()) + 1 :]
        end = _closing(code, found.start())
        if not DECLARATION.match(line) and code[found.end() : end].strip():
            yield found.end(), end, f"({code[found.end() : end]}) + 1"


def _steps(code: str) -> Iterator[tuple[int, int, str]]:
    """Let a loop step one further."""
    for loop in re.finditer(r"\bfor \(", code):
        end = _closing(code, loop.end() - 1)
        start = code.rfind(";", 0, end) + 1
        for found in re.finditer(r"\+\+|\+= ([^,]+)", code[start:end]):
            new = " += 2" if found[0] == "++" else f"+= ({found[1]}) + 1"
            yield start + found.start(), start + found.end(), new


def _axes(code: str) -> Iterator[tuple[int, int, str]]:
    """Read the name of the other axis."""
    names = "|".join(sorted((name for name in AXES if name[0] != "_"), key=len, reverse=True))
    for found in re.finditer(rf"(?<![\w.])(?<!int )({names})(?!\w)(?! =|\[| *[,)] *$)", code):
        yield found.start(), found.end(), AXES[found[0]]
    for found in re.finditer(r"(?<=[A-Z])_[HW]\b(?! =)", code):
        yield found.start(), found.end(), AXES[found[0]]


def _bounds(code: str) -> Iterator[tuple[int, int, str]]:
    """Swap min and max."""
    for found in re.finditer(r"\b(f?)(min|max)(f?)\(", code):
        other = "max" if found[2] == "min" else "min"
        yield found.start(), found.end(), f"{found[1]}{other}{found[3]}("


def _arguments(code: str) -> Iterator[tuple[int, int, str]]:
    """Swap the first two arguments of a call."""
    for found in re.finditer(r"\b(?!if|for|while|switch|return|sizeof|min|max|fminf|fmaxf)[a-z_]\w*(?:<\w+>)?\(", code):
        end = _closing(code, found.end() - 1)
        arguments, depth, start = [], 0, found.end()
        for place in range(start, end + 1):
            depth += (code[place] in "([{") - (code[place] in ")]}")
            if (code[place] == "," and depth == 0) or place == end:
                arguments.append((start, place))
                start = place + 1
        if len(arguments) < 2:
            continue
        (first, _), (second, last) = arguments[:2]
        one, other = code[first : arguments[0][1]].strip(), code[second:last].strip()
        declared = any(re.match(r"(const )?[\w:<>]+[*&]?( __restrict__)? \w+$", each) for each in (one, other))
        if one != other and not declared and "~" not in one + other:
            yield first, last, f"{other}, {one}"


RULES = {
    **{rule: _operators(rule) for rule in SWAPS},
    "guard always": _guards("true"),
    "guard never": _guards("false"),
    "barrier": _barriers,
    "constant": _constants,
    "index": _indices,
    "step": _steps,
    "axis": _axes,
    "bounds": _bounds,
    "arguments": _arguments,
}
