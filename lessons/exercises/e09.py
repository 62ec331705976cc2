"""Exercises of lesson 09: a number split into two fp16 numbers, and dot products of such pairs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from fusedref.emulator import driver
from lessons.exercises import Exercise, Wrong, parts
from lessons.exercises.kernels import THREADS
from lessons.exercises.warp import function, watched


def split_answer(v):
    hi = np.float16(v)
    lo = np.float16((v - np.float32(hi)) * np.float32(4096))
    return hi, lo


def _judge_split(answer: Callable[..., Any]) -> str:
    draw = np.random.default_rng(9)
    worst = 0.0
    for exponent in (14, 10, 0, -3, -8, -12):
        for v in (draw.uniform(1, 2, 200) * draw.choice([-1, 1], 200) * 2.0**exponent).astype(np.float32):
            with np.errstate(over="ignore", invalid="ignore"):
                hi, lo = (float(part) for part in parts(answer(v), "(hi, lo)"))
                for name, value in (("hi", hi), ("lo", lo)):
                    if np.isfinite(value) and float(np.float16(value)) != value:
                        raise Wrong(
                            f"For {v:.9g}, {name} is {value:.9g}, which is no number of fp16: np.float16 rounds."
                        )
            error = abs(hi + lo / 4096 - float(v)) / abs(float(v))
            if not error < 2.0**-22:  # also where it is NaN
                raise Wrong(
                    f"{v:.9g} comes back as {hi:.9g} + {lo:.9g} / 4096 = {hi + lo / 4096:.9g}: "
                    f"a relative error of {error:.1e}."
                )
            if abs(hi - float(v)) > abs(float(v)) / 2048:
                raise Wrong(f"hi alone should be within rounding of {v:.9g}; it is {hi:.9g}.")
            worst = max(worst, error)
    return f"The largest relative error is {worst:.1e}, where fp16 alone has {2.0**-11:.1e}."


split = Exercise(
    _judge_split,
    [
        "np.float16(v) rounds to the nearest number of fp16.",
        "The remainder is v - hi. Compute it in np.float32, where it is exact.",
        "v is hi + lo / 4096. So the remainder is lo / 4096, and lo is ...",
    ],
    split_answer,
)

GIVEN = """
#include <cuda_fp16.h>

// What a tensor core does with two numbers of fp16: the product is exact.
__device__ float product(__half a, __half b) { return __half2float(a) * __half2float(b); }
"""
_DOTS = (
    GIVEN
    + """
__device__ void split(float v, __half& hi, __half& lo)
{
    hi = __float2half_rn(v);
    lo = __float2half_rn((v - __half2float(hi)) * 4096);
}

__global__ void dots(const float* w, const float* x, float* y)  // w, x: [72, 256], y: [256]
{
    float sum = 0, cross = 0;
    for (int k = 0; k < 72; k++) {
        __half w_hi, w_lo, x_hi, x_lo;
        split(w[k * 256 + threadIdx.x], w_hi, w_lo);
        split(x[k * 256 + threadIdx.x], x_hi, x_lo);
        sum += product(w_hi, x_hi);
        cross += product(w_lo, x_hi) + product(w_hi, x_lo);
    }
    y[threadIdx.x] = sum + cross / 4096;
}
"""
)


def _judge_dots(source: str) -> str:
    if not isinstance(source, str) or "__half2float(a) * __half2float(b)" not in source:
        raise Wrong("Keep `product` as it is given: it stands for the tensor core.")
    draw = np.random.default_rng(9)
    w, x = (draw.standard_normal((72, THREADS)).astype(np.float32) for _ in range(2))
    exact = (w.astype(np.float64) * x).sum(axis=0)
    error = _relative_error(source, w, x, exact)
    if not error < 3e-7:
        why = ""
        if 2.5e-4 < error < 6e-4:
            why = " That is fp16's own rounding: the cross terms bring nothing. "
            why += "Are both there, with the right sign, and divided by 4096?"
        elif 1e-4 < error <= 2.5e-4:
            why = " That is what one of the two cross terms alone brings: the other number is still cut."
        elif error > 0.01:
            why = " The cross terms are too large, or of the wrong sign: lo is what is left, times 4096."
        raise Wrong(f"The relative error is {error:.1e}; float32's own is 1e-07.{why}")
    doubled = source.replace("return __half2float(a) *", "return 2 * __half2float(a) *")
    if not _relative_error(doubled, w, x, 2 * exact) < 1e-6:
        raise Wrong(
            "All numbers are right, but they do not come from `product` alone: only products of fp16 are allowed."
        )
    return f"A relative error of {error:.1e}, from products of 11 bits."


def _relative_error(source: str, w: np.ndarray, x: np.ndarray, exact: np.ndarray) -> float:
    y = np.empty(THREADS, dtype=np.float32)
    kernel = function(source, "dots")
    watched(partial(kernel, driver.In(w), driver.In(x), driver.Out(y), block=(THREADS, 1, 1), grid=(1, 1)))
    return float(np.linalg.norm(y - exact) / np.linalg.norm(exact))


dots = Exercise(
    _judge_dots,
    [
        "`split` is the function of exercise 1, with __float2half_rn for np.float16 and __half2float for the way back.",
        "Three products for each k: hi hi, and the two cross terms. Keep the small ones in a sum of their own.",
        "The cross terms are 4096 times too large, each of them. Divide once, at the end.",
    ],
    _DOTS,
)
