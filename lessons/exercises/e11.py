"""Exercises of lesson 11: merge two sets of numbers, and reduce a row by one block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from fusedref.emulator import driver
from lessons.exercises import Exercise, Wrong
from lessons.exercises.kernels import THREADS, compare
from lessons.exercises.warp import function, watched


def merge_answer(count_a, mean_a, squares_a, count_b, mean_b, squares_b):
    count = count_a + count_b
    if count == 0:
        return 0, 0.0, 0.0
    distance = mean_b - mean_a
    mean = mean_a + distance * count_b / count
    squares = squares_a + squares_b + distance**2 * count_a * count_b / count
    return count, mean, squares


def _moments(values: np.ndarray) -> tuple[int, float, float]:
    if not len(values):
        return 0, 0.0, 0.0
    return len(values), float(values.mean()), float(((values - values.mean()) ** 2).sum())


def _judge_merge(answer: Callable[..., Any]) -> str:
    draw = np.random.default_rng(11)
    for first, second in ((1, 7), (4, 4), (9, 2), (5, 0), (0, 5), (0, 0)):
        a, b = draw.standard_normal(first), draw.standard_normal(second) + 10
        right = _moments(np.concatenate([a, b]))
        given = answer(*_moments(a), *_moments(b))
        try:
            count, mean, squares = (float(value) for value in given)
        except (TypeError, ValueError):
            raise Wrong(f"It should return three numbers (count, mean, squares); it returned {given!r}.") from None
        where = f"{first} numbers around 0 and {second} around 10:"
        for name, value, wanted in zip(("count", "mean", "squares"), (count, mean, squares), right, strict=True):
            if not np.isclose(value, wanted, rtol=1e-9, atol=1e-9):
                hint = ""
                if name == "squares" and np.isclose(value, _moments(a)[2] + _moments(b)[2]):
                    hint = " The distance between the two means is missing."
                raise Wrong(f"{where} {name} is {value:.6g} and should be {wanted:.6g}.{hint}")
    return "Count, mean and squares of both sets, and not one of their numbers was read again."


merge = Exercise(
    _judge_merge,
    [
        "The mean of both moves from the first mean towards the second, by the second set's share of the numbers.",
        "Each set's squares are around its own mean. Moving a set of n numbers to a mean at distance d adds n * d * d.",
        "What should come out of two empty sets? Nothing may be divided by zero.",
    ],
    merge_answer,
)

GIVEN = """
struct Moments {
    float count, mean, squares;
};

__device__ Moments merge(Moments a, Moments b)
{
    const float count = a.count + b.count;
    if (count == 0) return a;
    const float distance = b.mean - a.mean, share = b.count / count;
    return {count, a.mean + distance * share, a.squares + b.squares + distance * distance * a.count * share};
}
"""

_STATISTICS = (
    GIVEN
    + """
__global__ void statistics(const float* x, float* mean, float* var, int size)
{
    __shared__ Moments of_warp[8];
    Moments mine = {0, 0, 0};
    for (int i = threadIdx.x; i < size; i += blockDim.x) mine = merge(mine, {1, x[blockIdx.x * size + i], 0});

    for (int offset = 16; offset > 0; offset /= 2)
        mine = merge(mine, {__shfl_down_sync(0xffffffff, mine.count, offset),
                            __shfl_down_sync(0xffffffff, mine.mean, offset),
                            __shfl_down_sync(0xffffffff, mine.squares, offset)});
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int warp = 1; warp < 8; warp++) mine = merge(mine, of_warp[warp]);
        mean[blockIdx.x] = mine.mean;
        var[blockIdx.x] = mine.squares / mine.count;
    }
}
"""
)


def _explain(rows: np.ndarray, mean: np.ndarray, var: np.ndarray, around: int) -> None:
    """Raise Wrong with the mistake that explains mean and var, if they are wrong and one of those below does."""
    size, right_mean, right_var = rows.shape[1], rows.mean(axis=1), rows.var(axis=1)
    where = f"With {size} numbers around {around}:"

    def near(values: np.ndarray, others: np.ndarray, tolerance: float = 1e-4) -> bool:
        return np.allclose(values, others, rtol=tolerance, atol=1e-6)

    if near(mean, right_mean) and near(var, right_var):
        return
    if np.isnan(mean).any() or np.isnan(var).any():
        empty = max(0, THREADS - size)
        raise Wrong(
            f"{where} NaN. {empty} of the {THREADS} threads have no number; what happens to a set without numbers?"
        )
    lanes = np.arange(size) % THREADS
    for part, name in ((lanes == 0, "thread 0"), (lanes < 32, "warp 0"), (lanes % 32 == 0, "the lanes 0")):
        if not part.all() and near(mean, rows[:, part].mean(axis=1)):
            raise Wrong(f"{where} this is the mean of the numbers of {name} alone: {mean[0]:.6g}.")
    if near(mean, right_mean):
        if size > 1 and near(var, right_var * size / (size - 1)):
            raise Wrong(f"{where} var is divided by size - 1. BatchNorm normalises with the biased variance, by size.")
        if near(var, right_var * size):
            raise Wrong(f"{where} var is the sum of the squares, not yet their mean.")
        if near(var, np.sqrt(right_var)):
            raise Wrong(f"{where} this is the standard deviation; the variance is its square.")
        if around and np.abs(var - right_var).max() < 1e-6 * float(np.square(rows).mean()):
            raise Wrong(
                f"{where} var is {var[0]:.6g} and should be {right_var[0]:.6g}. Around 0 it is right. "
                "Two large numbers that nearly cancel leave their rounding behind."
            )


def _judge_statistics(source: str) -> str:
    kernel = function(source, "statistics")
    told = ""
    for count, size, around in ((2, 1000, 0), (3, 3000, 100), (2, 5, 0), (1, 1, 0)):
        draw = np.random.default_rng(size)
        x = (around + draw.standard_normal((count, size))).astype(np.float32)
        mean, var = np.empty(count, dtype=np.float32), np.empty(count, dtype=np.float32)
        arguments = driver.In(x), driver.Out(mean), driver.Out(var), np.int32(size)
        for seed in (0, 1):
            seen = watched(partial(kernel, *arguments, block=(THREADS, 1, 1), grid=(count, 1)), seed)
            _explain(x.astype(np.float64), mean, var, around)
            compare(mean, x.astype(np.float64).mean(axis=1), ("row",))
            compare(var, x.astype(np.float64).var(axis=1), ("row",), 1e-4)
        counters = seen.counters["statistics"]
        requests, par = counters.global_load_requests, count * -(-size // 32)
        if requests > par + 8 * count:  # a warp may read one number more, as an origin
            raise Wrong(
                f"All numbers are right, but {count} rows of {size} numbers take {requests} requests to global memory; "
                f"par is {par}, for each number read once."
            )
        if counters.global_load_sectors > 5 * requests:
            raise Wrong(
                f"All numbers are right, but a request touches {counters.global_load_sectors / requests:.1f} sectors; "
                "par is 4. Neighbouring lanes should take neighbouring numbers."
            )
        told = told or f"{requests} requests for {count} rows of {size} numbers, par {par}"
    return f"{told}, and no race in any order of the threads."


statistics = Exercise(
    _judge_statistics,
    [
        "Three steps: every thread its own numbers, every warp its 32 lanes by __shfl_down_sync, thread 0 the 8 warps.",
        "A single number is a set, too: {1, value, 0}. And a thread without numbers has {0, 0, 0}.",
        "Thread 0 reads what lane 0 of each warp left in shared memory. What must lie between the two?",
    ],
    _STATISTICS,
)
