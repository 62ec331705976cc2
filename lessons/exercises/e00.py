"""Exercises of lesson 00: sizes, bytes, limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lessons.exercises import Exercise, Wrong, close, parts


def tensor_bytes_answer(batch, in_channels, out_channels, height, width, kernel_size):
    x = 4 * batch * in_channels * height * width
    y = 4 * batch * out_channels * (height - kernel_size + 1) * (width - kernel_size + 1)
    return x, y


def _judge_tensor_bytes(answer: Callable[..., Any]) -> str:
    for sizes in ((128, 8, 64, 128, 128, 3), (2, 3, 5, 17, 11, 3), (1, 1, 1, 9, 30, 5), (4, 6, 2, 8, 5, 1)):
        given, right = parts(answer(*sizes), "(bytes of x, bytes of y)"), tensor_bytes_answer(*sizes)
        for name, value, wanted in zip("xy", given, right, strict=True):
            if value != wanted:
                batch, in_channels, out_channels, height, width, kernel_size = sizes
                raise Wrong(
                    f"{batch} images of {height} x {width}, {in_channels} -> {out_channels} channels, "
                    f"kernel {kernel_size}: "
                    f"you say that {name} has {value:,} bytes; it has {wanted:,}."
                )
    x, y = right = tensor_bytes_answer(128, 8, 64, 128, 128, 3)
    return (
        f"At problem 73, x has {x / 1e6:.1f} MB and y has {y / 1e6:.1f} MB: the output is {y / x:.1f} times the input."
    )


tensor_bytes = Exercise(
    _judge_tensor_bytes,
    [
        "How many numbers does x have? Multiply its four sizes. A float32 has four bytes.",
        "A window of kernel_size fits into a row of width numbers in width - kernel_size + 1 places.",
    ],
    tensor_bytes_answer,
)


def moved_answer(x_bytes, y_bytes):
    convolution = x_bytes + y_bytes
    batch_norm = y_bytes + y_bytes
    scale = y_bytes + y_bytes
    return convolution + batch_norm + scale, x_bytes + y_bytes


def _judge_moved(answer: Callable[..., Any]) -> str:
    for sizes in ((1, 0), (0, 1), (100, 7), (67_108_864, 520_224_768)):
        given, right = parts(answer(*sizes), "(three operators, fused)"), moved_answer(*sizes)
        for name, value, wanted in zip(("three operators", "one fused operator"), given, right, strict=True):
            if value != wanted:
                raise Wrong(
                    f"With {sizes[0]:,} bytes of x and {sizes[1]:,} of y, {name} should move {wanted:,} bytes, "
                    f"not {value:,}."
                )
    return f"At problem 73 the three operators move {right[0] / right[1]:.2f} times the bytes that one would."


moved = Exercise(
    _judge_moved,
    [
        "Take the operators one at a time: what does each read, and what does it write?",
        "BatchNorm and scale each read a whole y and write a whole y.",
    ],
    moved_answer,
)


def limit_answer(flops, bytes_moved, peak_flops, bandwidth):
    return max(flops / peak_flops, bytes_moved / bandwidth)


def _judge_limit(answer: Callable[..., Any]) -> str:
    cases = {
        "much arithmetic and few bytes": (1e12, 1e6, 1e13, 1e12),
        "little arithmetic and many bytes": (1e6, 1e12, 1e13, 1e12),
        "both in balance": (3e9, 3e8, 1e13, 1e12),
        "an odd machine": (5e9, 2e9, 7e12, 9e11),
    }
    for name, case in cases.items():
        value, right = answer(*case), limit_answer(*case)
        if not close(value, right):
            raise Wrong(
                f"With {name} ({case[0]:.3g} operations, {case[1]:.3g} bytes, {case[2]:.3g} operations/s, "
                f"{case[3]:.3g} bytes/s) the answer is {right:.4g} s; you say {value!r}."
            )
    return "This one line is the roofline: whichever of the two takes longer hides the other."


limit = Exercise(
    _judge_limit,
    [
        "How long would the arithmetic take alone? How long the bytes?",
        "A GPU does both at the same time, so the shorter one costs nothing.",
    ],
    limit_answer,
)
