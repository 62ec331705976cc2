"""Compile kernels with nvcc, for the tests of registers, spills and warnings. No GPU is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from fusedref.cuda.compile import INCLUDE_DIRS
from fusedref.cuda.nvcc import OPTIONS as NVCC_OPTIONS
from tests import processes

INCLUDES = [f"-I{folder}" for folder in INCLUDE_DIRS]
ARCHITECTURES = ["75", "80", "86", "89", "90", "100", "120"]
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")


def run(
    source: Path, folder: Path, architectures: Sequence[str], options: Iterable[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Compile ``source`` to folder/kernel.fatbin for the ``architectures``, such as "90a"; a warning is an error."""
    options = list(options)
    if _is_portable(source, options):  # the first architecture's PTX is that of all
        codes = ",".join(f"sm_{name}" for name in architectures)
        targets = [f"-gencode=arch=compute_{architectures[0]},code=[{codes}]"]
    else:
        targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    always = [*NVCC_OPTIONS, "--Werror=all-warnings", "-Xptxas=-v", *INCLUDES]
    command = ["nvcc", "-fatbin", *always, *targets, *options, "-o", folder / "kernel.fatbin", source]
    return processes.run(command, cwd=folder)


def _is_portable(source: Path, options: Iterable[str]) -> bool:
    """Return whether neither the source nor what it includes depends on the architecture; 16-bit floats do."""
    text, waiting = "", [source]
    while waiting:
        new = waiting.pop().read_text()
        text += new
        for name in re.findall(r'#include "(.+?)"', new):
            waiting += [folder / name for folder in INCLUDE_DIRS if (folder / name).exists()]
    halves = "elements.cuh" in text and not {"-DELEMENT=0", "-DVECTOR=0"} <= set(options)
    return not halves and "__CUDA_ARCH__" not in text and "ptx.cuh" not in text


def report(source: Path, folder: Path, architecture: str, options: Iterable[str] = ()) -> str:
    """Return what ptxas reports of ``source`` for one architecture. Fail if nvcc warns or refuses."""
    done = run(source, folder, [architecture], options)
    assert done.returncode == 0, done.stderr
    return done.stderr


def cubin(source: Path, folder: Path, architecture: str, options: Iterable[str] = ()) -> Path:
    """Compile ``source`` to the machine code of one architecture, and return its file."""
    done = processes.run(
        ["nvcc", "-cubin", f"-arch=sm_{architecture}", *NVCC_OPTIONS, *INCLUDES, *options, source], cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return folder / f"{source.stem}.cubin"


def registers(report: str) -> int:
    """Return the number of registers of a thread, from ptxas' report."""
    return int(re.search(r"Used (\d+) registers", report)[1])


def shared_bytes(report: str) -> int:
    """Return the bytes of static shared memory, from ptxas' report."""
    found = re.search(r"(\d+) bytes smem", report)
    return int(found[1]) if found else 0


def assert_no_spills(report: str) -> None:
    """Check that no register of any function is spilled to memory."""
    counts = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert counts, report
    assert set(counts) == {("0", "0")}, report
