"""The two ptx.cuh, the kernels' and the emulator's, declare the same functions with the same parameters."""

import re
import subprocess

import pytest

from fusedref.csrc import COMMON
from fusedref.emulator.compile.build import INCLUDE, compiler
from tests import processes

FUNCTION = re.compile(r"(?:template\s*<([^>]*)>)?[\w\s:&*]*?\b(\w+)\s*\(((?:[^()]|\([^()]*\))*)\)\s*\{\}")
KERNELS, EMULATOR = COMMON / "ptx.cuh", INCLUDE / "ptx.cuh"


def expanded(path) -> str:
    """Return the header without macros and without what it includes."""
    text = re.sub(r"^\s*#\s*(include|pragma).*$", "", path.read_text(), flags=re.MULTILINE)
    command = [*compiler().command, "-E", "-P", "-x", "c++", "-"]
    return subprocess.run(
        command, input=text, capture_output=True, text=True, check=True, timeout=processes.LIMIT
    ).stdout


def functions(path) -> dict[str, set[tuple]]:
    """Return the parameters (of its template, and its own) of every function directly in the namespace ptx."""
    found = {}
    for space in re.finditer(r"namespace ptx\s*\{", expanded(path)):
        flat = without_bodies(body(space.string, space.end()))
        for match in FUNCTION.finditer(flat):
            template, name, parameters = match.groups()
            found.setdefault(name, set()).add((parameter_list(template or ""), types(parameters)))
    return found


def body(text: str, start: int) -> str:
    """Return the text up to the brace that closes the one before ``start``."""
    depth = 1
    for place in range(start, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start:place]
    raise ValueError("a brace is not closed")


def without_bodies(text: str) -> str:
    """Return the text without everything between braces, nested namespaces included."""
    kept, depth = "", 0
    for letter in text:
        depth -= letter == "}"
        kept += letter if depth == 0 else ""
        depth += letter == "{"
    return re.sub(r"namespace \w+\s*\{\}", "", kept)


def parameter_list(text: str) -> tuple[str, ...]:
    """Return a template's parameters one by one, without those that the size of an array determines."""
    return tuple(part for part in map(str.strip, text.split(",")) if part and part != "int SUMS")


def types(text: str) -> tuple[str, ...]:
    """Return the parameters' types, with arrays of any size as one: the emulator has a template for all sizes."""
    parts = [re.sub(r"\[[^\]]*\]", "[]", part.strip()) for part in text.split(",") if part.strip()]
    parts = [re.sub(r"(?<=[\s&*])(?!const\b)\w+(?=\)?(\[\])?$)", "", part) for part in parts]
    return tuple(re.sub(r"\s", "", part) for part in parts)


@pytest.fixture(scope="module")
def both():
    return functions(KERNELS), functions(EMULATOR)


def test_the_names_are_the_same(both):
    kernels, emulator = both
    assert set(kernels) == set(emulator)
    assert {"ldmatrix_x4", "mbarrier_wait", "wgmma_wait", "shared_address"} <= set(kernels)
    overloads = sum(len(each) for each in kernels.values())
    assert overloads >= len(kernels) >= 35


def test_the_parameters_are_the_same(both):
    kernels, emulator = both
    assert kernels == {name: emulator[name] for name in kernels}


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("ldmatrix_x4(", "ldmatrix_x3("),
        ("uint32_t (&d)[4], const void* row", "const void* row, uint32_t (&d)[4]"),
    ],
)
def test_a_difference_shows(right, wrong, tmp_path, both):
    changed = tmp_path / "ptx.cuh"
    changed.write_text(KERNELS.read_text().replace(right, wrong, 1))
    assert functions(changed) != both[0]
