"""The sizes of one convolution + BatchNorm + scale, and what follows from them: shapes, operations and bytes."""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property
from typing import Any

import torch

Pair = tuple[int, int]

ELEMENTS = torch.float32, torch.float16, torch.bfloat16  # kernels know a dtype by its index here


@dataclasses.dataclass(frozen=True)
class Problem:
    """y = BatchNorm2d(Conv2d(x)) * scaling_factor, by its sizes.

    ``kernel_size``, ``stride`` and ``dilation`` are an int or a pair (vertical, horizontal); ``padding`` is an int, a
    pair, ``'valid'`` (none) or ``'same'`` (stride 1 only; an odd row or column goes to the bottom or right, as in
    torch). Padding adds zeros. x, weight and y have the same ``dtype``: float32, float16 or bfloat16. The normalised
    forms are ``kernel``, ``strides``, ``dilations`` and ``pads``.

    Raises ValueError if the sizes do not fit together, TypeError if one is not an integer.
    """

    batch: int
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel_size: int | Pair
    _: dataclasses.KW_ONLY
    stride: int | Pair = 1
    padding: int | Pair | str = 0
    dilation: int | Pair = 1
    groups: int = 1
    bias: bool = True
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        check_integer("batch", self.batch, least=0)
        for name in ("in_channels", "out_channels", "height", "width", "groups"):
            check_integer(name, getattr(self, name), least=1)
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise ValueError(f"{name} must be a multiple of groups ({self.groups}), got {getattr(self, name)}")
        if not isinstance(self.bias, bool):
            raise TypeError(f"bias must be True or False, got {self.bias!r}")
        if self.dtype not in ELEMENTS:
            raise TypeError(f"dtype must be torch.float32, torch.float16 or torch.bfloat16, got {self.dtype!r}")
        for name in ("kernel_size", "stride", "padding", "dilation"):
            if isinstance(getattr(self, name), list):  # a list cannot be hashed
                object.__setattr__(self, name, tuple(getattr(self, name)))
        _ = self.strides, self.dilations  # computing them checks them
        (top, bottom), (left, right) = self.pads
        padded = self.height + top + bottom, self.width + left + right
        if self.span[0] > padded[0] or self.span[1] > padded[1]:
            raise ValueError(
                f"the kernel must fit into the padded input: a kernel of {_by(self.kernel)} with dilation "
                f"{_by(self.dilations)} spans {_by(self.span)}, the padded input is {_by(padded)}"
            )

    @cached_property
    def kernel(self) -> Pair:
        """(kernel_height, kernel_width)."""
        return _pair("kernel_size", self.kernel_size, least=1)

    @cached_property
    def strides(self) -> Pair:
        """(vertical, horizontal) stride."""
        return _pair("stride", self.stride, least=1)

    @cached_property
    def dilations(self) -> Pair:
        """(vertical, horizontal) dilation."""
        return _pair("dilation", self.dilation, least=1)

    @cached_property
    def span(self) -> Pair:
        """(rows, columns) from the first tap of the dilated kernel to its last."""
        rows, columns = (d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        return rows, columns

    @cached_property
    def pads(self) -> tuple[Pair, Pair]:
        """((top, bottom), (left, right)): rows and columns of zeros around the input."""
        if self.padding == "valid":
            return (0, 0), (0, 0)
        if self.padding == "same":
            if self.strides != (1, 1):
                raise ValueError(f"padding='same' needs stride 1, got stride={self.stride}")
            vertical_same, horizontal_same = (((s - 1) // 2, s - 1 - (s - 1) // 2) for s in self.span)
            return vertical_same, horizontal_same
        if isinstance(self.padding, str):
            raise ValueError(f"padding must be an integer, a pair of them, 'same' or 'valid', got {self.padding!r}")
        vertical, horizontal = _pair("padding", self.padding, least=0)
        return (vertical, vertical), (horizontal, horizontal)

    @cached_property
    def out_height(self) -> int:
        """Rows of an output plane."""
        return (self.height + sum(self.pads[0]) - self.span[0]) // self.strides[0] + 1

    @cached_property
    def out_width(self) -> int:
        """Columns of an output plane."""
        return (self.width + sum(self.pads[1]) - self.span[1]) // self.strides[1] + 1

    @cached_property
    def conv_options(self) -> dict[str, Any]:
        """Return stride, padding, dilation and groups as keyword arguments of torch's convolution."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """[batch, in_channels, height, width]."""
        return self.batch, self.in_channels, self.height, self.width

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """[out_channels, in_channels / groups, kernel_height, kernel_width]."""
        return self.out_channels, self.in_channels // self.groups, *self.kernel

    @cached_property
    def output_shape(self) -> tuple[int, int, int, int]:
        """[batch, out_channels, out_height, out_width]."""
        return self.batch, self.out_channels, self.out_height, self.out_width

    @property
    def taps(self) -> int:
        """Products summed into one output: in_channels / groups * kernel_height * kernel_width."""
        return math.prod(self.weight_shape[1:])

    @property
    def flops(self) -> int:
        """Multiplications and additions of the convolution: two per tap and output, padded taps included."""
        return 2 * self.taps * math.prod(self.output_shape)

    @property
    def least_bytes(self) -> int:
        """Bytes that must cross the memory bus: x and every parameter read once, y written once."""
        parameters = math.prod(self.weight_shape) + (4 + self.bias) * self.out_channels
        return self.dtype.itemsize * (math.prod(self.input_shape) + parameters + math.prod(self.output_shape))


def check_integer(name: str, value: object, least: int) -> None:
    """Raise TypeError if ``value`` is not an integer, ValueError if it is below ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _pair(name: str, value: object, least: int) -> Pair:
    pair = value if isinstance(value, tuple) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name} must be an integer or a pair of them, got {value!r}")
    for number in pair:
        check_integer(name, number, least)
    return pair


def _by(pair: Pair) -> str:
    return f"{pair[0]} x {pair[1]}"


# KernelBench level 2, problem 73, the problem of the whole ladder. Its scaling factor is 2.0.
KERNELBENCH_73 = Problem(128, 8, 64, 128, 128, 3)

# The same layer on two small images that are not square, for machines without a GPU.
SMALL_73 = Problem(2, 8, 64, 18, 23, 3)
