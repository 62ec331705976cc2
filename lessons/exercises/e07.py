"""Exercises of lesson 07: a tile of sums in registers, and its best shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from fusedref.emulator import driver
from lessons.exercises import Exercise, Wrong, parts, whole
from lessons.exercises.kernels import THREADS, compare
from lessons.exercises.warp import function, watched

GIVEN = """
// All threads of the block copy w [32, 64] to ws [k][row] and x [64, 128] to xs [k][column], and wait for each other.
__device__ void copy(const float* w, const float* x, float (*ws)[32], float (*xs)[128])
{
    for (int i = threadIdx.x; i < 32 * 64; i += blockDim.x) ws[i / 32][i % 32] = w[i % 32 * 64 + i / 32];
    for (int i = threadIdx.x; i < 64 * 128; i += blockDim.x) xs[i / 128][i % 128] = x[i];
    __syncthreads();
}
"""
_MATMUL = (
    GIVEN
    + """
__global__ void matmul(const float* w, const float* x, float* y)
{
    __shared__ float ws[64][32], xs[64][128];  // [k][row], [k][column]
    copy(w, x, ws, xs);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float sum[4][4] = {};
    for (int k = 0; k < 64; k++) {
        float weights[4], pixels[4];
        for (int r = 0; r < 4; r++) weights[r] = ws[k][4 * warp + r];
        for (int c = 0; c < 4; c++) pixels[c] = xs[k][lane + 32 * c];
        for (int r = 0; r < 4; r++)
            for (int c = 0; c < 4; c++) sum[r][c] += weights[r] * pixels[c];
    }
    for (int r = 0; r < 4; r++)
        for (int c = 0; c < 4; c++) y[(4 * warp + r) * 128 + lane + 32 * c] = sum[r][c];  // y is [32, 128]
}
"""
)


def _judge_matmul(source: str) -> str:
    kernel = function(source, "matmul")
    draw = np.random.default_rng(7)
    w, x = draw.standard_normal((32, 64), dtype=np.float32), draw.standard_normal((64, 128), dtype=np.float32)
    y = np.empty((32, 128), dtype=np.float32)
    seen = watched(partial(kernel, driver.In(w), driver.In(x), driver.Out(y), block=(THREADS, 1, 1), grid=(1, 1)))
    compare(y, w.astype(np.float64) @ x, ("row", "column"))
    counters = seen.counters["matmul"]
    steps = 64 * THREADS // 32
    if counters.shared_load_bank_conflicts:
        raise Wrong(
            f"All numbers are right, but loads from shared memory have {counters.shared_load_bank_conflicts:,} bank "
            "conflicts; par is 0. Which columns should two neighbouring lanes take?"
        )
    if counters.shared_load_requests > 8 * steps:
        raise Wrong(
            f"All numbers are right, but a warp makes {counters.shared_load_requests / steps:g} requests to shared "
            "memory for each k; par is 8. Load the numbers into registers first, then multiply each with each."
        )
    if counters.global_store_sectors > 4 * counters.global_store_requests:
        raise Wrong(
            f"All numbers are right, but a store of a warp touches "
            f"{counters.global_store_sectors / counters.global_store_requests:g} sectors; par is 4."
        )
    return f"Your kernel: a warp makes {counters.shared_load_requests / steps:g} requests for each k (par 8)."


matmul = Exercise(
    _judge_matmul,
    [
        "For each k: four weights and four numbers of x, into eight registers. Then sixteen multiply-adds.",
        "All lanes of a warp have the same rows: their four weights are broadcasts. Their columns differ.",
        "Lane l has the columns l, l + 32, l + 64 and l + 96.",
    ],
    _MATMUL,
)


def best_tile_answer(registers):
    fitting = [
        (channels, pixels)
        for channels in range(1, registers)
        for pixels in range(1, registers)
        if channels * pixels + channels + pixels <= registers
    ]
    return min(fitting, key=lambda tile: (tile[0] + tile[1]) / (tile[0] * tile[1]))


def _judge_best_tile(answer: Callable[..., Any]) -> str:
    for registers in (3, 15, 44, 63, 120, 200):
        returned = parts(answer(registers), "(channels, pixels)")
        channels, pixels = given = [whole(number) or 0 for number in returned]
        if min(given) < 1:
            raise Wrong(
                f"With {registers} registers it returned {returned!r}; it should return two whole numbers above 0."
            )
        needed = channels * pixels + channels + pixels
        if needed > registers:
            raise Wrong(
                f"With {registers} registers, {channels} x {pixels} does not fit: the sums and the numbers loaded for "
                f"them need {needed}."
            )
        right = best_tile_answer(registers)
        loaded, least = (sum(tile) / (tile[0] * tile[1]) for tile in (given, right))
        if loaded > least * (1 + 1e-9):
            raise Wrong(
                f"With {registers} registers, {channels} x {pixels} fits and loads {loaded:.3f} numbers for a "
                f"multiply-add. There is a tile that loads {least:.3f}."
            )
    return "The nearer to a square, the fewer numbers are loaded; the more registers, the larger the square."


best_tile = Exercise(
    _judge_best_tile,
    [
        "channels x pixels sums stay in registers, and channels + pixels loaded numbers beside them.",
        "Minimise the numbers loaded, divided by the multiply-adds that use them.",
        "You need no formula. A loop over both numbers finds it.",
    ],
    best_tile_answer,
)
