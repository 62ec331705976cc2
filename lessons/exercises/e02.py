"""Exercises of lesson 02: a kernel limited by memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from lessons.exercises import Exercise, Wrong, close
from lessons.exercises.kernels import THREADS, code, compare, compiled, run


def seconds_answer(batch, channels, height, width, bandwidth):
    return 2 * 4 * batch * channels * height * width / bandwidth


def _judge_seconds(answer: Callable[..., Any]) -> str:
    for case in ((128, 64, 126, 126, 3e12), (2, 3, 5, 7, 1e9), (1, 1, 1, 1, 1.0)):
        value, right = answer(*case), seconds_answer(*case)
        if not close(value, right):
            ratio = f" Yours is {value / right:.3g} times that." if isinstance(value, (int, float)) else ""
            raise Wrong(f"A tensor {list(case[:4])} at {case[4]:.3g} bytes/s takes {right:.4g} s.{ratio}")
    return "No kernel that does this and nothing else can be faster, however it is written."


seconds = Exercise(
    _judge_seconds,
    [
        "How many bytes cross the memory bus for one number? It arrives, and it leaves.",
        "Bytes, divided by bytes per second.",
    ],
    seconds_answer,
)


def _vectors(channels: int, seed: int) -> list[np.ndarray]:
    """Return random running_mean, running_var, gamma and beta. Every second variance is as small as eps."""
    random = np.random.default_rng(seed)
    var = random.uniform(0.5, 2, channels).astype(np.float32)
    var[::2] = 1e-5
    return [
        random.standard_normal(channels, dtype=np.float32),
        var,
        random.uniform(-2, 2, channels).astype(np.float32),
        random.standard_normal(channels, dtype=np.float32),
    ]


def batch_norm64(x: np.ndarray, vectors: list[np.ndarray], eps: float, axis: int) -> np.ndarray:
    """Compute BatchNorm of x in float64, with the channels along `axis`."""
    shape = [-1 if place == axis else 1 for place in range(x.ndim)]
    mean, var, gamma, beta = (vector.astype(np.float64).reshape(shape) for vector in vectors)
    return (x.astype(np.float64) - mean) / np.sqrt(var + eps) * gamma + beta


_KERNEL = """
__global__ void batch_norm(const float* x, const float* running_mean, const float* running_var,
                           const float* gamma, const float* beta, float eps, float* y,
                           int batch, int channels, int plane)
{{
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= batch * channels * plane) return;
    const int channel = {channel};
    y[index] = {value};
}}
"""
_ORDINARY = "(x[index] - running_mean[channel]) / sqrtf(running_var[channel] + eps) * gamma[channel] + beta[channel]"


def _judge_batch_norm(source: str, channels_last: bool, by_grid: bool = False) -> None:
    kernel = compiled(source, "batch_norm")
    for seed, (batch, channels, plane) in enumerate(((3, 5, 7), (2, 7, 270), (1, 3, 11), (5, 1, 13))):
        shape = (batch, plane, channels) if channels_last else (batch, channels, plane)
        x = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        vectors = _vectors(channels, 10 + seed)
        eps = np.float32(1e-5)
        axes = ("image", "pixel", "channel") if channels_last else ("image", "channel", "pixel")
        grid = (-(-plane // THREADS), channels, batch) if by_grid else None
        y = run(kernel, [x, *vectors, eps], shape, [batch, channels, plane], grid=grid)
        compare(y, batch_norm64(x, vectors, float(eps), axes.index("channel")), axes)


def _judge_channels_last(source: str) -> str:
    _judge_batch_norm(source, True)
    return "The bytes are the same, but now the 32 lanes of a warp are in 32 channels, not in one."


channels_last = Exercise(
    _judge_channels_last,
    [
        "In which order do the numbers lie now? Write down the channel of the numbers 0, 1, 2, ... for three channels.",
        "The channel is now the digit that changes fastest.",
    ],
    _KERNEL.format(channel="index % channels", value=_ORDINARY),
)


_WHOLE_NUMBERS = r"/\s*(?=(\(\s*)?(plane|channels|batch|blockDim|warpSize|\d+\b(?!\.)))"  # what index divides by


def _judge_rsqrt(source: str) -> str:
    text = code(source)
    if not re.search(r"\brsqrtf\s*\(", text):
        raise Wrong("It contains no call of `rsqrtf`.")
    if other := re.search(
        r"\b(\w*sqrt\w*|\w*pow\w*|__fdividef|__frcp\w*|__fdiv\w*)\s*\(", re.sub(r"\brsqrtf\b", "", text)
    ):
        raise Wrong(f"It still calls `{other[1]}`. `rsqrtf` is to be the only function.")
    if "/" in re.sub(_WHOLE_NUMBERS, "", text):
        raise Wrong("It still divides floating-point numbers. Only the index may be divided.")
    _judge_batch_norm(source, False)
    try:
        _judge_batch_norm(f"#define rsqrtf(v) (2.0f * rsqrtf(v))\n{source}", False)
    except Wrong:
        pass
    else:
        raise Wrong("All numbers are right, but they do not depend on what `rsqrtf` returns.")
    return "One instruction replaces two sequences. The clock shows what that saves."


rsqrt = Exercise(
    _judge_rsqrt,
    [
        "rsqrtf(v) is 1 / sqrtf(v). What takes the place of the division?",
        "eps keeps a channel whose variance is zero from dividing by zero. It belongs inside.",
    ],
    _KERNEL.format(
        channel="index / plane % channels",
        value=_ORDINARY.replace("/ sqrtf", "* rsqrtf"),
    ),
)


def _judge_by_grid(source: str) -> str:
    if re.search(r"%|/\s*(plane|channels)\b", code(source)):
        raise Wrong("It still contains an integer division or a remainder.")
    try:
        _judge_batch_norm(source, False, by_grid=True)
    except Wrong:
        exchanged = re.sub(r"\bblockIdx\.([yz])", lambda found: f"blockIdx.{'zy'['yz'.index(found[1])]}", source)
        try:
            _judge_batch_norm(exchanged, False, by_grid=True)
        except Wrong:
            pass
        else:
            raise Wrong("blockIdx.y and blockIdx.z are exchanged: y is the channel, z the image.") from None
        raise
    return "A block knows its place. No thread needs to compute what the grid already provides."


by_grid = Exercise(
    _judge_by_grid,
    [
        "blockIdx.y and blockIdx.z are the same for every thread of a block. What did the grid put there?",
        "The planes lie one after the other: (image, channel) is plane number image * channels + channel.",
        "Compare pixel with the size of a plane, not with that of the tensor.",
    ],
    """
__global__ void batch_norm(const float* x, const float* running_mean, const float* running_var,
                           const float* gamma, const float* beta, float eps, float* y,
                           int batch, int channels, int plane)
{
    const int pixel = blockIdx.x * blockDim.x + threadIdx.x;
    if (pixel >= plane) return;
    const int channel = blockIdx.y;
    const int index = (blockIdx.z * channels + channel) * plane + pixel;
    y[index] = (x[index] - running_mean[channel]) / sqrtf(running_var[channel] + eps) * gamma[channel] + beta[channel];
}
""",
)
