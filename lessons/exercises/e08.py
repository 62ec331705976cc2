"""Exercise of lesson 08: which lane holds which element of a tensor core's result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fusedref.csrc import COMMON
from fusedref.emulator import SourceModule, driver
from lessons.exercises import Exercise, Wrong, parts

ONE_MMA = """
#include "ptx.cuh"

extern "C" __global__ void one_mma(const float* a, const float* b, float* d)  // a [16, 8], b [8, 8], d [lane, 4]
{
    const int lane = threadIdx.x, group = lane / 4, member = lane % 4;
    const uint32_t a0 = ptx::to_tf32(a[group * 8 + member]),     a1 = ptx::to_tf32(a[(group + 8) * 8 + member]);
    const uint32_t a2 = ptx::to_tf32(a[group * 8 + member + 4]), a3 = ptx::to_tf32(a[(group + 8) * 8 + member + 4]);
    const uint32_t b0 = ptx::to_tf32(b[member * 8 + group]),     b1 = ptx::to_tf32(b[(member + 4) * 8 + group]);
    float sum[4] = {};
    ptx::mma_m16n8k8_tf32(sum, a0, a1, a2, a3, b0, b1, sum);
    for (int i = 0; i < 4; i++) d[lane * 4 + i] = sum[i];
}
"""


def one_mma(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Run one tensor-core instruction on the emulator.

    Return a [16, 8] times b [8, 8] as the lanes hold it: [32, 4].
    """
    kernel = SourceModule(ONE_MMA, no_extern_c=True, include_dirs=[str(COMMON)]).get_function("one_mma")
    d = np.empty((32, 4), dtype=np.float32)
    operands = (driver.In(np.ascontiguousarray(matrix, dtype=np.float32)) for matrix in (a, b))
    kernel(*operands, driver.Out(d), block=(32, 1, 1), grid=(1, 1))
    return d


def holder_answer(row, column):
    return row % 8 * 4 + column // 2, row // 8 * 2 + column % 2


def _judge_holder(answer: Callable[..., Any]) -> str:
    a, b = np.zeros((16, 8)), np.zeros((8, 8))
    a[:, 0], a[:, 1] = 8 * np.arange(16), 1
    b[0, :], b[1, :] = 1, np.arange(8)  # d[row, column] = 8 row + column
    held = one_mma(a, b)
    for row, column in np.ndindex(16, 8):
        ((lane, register),) = np.argwhere(held == 8 * row + column).tolist()
        given = parts(answer(row, column), "(lane, register)")
        for what, value, right in zip(("lane", "register"), given, (lane, register), strict=True):
            if value != right:
                raise Wrong(f"Row {row}, column {column} is in {what} {right}; you say {value}.")
    return "All 128 numbers are where you say: the emulator ran the instruction to check it."


holder = Exercise(
    _judge_holder,
    [
        "Go down a column of the picture: how does the lane change from row to row? And after eight rows?",
        "Go along a row: two neighbours share a lane. Which of the four registers is which?",
    ],
    holder_answer,
)
