"""Run a learner's kernel on the emulator, where it can do no harm, and explain what is wrong with its output."""

from __future__ import annotations

import math
import re
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from fusedref.emulator import SourceModule, gpuarray, watch
from fusedref.emulator.watching import Counters
from fusedref.validation import Candidate, candidate_from_kernel
from lessons.exercises import Wrong

THREADS = 256
MARGIN = 8192  # extra numbers after the end of every array, where a stray thread is seen and does no harm

STRANGE = 1e15  # the inputs' margin; NaN already marks unwritten outputs


def code(source: str) -> str:
    """Return the source without its comments, for checks that search it."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", source, flags=re.DOTALL)


def compiled(source: str, name: str, module: type = SourceModule):
    """Compile the source and return its kernel `name`. module: the SourceModule class to compile with."""
    if not isinstance(source, str):
        raise Wrong(f"The answer is the source text of a kernel; this is a {type(source).__name__}.")
    if not re.search(rf"__global__\s+void\s+(__launch_bounds__\(\w+\)\s*)?{name}\s*\(", code(source)):
        raise Wrong(f"It contains no `__global__ void {name}(...)`.")
    try:
        return module(source).get_function(name)
    except Exception as error:
        lines = [line for line in str(error).splitlines() if "error" in line.lower()]
        raise Wrong(f"It does not compile: `{(lines or str(error).splitlines() or ['?'])[0].strip()}`") from error


def exported(source: str, name: str) -> str:
    """Return the source with its kernel `name` declared `extern "C"`."""
    return re.sub(
        rf'(extern\s+"C"\s+)?(__global__\s+void\s+(__launch_bounds__\(\w+\)\s*)?{name}\b)', r'extern "C" \2', source
    )


def candidate(source: str, name: str) -> Candidate:
    """Return the kernel `name`, with the signature of rung 04, as a candidate for `fusedref.validate`."""
    folder = Path(tempfile.mkdtemp())
    path = folder / "kernel.cu"
    path.write_text(exported(source, name))
    call = candidate_from_kernel(path, name)
    weakref.finalize(call, shutil.rmtree, folder, ignore_errors=True)  # keep the folder as long as the candidate
    return call


def run(
    kernel, before: list, shape: tuple[int, ...], after: list, dtype: type = np.float32, grid: tuple | None = None
) -> np.ndarray:
    """Launch kernel(*before, y, *after) in blocks of THREADS and return y.

    before, after: the arguments before and after y: arrays, NumPy scalars, and ints, which become C ints.
    grid: the grid; default: as many blocks as give every number of y a thread.
    Raise Wrong if the kernel writes past the end of y or leaves part of it unwritten.
    """

    def argument(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            edge = np.full(MARGIN, STRANGE, dtype=value.dtype)
            return gpuarray.to_gpu(np.concatenate([value.ravel(), edge]))
        return np.int32(value) if isinstance(value, int) else value

    size = int(np.prod(shape))
    unwritten = dtype(np.nan) if np.dtype(dtype).kind == "f" else dtype(-123456789)
    y = gpuarray.to_gpu(np.full(size + MARGIN, unwritten, dtype=dtype))
    grid = grid or (-(-size // THREADS), 1, 1)
    kernel(*map(argument, before), y, *map(argument, after), block=(THREADS, 1, 1), grid=grid)
    result = y.get()
    strayed = np.flatnonzero(~same(result[size:], unwritten))
    if len(strayed):
        raise Wrong(
            f"The output has {size:,} numbers, the grid has {math.prod(grid) * THREADS:,} threads, and "
            f"{len(strayed):,} numbers past its end were written, into memory of others."
        )
    missing = np.flatnonzero(same(result[:size], unwritten))
    if len(missing) == size:
        raise Wrong("The kernel wrote nothing to the output.")
    if len(missing) and np.dtype(dtype).kind != "f":
        raise Wrong(f"{len(missing)} of {size} outputs were never written; the first is number {missing[0]}.")
    return result[:size].reshape(shape)


def counted_run(kernel, *arguments: Any, **options: Any) -> tuple[np.ndarray, Counters]:
    """Run a kernel as `run` does, watched. Return y and what was counted."""
    with watch() as seen:
        y = run(kernel, *arguments, **options)
    (counters,) = seen.counters.values()
    return y, counters


def same(values: np.ndarray, value: Any) -> np.ndarray:
    """Return where `values` equals `value`, counting NaN as equal to NaN."""
    return np.isnan(values) if value != value else values == value


def told_apart(value: float, wanted: float) -> str:
    """Say that a value should be another, in as many digits as tell them apart."""
    for digits in (6, 9, 17):
        given, right = f"{value:.{digits}g}", f"{wanted:.{digits}g}"
        if given != right:
            break
    return f"{given}, and should be {right}"


def compare(y: np.ndarray, expected: np.ndarray, axes: tuple[str, ...], tolerance: float = 1e-5) -> None:
    """Raise Wrong, saying where the errors are, unless y is `expected` (float64). axes: the names of y's dimensions."""
    allowed = tolerance * (np.abs(expected) + np.sqrt(np.mean(expected**2)))
    wrong = ~(np.abs(y - expected) <= allowed)  # NaN is wrong
    if not wrong.any():
        return
    first = tuple(int(index) for index in np.argwhere(wrong)[0])
    place = ", ".join(f"{name} {index}" for name, index in zip(axes, first, strict=True))
    count = int(wrong.sum())
    text = f"{count:,} of {wrong.size:,} numbers {'is' if count == 1 else 'are'} wrong. "
    text += f"The first is at {place}: {told_apart(y[first], expected[first])}."
    for axis, name in enumerate(axes):
        others = tuple(other for other in range(wrong.ndim) if other != axis)
        bad = np.flatnonzero(wrong.any(axis=others))
        if 0 < len(bad) < wrong.shape[axis] and wrong.shape[axis] > 1:
            listed = ", ".join(map(str, bad[:6])) + (" ..." if len(bad) > 6 else "")
            text += f" Only {name} {listed} (of {wrong.shape[axis]}) has errors."
    raise Wrong(text)
