"""Exercises of lesson 01: which thread computes what."""

from __future__ import annotations

import numpy as np
import torch

from lessons.exercises import Exercise, Wrong
from lessons.exercises.kernels import compare, compiled, run

AXES = ("image", "channel", "row", "column")

_DIGITS = """
__global__ void digits(int* y, int batch, int out_channels, int out_height, int out_width)
{
    const int output = blockIdx.x * blockDim.x + threadIdx.x;
    if (output >= batch * out_channels * out_height * out_width) return;

    const int column = output % out_width;
    const int row = output / out_width % out_height;
    const int channel = output / (out_width * out_height) % out_channels;
    const int image = output / (out_width * out_height * out_channels);

    y[output] = 1000000 * image + 10000 * channel + 100 * row + column;
}
"""


def _judge_digits(source: str) -> str:
    kernel = compiled(source, "digits")
    for shape in ((2, 3, 5, 7), (3, 2, 11, 4), (1, 1, 1, 300)):
        y = run(kernel, [], shape, list(shape), dtype=np.int32)
        image, channel, row, column = np.indices(shape)
        wanted = 1000000 * image + 10000 * channel + 100 * row + column
        for name, digit in (
            ("column", lambda v: v % 100),
            ("row", lambda v: v // 100 % 100),
            ("channel", lambda v: v // 10000 % 100),
            ("image", lambda v: v // 1000000),
        ):
            wrong = np.argwhere(digit(y) != digit(wanted)) if shape[3] <= 100 else np.argwhere(y != wanted)
            if len(wrong):
                place = tuple(wrong[0])
                raise Wrong(
                    f"With batch, out_channels, out_height, out_width = {shape}, the thread of output "
                    f"{np.ravel_multi_index(place, shape)} gets its {name} wrong: "
                    f"it should be {place[AXES.index(name)]}."
                )
    return "Division and remainder read the digits of a number whose digits count to 64, 126 and 126 instead of to ten."


digits = Exercise(
    _judge_digits,
    [
        "The column changes fastest: the outputs 0, 1, 2, ... are in the columns 0, 1, 2, ... until the row is full.",
        "How many outputs fill a row? A plane? An image? Divide by that, then take the remainder by the digit's size.",
        "The image is the first digit, so nothing is left to take a remainder of.",
    ],
    _DIGITS,
)

_CONV2D = """
__global__ void conv2d(const float* x, const float* weight, const float* bias, float* y,
                       int batch, int in_channels, int height, int width, int out_channels, int kernel_size{parameters})
{{
    const int out_height = {out_height};
    const int out_width = {out_width};
    const int output = blockIdx.x * blockDim.x + threadIdx.x;
{guard}
    const int column = output % out_width;
    const int row = output / out_width % out_height;
    const int channel = output / (out_width * out_height) % out_channels;
    const int image = output / (out_width * out_height * out_channels);

    float sum = bias[channel];
    for (int in_channel = 0; in_channel < in_channels; in_channel++)
        for (int i = 0; i < kernel_size; i++)
            for (int j = 0; j < kernel_size; j++)
                sum += x[((image * in_channels + in_channel) * height + {row}) * width + {column}]
                     * weight[((channel * in_channels + in_channel) * kernel_size + i) * kernel_size + j];
    y[output] = sum;
}}
"""
_GUARD = "    if (output >= batch * out_channels * out_height * out_width) return;\n"
_PLAIN = {
    "parameters": "",
    "out_height": "height - kernel_size + 1",
    "out_width": "width - kernel_size + 1",
    "row": "row + i",
    "column": "column + j",
}
UNGUARDED = _CONV2D.format(guard="", **_PLAIN)  # the start of the exercise


def _draw(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def _judge_convolution(source: str, strides: tuple[int, ...], pass_stride: bool) -> None:
    kernel = compiled(source, "conv2d")
    for number, (batch, in_channels, height, width, out_channels, kernel_size) in enumerate(
        ((2, 3, 9, 13, 5, 3), (1, 2, 17, 6, 3, 2), (3, 1, 5, 8, 2, 1), (1, 2, 8, 21, 4, 5))
    ):
        for stride in strides:
            x = _draw((batch, in_channels, height, width), number)
            weight = _draw((out_channels, in_channels, kernel_size, kernel_size), 10 + number)
            bias = _draw((out_channels,), 20 + number)
            expected = torch.nn.functional.conv2d(
                *(torch.from_numpy(a).double() for a in (x, weight, bias)), stride=stride
            ).numpy()
            sizes = [batch, in_channels, height, width, out_channels, kernel_size]
            try:
                y = run(kernel, [x, weight, bias], expected.shape, sizes + [stride] * pass_stride)
                compare(y, expected, AXES)
            except Wrong as wrong:
                suffix = f", stride {stride}" if pass_stride else ""
                raise Wrong(
                    f"With x [{batch}, {in_channels}, {height}, {width}], {out_channels} filters "
                    f"{kernel_size} x {kernel_size}{suffix}: {wrong}"
                ) from None


def _judge_guard(source: str) -> str:
    _judge_convolution(source, (1,), False)
    return "Threads without an output return before they can do harm. Every kernel of the ladder has this line."


guard = Exercise(
    _judge_guard,
    [
        "A grid is a whole number of blocks, the outputs are not. Which threads have no output?",
        "Compare `output` with the number of outputs, and `return` from the kernel when it is too large.",
        "The first thread without work is the one whose number *equals* the number of outputs.",
    ],
    _CONV2D.format(guard=_GUARD, **_PLAIN),
)


def _judge_stride(source: str) -> str:
    _judge_convolution(source, (1, 2, 3), True)
    return "And what would a stride do to the byte ledger? It shrinks what is written, not what is read."


stride = Exercise(
    _judge_stride,
    [
        "Put the window down at every stride-th place only. In which row of x does the window of output row r begin?",
        "Of the height - kernel_size + 1 places, only every stride-th counts, beginning with the first.",
        "C divides integers downwards: (height - kernel_size) / stride is how often the window can still move.",
    ],
    _CONV2D.format(
        guard=_GUARD,
        parameters=", int stride",
        out_height="(height - kernel_size) / stride + 1",
        out_width="(width - kernel_size) / stride + 1",
        row="row * stride + i",
        column="column * stride + j",
    ),
)
