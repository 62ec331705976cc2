"""Exercises of lesson 12: statistics from the moments of patches, and products that float64 holds exactly."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from fusedref.emulator import driver
from lessons.exercises import Exercise, Wrong
from lessons.exercises.kernels import THREADS
from lessons.exercises.warp import function, watched


def statistics_answer(weight, bias, patch_mean, patch_cov):
    mean = weight @ patch_mean + bias
    var = ((weight @ patch_cov) * weight).sum(axis=1)
    return mean, var


def _judge_statistics(answer: Callable[..., Any]) -> str:
    draw = np.random.default_rng(12)
    for channels, taps in ((4, 7), (5, 5), (1, 3)):
        patches = draw.standard_normal((200, taps)) @ draw.standard_normal((taps, taps)) + draw.standard_normal(taps)
        weight, bias = draw.standard_normal((channels, taps)), draw.standard_normal(channels)
        given = answer(weight.copy(), bias.copy(), patches.mean(axis=0), np.cov(patches.T, ddof=0).reshape(taps, taps))
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise Wrong(f"It should return two arrays, (mean, var); it returned {type(given).__name__}.")
        z = patches @ weight.T + bias
        for name, value, right in zip(("mean", "var"), given, (z.mean(axis=0), z.var(axis=0)), strict=True):
            value = np.asarray(value, dtype=np.float64)
            if value.shape != right.shape:
                raise Wrong(
                    f"With {channels} channels, {name} should have {channels} numbers, one a channel; "
                    f"it has the shape {list(value.shape)}."
                )
            if not np.allclose(value, right, rtol=1e-9, atol=1e-9):
                why = ""
                if name == "mean" and np.allclose(value, right - bias):
                    why = " The bias is missing."
                if name == "var" and np.allclose(value - bias, right):
                    why = " A constant such as the bias has no variance."
                if name == "var" and np.allclose(value, weight**2 @ patches.var(axis=0)):
                    why = " That is right only where the numbers of a patch have nothing to do with each other."
                where = f"With {channels} channels of {taps} products"
                raise Wrong(f"{where}, {name}[0] is {value[0]:.6g} and should be {right[0]:.6g}.{why}")
    return "The statistics of every channel, and no convolution was computed."


statistics = Exercise(
    _judge_statistics,
    [
        "z is a weighted sum of the patch's numbers, plus the bias. What is the mean of a weighted sum?",
        "The variance of w . P is the mean of (w . (P - mean))^2. Multiplied out, it is a sum over pairs of taps.",
        "weight @ patch_cov is [channels, taps]. One more product with weight is left, and a sum over the taps.",
    ],
    statistics_answer,
)

_LAGS = """
__global__ void lags(const float* x, double* sums, int size)
{
    __shared__ double of_warp[3][8];
    for (int lag = 0; lag < 3; lag++) {
        double sum = 0;
        for (int i = threadIdx.x; i + lag < size; i += blockDim.x) sum += (double)x[i] * x[i + lag];
        for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffff, sum, offset);
        if (threadIdx.x % 32 == 0) of_warp[lag][threadIdx.x / 32] = sum;
    }
    __syncthreads();
    if (threadIdx.x < 3) {
        double sum = 0;
        for (int warp = 0; warp < 8; warp++) sum += of_warp[threadIdx.x][warp];
        sums[threadIdx.x] = sum;
    }
}
"""


def _judge_lags(source: str) -> str:
    kernel = function(source, "lags")
    for size, around in ((1000, 0), (700, 300), (2, 0), (1, 5)):
        x = (around + np.random.default_rng(size).standard_normal(size)).astype(np.float32)
        exact = x.astype(np.float64)
        right = np.array([exact[: max(size - lag, 0)] @ exact[min(lag, size) :] for lag in range(3)])
        before: np.ndarray | None = None
        for seed in (0, 1, 2):
            sums = np.empty(3)
            launch = partial(kernel, driver.In(x), driver.Out(sums), np.int32(size), block=(THREADS, 1, 1), grid=(1, 1))
            watched(launch, seed)
            where = f"With {size} numbers around {around}:"
            scale = max(float(exact @ exact), 1e-300)
            for lag in range(3):
                error = abs(sums[lag] - right[lag]) / scale
                if not error < 1e-13:
                    why = ""
                    if error < 1e-6:
                        why = " A product or a sum was rounded to float32 on its way."
                    elif np.isclose(sums[lag], float(np.square(exact[: size - lag]).sum())) and lag:
                        why = " The second factor should come from lag places further on."
                    elif np.isclose(sums[lag], exact @ np.roll(exact, -lag)):
                        why = " At the end of x there is no next number; this one went on at the beginning."
                    elif np.isnan(sums[lag]):
                        why = " It was never written."
                    raise Wrong(f"{where} sums[{lag}] is {sums[lag]:.12g} and should be {right[lag]:.12g}.{why}")
            if before is not None and before.tobytes() != sums.tobytes():
                raise Wrong(
                    f"{where} the last bits depend on the order of the threads. Who adds to whom must be fixed."
                )
            before = sums
    return "Exact products, sums in float64, and the same bits whatever the order of the threads."


lags = Exercise(
    _judge_lags,
    [
        "float * float is a float in C. Convert one factor first: (double)x[i] * x[i + lag].",
        "Three sums, each a reduction as in lesson 11: the threads' own numbers, shuffles, shared memory.",
        "A shuffle needs all 32 lanes, also those without a number: let them bring a zero.",
    ],
    _LAGS,
)
