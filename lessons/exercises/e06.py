"""Exercise of lesson 06: a tile of inputs in shared memory, with its halo."""

from __future__ import annotations

from functools import partial

import numpy as np

from fusedref.emulator import driver
from lessons.exercises import Exercise, Wrong
from lessons.exercises.kernels import compare
from lessons.exercises.warp import function, watched

_BOX = """
__global__ void box(const float* x, float* y, int height, int width)
{
    __shared__ float tile[10][34];
    const int thread = threadIdx.y * 32 + threadIdx.x;
    const int top = blockIdx.y * 8, left = blockIdx.x * 32;
    for (int i = thread; i < 10 * 34; i += 256) {
        const int row = top + i / 34, column = left + i % 34;
        tile[i / 34][i % 34] = row < height && column < width ? x[row * width + column] : 0;
    }
    __syncthreads();
    const int row = top + threadIdx.y, column = left + threadIdx.x;
    if (row >= height - 2 || column >= width - 2) return;
    float sum = 0;
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++) sum += tile[threadIdx.y + i][threadIdx.x + j];
    y[row * (width - 2) + column] = sum;
}
"""


def _judge_box(source: str) -> str:
    kernel = function(source, "box")
    for height, width in ((10, 34), (19, 71)):
        x = np.random.default_rng(6).standard_normal((height, width), dtype=np.float32)
        y = np.empty((height - 2, width - 2), dtype=np.float32)
        across, down = -(-(width - 2) // 32), -(-(height - 2) // 8)
        arguments = driver.In(x), driver.Out(y), np.int32(height), np.int32(width)
        seen = watched(partial(kernel, *arguments, block=(32, 8, 1), grid=(across, down)))
        windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (3, 3))
        compare(y, windows.sum(axis=(2, 3)), ("row", "column"))
        requests, most = seen.counters["box"].global_load_requests, across * down * -(-10 * 34 // 32)
        if requests > most:
            raise Wrong(
                f"All numbers are right, but {across * down} blocks make {requests} requests to global memory; "
                f"loading each tile once takes {most}."
            )
    return f"Nine numbers an output, and {requests} requests to global memory for {across * down} blocks."


box = Exercise(
    _judge_box,
    [
        "How many numbers does the tile have? There are fewer threads, so each loads every 256th number.",
        "A thread reads numbers that other threads copied. What must happen first?",
        "Row and column of the tile begin at 0 in every block: threadIdx gives the place of a thread's window.",
    ],
    _BOX,
)
