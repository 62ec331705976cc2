"""Exercises of lesson 08: which lane holds which element of a tensor core's result, and a product of several steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from fusedref.csrc import COMMON
from fusedref.emulator import SourceModule, driver
from lessons.exercises import Exercise, Wrong, parts
from lessons.exercises.kernels import compare
from lessons.exercises.warp import function, watched

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

_PRODUCT = """
#include "ptx.cuh"

__global__ void product(const float* a, const float* b, float* d)  // a [16, 24], b [24, 8], d [16, 8]; one warp
{
    const int lane = threadIdx.x, group = lane / 4, member = lane % 4;
    float sum[4] = {};
    for (int k = 0; k < 24; k += 8) {
        const float *upper = a + group * 24 + k + member, *lower = upper + 8 * 24;  // rows group and group + 8
        const uint32_t a0 = ptx::to_tf32(upper[0]), a1 = ptx::to_tf32(lower[0]);
        const uint32_t a2 = ptx::to_tf32(upper[4]), a3 = ptx::to_tf32(lower[4]);
        const float* column = b + (k + member) * 8 + group;
        const uint32_t b0 = ptx::to_tf32(column[0]), b1 = ptx::to_tf32(column[4 * 8]);
        ptx::mma_m16n8k8_tf32(sum, a0, a1, a2, a3, b0, b1, sum);
    }
    for (int i = 0; i < 4; i++) d[(group + i / 2 * 8) * 8 + member * 2 + i % 2] = sum[i];
}
"""


def _tf32(v: np.ndarray) -> np.ndarray:
    """Round to tf32 as to_tf32 does."""
    return ((v.view(np.uint32) + 0x1000) & 0xFFFFE000).view(np.float32)


def _judge_product(source: str) -> str:
    kernel = function(source, "product")
    draw = np.random.default_rng(8)
    a, b = draw.standard_normal((16, 24), dtype=np.float32), draw.standard_normal((24, 8), dtype=np.float32)
    d = np.empty((16, 8), dtype=np.float32)
    seen = watched(partial(kernel, driver.In(a), driver.In(b), driver.Out(d), block=(32, 1, 1), grid=(1, 1)))
    right = _tf32(a).astype(np.float64) @ _tf32(b)
    last = _tf32(a[:, 16:]).astype(np.float64) @ _tf32(b[16:])
    cut = [(v.view(np.uint32) & 0xFFFFE000).view(np.float32).astype(np.float64) for v in (a, b)]
    exchanged = a.reshape(2, 8, 3, 2, 4).transpose(3, 1, 2, 0, 4).reshape(16, 24)
    for text, like in (
        ("These are the products of the last eight k alone: the steps before must be added.", last),
        ("The numbers are cut off where they should be rounded: `ptx::to_tf32` rounds.", cut[0] @ cut[1]),
        (
            "a1 and a2 are exchanged: a1 has row group + 8, a2 has k + 4.",
            _tf32(exchanged).astype(np.float64) @ _tf32(b),
        ),
        (
            "The two halves of the rows are exchanged on the way out: sums 2 and 3 belong to row group + 8.",
            np.roll(right, 8, axis=0),
        ),
    ):
        if np.allclose(d, like, atol=1e-5) and not np.allclose(d, right, atol=1e-5):
            raise Wrong(text)
    compare(d, right, ("row", "column"))
    requests = seen.counters["product"].global_load_requests
    return f"Your kernel: three mma, {requests} requests to load (ours: 18), 1024 multiply-adds in each mma."


product = Exercise(
    _judge_product,
    [
        "One step of eight k is `one_mma` of above; only the rows of a are 24 long now, and k begins at 0, 8 and 16.",
        "The last argument of mma is added to the product. Begin with zeros, and pass on what you have.",
        "On the way out, the rule of `holder`, the other way round: row and column from lane and register.",
    ],
    _PRODUCT,
)
