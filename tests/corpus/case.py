"""A case of the corpus: its parts, how pairs of a bug and its cure are written, and how a case is run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import ModuleType

import numpy as np

from fusedref.csrc import COMMON


@dataclass(frozen=True)
class Case:
    """A kernel ``k``, its launch, and the finding to expect: (kind, argument, element, line), or None for nothing.

    ``arguments``: ``("zeros", n)``, ``("empty", n)`` and ``("arange", n)`` are arrays of ``dtype``, an int is a C int.
    """

    name: str
    source: str
    arguments: tuple
    expected: tuple | None = None
    block: tuple = (64, 1, 1)
    grid: tuple = (1, 1)
    shared: int = 0
    dtype: str = "int32"
    options: tuple = field(default=())


CASES: list[Case] = []

PTX = '#include "ptx.cuh"\n'


def pair(name: str, source: str, arguments: tuple, expected: tuple, **launch: object) -> None:
    """Add a bug and its cure to the corpus, given as one text: ``@(bug||cure)@``."""
    texts = {"bug": "", "cure": ""}
    rest = source.strip("\n") + "\n"
    while "@(" in rest:
        before, _, rest = rest.partition("@(")
        choice, _, rest = rest.partition(")@")
        bug, _, cure = choice.partition("||")
        texts["bug"] += before + bug
        texts["cure"] += before + cure
    other = launch.pop("cured", {})
    case = Case(name, texts["bug"] + rest, arguments, expected, **launch)
    CASES.append(case)
    CASES.append(replace(case, name=f"{name}_cured", source=texts["cure"] + rest, expected=None, **other))


def run(case: Case, SourceModule: type, drv: ModuleType, gpuarray: ModuleType) -> None:
    """Launch a case: on a card with PyCUDA's objects, on the emulator with its own of the same names."""
    own = 'extern "C"' in case.source
    module = SourceModule(case.source, no_extern_c=own, include_dirs=[str(COMMON)], options=list(case.options))
    arguments = []
    for argument in case.arguments:
        if isinstance(argument, int):
            arguments.append(np.int32(argument))
            continue
        how, size = argument
        if how == "empty":
            arguments.append(gpuarray.empty(size, np.dtype(case.dtype)))
        else:
            fill = np.arange(size) if how == "arange" else np.zeros(size)
            arguments.append(gpuarray.to_gpu(fill.astype(case.dtype)))
    module.get_function("k")(*arguments, block=case.block, grid=case.grid, shared=case.shared)
    drv.Context.synchronize()
