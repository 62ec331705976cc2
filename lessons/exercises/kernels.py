"""Runs a learner's kernel where it cannot do harm, and says what was wrong with what it wrote."""

from __future__ import annotations

import math
import re
import tempfile
from pathlib import Path

import numpy as np

from fusedref.cuda import SourceModule, gpuarray
from fusedref.validation import Candidate, candidate_from_kernel
from lessons.exercises import Wrong

THREADS = 256
MARGIN = 8192  # numbers beyond the end of every array: a stray thread is seen, and does no harm

STRANGE = 1e15  # what stands there in the inputs; not NaN, which could not be told from the unwritten


def code(source: str) -> str:
    """The source without its comments, for checks that look for a word in it."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", source, flags=re.DOTALL)


def compiled(source: str, name: str, module: type = SourceModule):
    """The kernel `name` of the source. module: compiles it; the door's SourceModule, or the emulator's."""
    if not isinstance(source, str):
        raise Wrong(f"The answer is the source text of a kernel; this is a {type(source).__name__}.")
    if not re.search(rf"__global__\s+void\s+(__launch_bounds__\(\w+\)\s*)?{name}\s*\(", code(source)):
        raise Wrong(f"There is no `__global__ void {name}(...)` in it.")
    try:
        return module(source).get_function(name)
    except Exception as error:
        lines = [line for line in str(error).splitlines() if "error" in line.lower()]
        raise Wrong(f"It does not compile: `{(lines or str(error).splitlines() or ['?'])[0].strip()}`") from error


def candidate(source: str, name: str) -> Candidate:
    """The kernel `name`, with the signature of rung 04, as a function that `fusedref.validate` takes."""
    exported = re.sub(rf'(extern\s+"C"\s+)?(__global__\s+void\s+{name}\b)', r'extern "C" \2', source)
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "kernel.cu"
    path.write_text(exported)
    call = candidate_from_kernel(path, name)
    call.folder = folder  # lives as long as the candidate
    return call


def run(
    kernel, before: list, shape: tuple[int, ...], after: list, dtype: type = np.float32, grid: tuple | None = None
) -> np.ndarray:
    """Launch kernel(*before, y, *after) in blocks of THREADS, and return y.

    before, after: the arguments on either side of y: arrays, NumPy scalars, and ints, which become the C type int.
    grid: as few blocks as give every number of y a thread, if not given.
    """

    def argument(value):
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
            f"The output has {size} numbers, the grid has {math.prod(grid) * THREADS} threads, and "
            f"{len(strayed)} of the threads too many wrote past its end: into somebody else's memory."
        )
    missing = np.flatnonzero(same(result[:size], unwritten))
    if len(missing) == size:
        raise Wrong("Nothing was written to the output.")
    if len(missing) and np.dtype(dtype).kind != "f":
        raise Wrong(f"{len(missing)} of {size} outputs were never written; the first is number {missing[0]}.")
    return result[:size].reshape(shape)


def same(values: np.ndarray, value) -> np.ndarray:
    return np.isnan(values) if value != value else values == value


def compare(y: np.ndarray, expected: np.ndarray, axes: tuple[str, ...], tolerance: float = 1e-5) -> None:
    """Refuse y where it is not `expected` (float64), saying where the errors sit. axes: the names of y's dimensions."""
    allowed = tolerance * (np.abs(expected) + np.sqrt(np.mean(expected**2)))
    wrong = ~(np.abs(y - expected) <= allowed)  # NaN is wrong
    if not wrong.any():
        return
    first = tuple(int(index) for index in np.argwhere(wrong)[0])
    place = ", ".join(f"{name} {index}" for name, index in zip(axes, first, strict=True))
    text = f"{wrong.sum()} of {wrong.size} numbers are wrong. The first is at {place}: "
    text += f"{y[first]:.6g}, and should be {expected[first]:.6g}."
    for axis, name in enumerate(axes):
        others = tuple(other for other in range(wrong.ndim) if other != axis)
        bad = np.flatnonzero(wrong.any(axis=others))
        if 0 < len(bad) < wrong.shape[axis] and wrong.shape[axis] > 1:
            listed = ", ".join(map(str, bad[:6])) + (" ..." if len(bad) > 6 else "")
            text += f" Only {name} {listed} (of {wrong.shape[axis]}) has any."
    raise Wrong(text)
