"""Exercises of lesson 13: back through BatchNorm, the taps at the border, and the transposed convolution."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from fusedref.emulator import driver
from lessons.exercises import Exercise, Wrong
from lessons.exercises.kernels import THREADS, compare
from lessons.exercises.warp import function, watched


def through_batch_norm_answer(dy, zhat, factor):
    return factor * (dy - dy.mean() - zhat * (dy * zhat).mean())


def _judge_through_batch_norm(answer: Callable[..., Any]) -> str:
    draw = np.random.default_rng(13)
    for size, factor in ((7, 2.5), (1000, -0.5), (2, 1.0)):
        z, dy = 3 + 2 * draw.standard_normal(size), 1 + draw.standard_normal(size)
        zhat = (z - z.mean()) / np.sqrt(z.var() + 1e-5)
        right = through_batch_norm_answer(dy, zhat, factor)
        given = np.asarray(answer(dy.copy(), zhat.copy(), factor), dtype=np.float64)
        if given.shape != right.shape:
            raise Wrong(f"dz should have {size} numbers, as dy has; it has the shape {list(given.shape)}.")
        if not np.allclose(given, right, rtol=1e-8, atol=1e-8):
            sums = dy.sum(), (dy * zhat).sum()
            for why, wrong in (
                (
                    "A push on all numbers alike must come to nothing: dz should have the mean zero.",
                    dy - zhat * sums[1] / size,
                ),
                ("A stretch of all numbers must come to nothing: dz should have no part along zhat.", dy - dy.mean()),
                ("These are sums where means belong.", dy - sums[0] - zhat * sums[1]),
            ):
                if np.allclose(given, factor * wrong):
                    raise Wrong(why)
            if np.allclose(given * factor, right) or np.allclose(given, right / factor):
                raise Wrong("The factor in front is missing.")
            raise Wrong(f"With {size} numbers, dz[0] is {given[0]:.6g} and should be {right[0]:.6g}.")
    return "Two means are subtracted, one of them along zhat: all of BatchNorm's backward."


through_batch_norm = Exercise(
    _judge_through_batch_norm,
    [
        "Two kinds of change of z leave y as it is. Which parts of dy can therefore not come back?",
        "The part along the ones is the mean of dy. The part along zhat is zhat times the mean of dy * zhat.",
    ],
    through_batch_norm_answer,
)


def taps_answer(place, size, kernel_size, padding):
    out_size = size + 2 * padding - kernel_size + 1
    return [tap for tap in range(kernel_size) if 0 <= place + padding - tap < out_size]


def _judge_taps(answer: Callable[..., Any]) -> str:
    for size, kernel_size, padding in ((8, 3, 0), (8, 3, 1), (8, 3, 2), (9, 5, 1), (3, 3, 0), (4, 2, 0), (3, 1, 0)):
        for place in range(size):
            given, right = answer(place, size, kernel_size, padding), taps_answer(place, size, kernel_size, padding)
            try:
                listed = sorted(int(tap) for tap in given)
            except TypeError:
                raise Wrong(f"It should return a list of taps; it returned {given!r}.") from None
            if listed != right:
                where = f"Place {place} of {size}, {kernel_size} taps, padding {padding}"
                raise Wrong(f"{where}: the taps are {right}, you say {listed}.")
    return "The taps, and with them the class, of every place."


taps = Exercise(
    _judge_taps,
    [
        "Output r reads x at r + tap - padding. Which output reads this place by this tap?",
        "There are size + 2 * padding - kernel_size + 1 outputs, from 0 on.",
    ],
    taps_answer,
)

_TRANSPOSED = """
__global__ void transposed(const float* dy, const float* w, float* dx, int out_size, int kernel_size, int padding)
{
    const int size = out_size + kernel_size - 1 - 2 * padding;
    const int place = blockIdx.x * blockDim.x + threadIdx.x;
    if (place >= size) return;
    float sum = 0;
    for (int tap = 0; tap < kernel_size; tap++) {
        const int output = place + padding - tap;
        if (output >= 0 && output < out_size) sum += w[tap] * dy[output];
    }
    dx[place] = sum;
}
"""


def _transposed64(dy: np.ndarray, w: np.ndarray, padding: int) -> np.ndarray:
    full = np.convolve(dy.astype(np.float64), w.astype(np.float64))
    return full[padding : len(full) - padding]


def _judge_transposed(source: str) -> str:
    kernel = function(source, "transposed")
    for out_size, kernel_size, padding in ((300, 3, 0), (256, 3, 1), (70, 5, 2), (20, 4, 3), (1, 1, 0)):
        size = out_size + kernel_size - 1 - 2 * padding
        draw = np.random.default_rng(size)
        dy, w = (draw.standard_normal(length, dtype=np.float32) for length in (out_size, kernel_size))
        right, where = (
            _transposed64(dy, w, padding),
            f"With {out_size} outputs, {kernel_size} taps and padding {padding}:",
        )
        before: np.ndarray | None = None
        for seed in (0, 1, 2):
            dx = np.zeros(size, dtype=np.float32)
            numbers = np.int32(out_size), np.int32(kernel_size), np.int32(padding)
            arguments = driver.In(dy), driver.In(w), driver.InOut(dx), *numbers
            try:
                watched(partial(kernel, *arguments, block=(THREADS, 1, 1), grid=(-(-size // THREADS), 1)), seed)
            except Wrong as wrong:
                raise Wrong(f"{where} {wrong}") from None
            if np.allclose(dx, _transposed64(dy, w[::-1], padding), atol=1e-4) and kernel_size > 1:
                raise Wrong(
                    f"{where} this is the sum with the filter turned round. An output r took x at r + tap - padding; "
                    "so which output took this x by this tap?"
                )
            try:
                compare(dx, right, ("place",))
            except Wrong as wrong:
                raise Wrong(f"{where} {wrong}") from None
            if before is not None and before.tobytes() != dx.tobytes():
                raise Wrong(
                    f"{where} the last bits depend on the order of the threads. Let each place fetch what it needs."
                )
            before = dx
    return "Each place fetches from the outputs whose windows it lay in: no atomics, the same bits every time."


transposed = Exercise(
    _judge_transposed,
    [
        "Turn it round: not where an output's dy goes, but from which outputs a place gets something.",
        "By tap k, place j was read by output j + padding - k, if there is such an output.",
    ],
    _TRANSPOSED,
)
