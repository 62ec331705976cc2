"""Exercises of lesson 04: one kernel for all three operators, and its grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import fusedref
from fusedref import reference
from fusedref.emulator import SourceModule, gpuarray
from lessons.exercises import Exercise, Wrong, parts, whole
from lessons.exercises.kernels import candidate, compare, compiled
from lessons.workbench import draw

_PARAMETERS = """const float* x, const float* weight, const float* bias,
                      const float* running_mean, const float* running_var, const float* gamma, const float* beta,
                      float scaling_factor, float eps, float* y,
                      int batch, int in_channels, int height, int width, int out_channels, int kernel_size"""

_FUSED = f"""
__global__ void fused({_PARAMETERS})
{{
    const int out_height = height - kernel_size + 1;
    const int out_width = width - kernel_size + 1;
    const int output = blockIdx.x * blockDim.x + threadIdx.x;
    if (output >= batch * out_channels * out_height * out_width) return;

    const int column = output % out_width;
    const int row = output / out_width % out_height;
    const int channel = output / (out_width * out_height) % out_channels;
    const int image = output / (out_width * out_height * out_channels);

    float sum = bias[channel];
    for (int in_channel = 0; in_channel < in_channels; in_channel++)
        for (int i = 0; i < kernel_size; i++)
            for (int j = 0; j < kernel_size; j++)
                sum += x[((image * in_channels + in_channel) * height + row + i) * width + column + j]
                     * weight[((channel * in_channels + in_channel) * kernel_size + i) * kernel_size + j];
    y[output] = ((sum - running_mean[channel]) / sqrtf(running_var[channel] + eps) * gamma[channel] + beta[channel])
              * scaling_factor;
}}
"""


def _judge_fused(source: str) -> str:
    compiled(source, "fused")
    problem = fusedref.Problem(2, 3, 5, 9, 13, 3)
    report = fusedref.validate(candidate(source, "fused"), problem=problem, device="cpu")
    if not report.ok:
        raise Wrong("The validator says:\n" + "\n".join(f"- {reason}" for reason in report.reasons))
    return f"The validator agrees: relative L2 error {report.relative_l2:.1e}. One launch does the work of three."


fused = Exercise(
    _judge_fused,
    [
        "The sum begins with the bias of its channel.",
        "y is what bn_scale of lesson 03 writes, with the sum in place of x[index].",
        "eps is under the root; the scale multiplies beta too.",
    ],
    _FUSED,
)


def _judge_limits(answer: Any) -> str:
    threads, side = parts(answer, "(threads, side)")
    if threads != 126 * 126:
        raise Wrong(f"One thread for each output of a plane of 126 x 126 is not {threads}.")
    if side != 32:
        raise Wrong(
            f"A plane {side} wide has {side * side} pixels; a block may have 1024 threads. "
            "Is that the widest that fits?"
        )
    return "Problem 73 needs more than fifteen times the threads that a block may have."


limits = Exercise(_judge_limits, ["Multiply the sides. What is the square root of 1024?"], (126 * 126, 32))

TILED = f"""
__global__ void fused_tiled({_PARAMETERS})
{{
    const int out_height = height - kernel_size + 1;
    const int out_width = width - kernel_size + 1;
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    const int row = blockIdx.y * blockDim.y + threadIdx.y;
    if (column >= out_width || row >= out_height) return;  // this thread hangs over the edge of the plane

    for (int plane = blockIdx.z; plane < batch * out_channels; plane += gridDim.z) {{
        const int channel = plane % out_channels;
        const int image = plane / out_channels;
        float sum = bias[channel];
        for (int in_channel = 0; in_channel < in_channels; in_channel++)
            for (int i = 0; i < kernel_size; i++)
                for (int j = 0; j < kernel_size; j++)
                    sum += x[((image * in_channels + in_channel) * height + row + i) * width + column + j]
                         * weight[((channel * in_channels + in_channel) * kernel_size + i) * kernel_size + j];
        y[(plane * out_height + row) * out_width + column] =
            ((sum - running_mean[channel]) / sqrtf(running_var[channel] + eps) * gamma[channel] + beta[channel])
            * scaling_factor;
    }}
}}
"""
TILE = (32, 8)  # columns, rows
ENOUGH_BLOCKS = 32768  # of which a card has enough to do, whatever their loops do


def grid_answer(batch, out_channels, out_height, out_width):
    return -(-out_width // 32), -(-out_height // 8), min(batch * out_channels, 65535)


def _judge_grid(answer: Callable[..., Any]) -> str:
    for batch, out_channels, out_height, out_width in (
        (128, 64, 126, 126),
        (2, 3, 8, 32),
        (2, 3, 9, 33),
        (3, 5, 5, 100),
        (1, 1, 1, 1),
        (1024, 64, 1, 1),
        (2048, 64, 30, 30),
    ):
        given = answer(batch, out_channels, out_height, out_width)
        said = f"For batch {batch}, {out_channels} channels, planes of {out_height} x {out_width}, you give {given}"
        numbers = [whole(number) for number in parts(given, "(x, y, z)")]
        if any(number is None or number < 1 for number in numbers):
            raise Wrong(f"{said}; all three must be whole numbers, at least 1.")
        given = numbers
        if max(given[1:]) > 65535:
            raise Wrong(f"{said}; the launch would be refused: y and z end at 65535.")
        for name, count, tile, size in (("x", given[0], TILE[0], out_width), ("y", given[1], TILE[1], out_height)):
            if count * tile < size:
                raise Wrong(f"{said}: {count} tiles of {tile} along {name} cover {count * tile} of {size}.")
            if (count - 1) * tile >= size:
                raise Wrong(f"{said}: the last tile along {name} has no pixel at all.")
        if given[2] < batch * out_channels and math.prod(given) < ENOUGH_BLOCKS:
            raise Wrong(f"{said}; there are {batch * out_channels} planes, and they can run in parallel.")
        if given[2] > batch * out_channels:
            raise Wrong(f"{said}; that is more blocks along z than there are planes.")
    problem = fusedref.Problem(2, 3, 5, 13, 40, 3)
    inputs = draw(problem)
    y = gpuarray.to_gpu(np.full(problem.output_shape, np.nan, dtype=np.float32))
    SourceModule(TILED).get_function("fused_tiled")(
        *map(gpuarray.to_gpu, inputs),
        np.float32(2),
        np.float32(1e-5),
        y,
        *map(np.int32, (*problem.input_shape, problem.out_channels, problem.kernel_size)),
        block=(*TILE, 1),
        grid=tuple(int(number) for number in answer(*problem.output_shape)),
    )
    expected = reference.oracle(*map(torch.from_numpy, inputs), 2.0, 1e-5)
    compare(y.get(), expected.numpy(), ("image", "channel", "row", "column"))
    return "It launches, and every output is right. A loop with the grid as its step handles any number of planes."


grid = Exercise(
    _judge_grid,
    [
        "How many tiles of 32 columns cover a row? Round up.",
        "One block along z for each plane: that is batch * out_channels. When is that too many?",
    ],
    grid_answer,
)
