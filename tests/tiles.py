"""Helpers for the tests of the rungs with compiled-in sizes, from 06 on."""

import math

import pytest
import torch

from fusedref import Problem, cuda
from fusedref.cuda import drv
from fusedref.validation import compare, random_inputs
from kernels import ladder
from tests import nvcc

needs_emulator = pytest.mark.skipif(cuda.device() == "gpu", reason="counts are the emulator's")


def compiled(tiled: ladder.Tiled, problem: Problem, architecture: str, folder) -> str:
    """Return what ptxas reports of the kernel. Fail if nvcc warns or refuses."""
    return nvcc.report(ladder.KERNELS / f"{tiled.file}.cu", folder, architecture, tiled.options(problem))


def refused(rung: ladder.Rung, device) -> bool:
    """Return whether the rung fails or its result is refused on one small problem, so that little is compiled."""
    problem = Problem(2, 3, 20, 10, 38, 2)
    given = random_inputs(problem, 0, device)
    # torch reuses the memory of this tensor for y, so an unwritten output is NaN.
    torch.full(problem.output_shape, math.nan, device=device)
    try:
        y = rung.candidate(*given)
    except drv.Error:
        return True
    return not compare("", problem, given, y, precision=rung.precision).ok


def watched(tiled: ladder.Tiled, *sizes: int):
    """Return the emulator's counters of a launch on ``Problem(*sizes)``. Fail if there is a finding."""
    from fusedref.emulator import watch

    with watch() as seen:
        tiled(*random_inputs(Problem(*sizes), 0))
    assert [finding.message for finding in seen.findings] == []
    return seen.counters[tiled.kernel]


def findings(tiled: ladder.Tiled, *sizes: int) -> list:
    """Return the emulator's findings of a launch on ``Problem(*sizes)``."""
    from fusedref.emulator import watch

    with watch() as seen:
        tiled(*random_inputs(Problem(*sizes), 0))
    return seen.findings


def at(counters, tiled: ladder.Tiled, text: str):
    """Return the counters of the kernel's only line that contains ``text``."""
    lines = (ladder.KERNELS / f"{tiled.file}.cu").read_text().splitlines()
    (number,) = [number for number, line in enumerate(lines, 1) if text in line]
    return counters.by_line[f"{tiled.file}.cu", number]
