"""Exercises of lesson 03: two kernels become one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lessons.exercises import Exercise, Wrong
from lessons.exercises.e02 import _vectors, batch_norm64
from lessons.exercises.kernels import compare, compiled, counted_run

_BN_SCALE = """
__global__ void bn_scale(const float* x, const float* running_mean, const float* running_var,
                         const float* gamma, const float* beta, float scaling_factor, float eps, float* y,
                         int batch, int channels, int plane)
{
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= batch * channels * plane) return;
    const int channel = index / plane % channels;
    const float normalised = (x[index] - running_mean[channel]) / sqrtf(running_var[channel] + eps);
    y[index] = (normalised * gamma[channel] + beta[channel]) * scaling_factor;
}
"""


def _judge_bn_scale(source: str) -> str:
    kernel = compiled(source, "bn_scale")
    for seed, (batch, channels, plane) in enumerate(((3, 5, 7), (2, 7, 70), (1, 3, 11))):
        x = np.random.default_rng(seed).standard_normal((batch, channels, plane), dtype=np.float32)
        vectors = _vectors(channels, 10 + seed)
        scaling_factor, eps = np.float32(-2.5 + seed), np.float32(1e-5)
        y, counters = counted_run(kernel, [x, *vectors, scaling_factor, eps], x.shape, [batch, channels, plane])
        compare(y, batch_norm64(x, vectors, float(eps), 1) * float(scaling_factor), ("image", "channel", "pixel"))
        warps = -(-y.size // 32)
        for what, requests, par in (
            ("store", counters.global_store_requests, warps),
            ("load", counters.global_load_requests, 5 * warps),
        ):
            if requests > par:
                raise Wrong(
                    f"All numbers are right, but {warps} warps make {requests} requests to {what}; par is {par}. "
                    "A number that is on its way should not go to memory and come back."
                )
    return "One trip to memory instead of two, and the multiplication is free."


bn_scale = Exercise(
    _judge_bn_scale,
    [
        "Start from batch_norm. What must happen to the number before it is written?",
        "The scale applies to all of BatchNorm's result, beta included.",
    ],
    _BN_SCALE,
)


def bytes_moved_answer(numbers, groups):
    total = 0
    for group in groups:
        reads = 1 + group.count("add")
        total += 4 * numbers * (reads + 1)
    return total


def _judge_bytes_moved(answer: Callable[..., Any]) -> str:
    for groups in (
        [["batch_norm"], ["scale"]],
        [["batch_norm", "scale"]],
        [["batch_norm"], ["add"], ["relu"]],
        [["batch_norm", "add", "relu"]],
        [["scale"], ["add", "relu", "add"]],
        [],
    ):
        for numbers in (1, 1000):
            value, right = answer(numbers, groups), bytes_moved_answer(numbers, groups)
            if value != right:
                raise Wrong(f"{groups} over {numbers} numbers should move {right:,} bytes; you say {value!r}.")
    return "The number of operators does not matter, only the number of kernels and of tensors that each reads."


bytes_moved = Exercise(
    _judge_bytes_moved,
    [
        "How many kernels are launched? What does each of them read and write?",
        "`add` adds a second tensor of the same size. The kernel that contains the `add` must read it too.",
    ],
    bytes_moved_answer,
)
