"""Exercises of "Seeing what a warp does": the emulator watches the answers, and its counters judge them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from fusedref.csrc import COMMON
from fusedref.emulator import SourceModule, driver, watch
from fusedref.emulator.watching import WatchResult
from lessons.exercises import Exercise, Wrong
from lessons.exercises.kernels import THREADS, compare, compiled, exported


def function(source: str, name: str):
    """Compile the source on the emulator and return its kernel `name`. Findings call the source name.cu.

    The source may include ptx.cuh.
    """
    if isinstance(source, str):
        source = f'#line 1 "{name}.cu"\n{exported(source.strip(), name)}\n'
    return compiled(source, name, partial(SourceModule, no_extern_c=True, include_dirs=[str(COMMON)]))


def watched(launch: Callable[[], None], seed: int = 0, why: Mapping[str, str] = {}) -> WatchResult:
    """Watch the launch and return what was seen. Raise Wrong if there is a finding.

    why: for a kind of finding, what it means in this exercise.
    """
    with watch(seed) as seen:
        launch()
    if seen.findings:
        first, *others = seen.findings
        more = f" (and {len(others)} more)" if others else ""
        raise Wrong(f"{first.kind}: `{first}`{more}{' ' if first.kind in why else ''}{why.get(first.kind, '')}")
    return seen


_LOAD = """
__global__ void load(const float* x, int first, int stride, float* y)
{
    y[threadIdx.x] = x[first + stride * threadIdx.x];
}
"""


def sectors_answer(first, stride):
    return len({(first + stride * lane) * 4 // 32 for lane in range(32)})


def _judge_sectors(answer: Callable[..., Any]) -> str:
    load = function(_LOAD, "load")
    x, y = np.zeros(2048, dtype=np.float32), np.empty(32, dtype=np.float32)
    for first, stride in ((0, 1), (0, 0), (1, 1), (8, 1), (0, 2), (5, 2), (3, 3), (0, 8), (4, 8), (2, 33), (31, -1)):
        with watch() as seen:
            load(driver.In(x), np.int32(first), np.int32(stride), driver.Out(y), block=(32, 1, 1), grid=(1, 1))
        counted, given = seen.counters["load"].global_load_sectors, answer(first, stride)
        if given != counted:
            raise Wrong(f"First {first}, stride {stride}: the watch counts {counted} sectors, you say {given}.")
    return "So does the watch. An address divided by 32 is the number of its sector."


sectors = Exercise(
    _judge_sectors,
    [
        "At which byte does the number of lane l begin? Which sector contains that byte?",
        "Lanes in the same sector count once. Which Python collection drops duplicates?",
    ],
    sectors_answer,
)


_FOUR_EACH = """
__global__ void scale(const float* x, float scaling_factor, float* y, int size)
{
    const int first = blockIdx.x * 4 * blockDim.x + threadIdx.x;
    for (int i = 0; i < 4; i++) {
        const int index = first + i * blockDim.x;
        if (index < size) y[index] = x[index] * scaling_factor;
    }
}
"""


def _judge_four_each(source: str) -> str:
    kernel = function(source, "scale")
    for size in (3001, 4096):
        x, y = np.random.default_rng(0).standard_normal(size, dtype=np.float32), np.empty(size, dtype=np.float32)
        blocks = -(-size // (4 * THREADS))
        arguments = driver.In(x), np.float32(2), driver.Out(y), np.int32(size)
        seen = watched(partial(kernel, *arguments, block=(THREADS, 1, 1), grid=(blocks, 1)))
        compare(y, 2 * x.astype(np.float64), ("number",))
    counters = seen.counters["scale"]
    if counters.bytes_moved != counters.bytes_used:
        raise Wrong(
            f"All numbers are right, but a load of a warp touches "
            f"{counters.global_load_sectors / counters.global_load_requests:g} sectors: "
            f"{counters.bytes_moved:,} bytes move for {counters.bytes_used:,} used."
        )
    return f"{counters.bytes_moved:,} bytes moved, {counters.bytes_used:,} used: no byte is wasted."


four_each = Exercise(
    _judge_four_each,
    [
        "In one turn of the loop, which numbers do lane 0 and lane 1 take? They should be neighbours.",
        "A block has 4 * blockDim.x numbers. Where do the numbers of its first turn end and those of its second begin?",
    ],
    _FOUR_EACH,
)


_TRANSPOSE = """
__global__ void transpose(const float* x, float* y, int height, int width)
{
    __shared__ float tile[32][33];

    int row = blockIdx.y * 32 + threadIdx.y, column = blockIdx.x * 32 + threadIdx.x;
    if (row < height && column < width) tile[threadIdx.y][threadIdx.x] = x[row * width + column];
    __syncthreads();

    row = blockIdx.x * 32 + threadIdx.y, column = blockIdx.y * 32 + threadIdx.x;
    if (row < width && column < height) y[row * height + column] = tile[threadIdx.x][threadIdx.y];
}
"""


def _judge_transpose(source: str) -> str:
    kernel = function(source, "transpose")
    for height, width in ((45, 70), (64, 96)):
        x = np.random.default_rng(0).standard_normal((height, width), dtype=np.float32)
        y = np.empty((width, height), dtype=np.float32)
        arguments = driver.In(x), driver.Out(y), np.int32(height), np.int32(width)
        grid = -(-width // 32), -(-height // 32)
        seen = watched(partial(kernel, *arguments, block=(32, 32, 1), grid=grid))
        compare(y, x.T.astype(np.float64), ("row", "column"))
    counters = seen.counters["transpose"]
    if counters.bytes_moved != counters.bytes_used:
        raise Wrong(f"{counters.bytes_moved:,} bytes move in global memory for {counters.bytes_used:,} used.")
    if counters.bank_conflicts:
        requests = counters.shared_load_requests + counters.shared_store_requests
        raise Wrong(f"{counters.bank_conflicts} bank conflicts in {requests} requests to shared memory.")
    return "Every byte that moves is used, and there is no bank conflict."


transpose = Exercise(
    _judge_transpose,
    [
        "The 32 lanes read one number from each row. By how many banks should that number move from row to row?",
        "A row may be longer than the data in it.",
    ],
    _TRANSPOSE,
)

BLUR = """
__global__ void blur(const float* x, float* y, int size)
{
    __shared__ float tile[256 + 2];  // the block's numbers, and a neighbour on either side

    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= size) return;

    tile[threadIdx.x + 1] = x[index];
    if (threadIdx.x == 0) tile[0] = index > 0 ? x[index - 1] : 0;
    if (threadIdx.x == blockDim.x - 1) tile[257] = x[index + 1];

    y[index] = (tile[threadIdx.x] + tile[threadIdx.x + 1] + tile[threadIdx.x + 2]) / 3;
}
"""

_BLUR = """
__global__ void blur(const float* x, float* y, int size)
{
    __shared__ float tile[256 + 2];  // the block's numbers, and a neighbour on either side

    const int index = blockIdx.x * blockDim.x + threadIdx.x;

    tile[threadIdx.x + 1] = index < size ? x[index] : 0;
    if (threadIdx.x == 0) tile[0] = index > 0 ? x[index - 1] : 0;
    if (threadIdx.x == blockDim.x - 1) tile[257] = index + 1 < size ? x[index + 1] : 0;
    __syncthreads();

    if (index < size) y[index] = (tile[threadIdx.x] + tile[threadIdx.x + 1] + tile[threadIdx.x + 2]) / 3;
}
"""


def _judge_blur(source: str) -> str:
    kernel, told = function(source, "blur"), ""
    for size in (600, 512, 256, 257, 1):
        x, y = np.random.default_rng(0).standard_normal(size, dtype=np.float32), np.empty(size, dtype=np.float32)
        arguments = driver.In(x), driver.Out(y), np.int32(size)
        for seed in (0, 1):
            try:
                seen = watched(partial(kernel, *arguments, block=(THREADS, 1, 1), grid=(-(-size // THREADS), 1)), seed)
            except Wrong as wrong:
                raise Wrong(f"With {size} number{'s' * (size > 1)}, {wrong}") from None
            expected = np.convolve(x.astype(np.float64), np.ones(3) / 3)[1:-1]
            compare(y, expected, ("number",))
        requests, par = seen.counters["blur"].global_load_requests, -(-size // 32) + 2 * -(-size // THREADS)
        if requests > par:
            raise Wrong(
                f"All numbers are right, but {requests} requests load {size} number{'s' * (size > 1)}; par is {par}. "
                "A thread's neighbours should find its number in the tile."
            )
        told = told or f"{requests} requests to load {size} numbers (par {par})"
    return f"Right for every size and thread order, with no findings; {told}."


blur = Exercise(
    _judge_blur,
    [
        "Who writes the numbers that a thread reads from its neighbours? What must come between the two?",
        "A barrier needs all threads of a block. May any of them return early?",
        "Try a size that is a multiple of 256. And with another size, who writes the last number's right neighbour?",
    ],
    _BLUR,
)
