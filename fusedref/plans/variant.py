"""What a kernel is compiled for besides the problem's sizes, and the macros that every kernel needs."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fusedref.problem import ELEMENTS, Problem


class KernelVariant(NamedTuple):
    """The arithmetic, layout and dtypes that a kernel is compiled for; ``plan`` takes the first three as arguments."""

    precision: str = "fp32"
    channels_last: bool = False
    vectors: torch.dtype | None = None  # dtype of bias, running_mean, running_var, gamma and beta; None: the problem's

    def pieces(self, dtype: torch.dtype) -> int:
        """Return how many numbers stand for one of ``dtype`` on tensor cores: 2 for fp32, which is split, else 1."""
        return 2 if dtype == torch.float32 and self.precision == "fp32" else 1


def common_macros(problem: Problem, variant: KernelVariant) -> dict[str, int]:
    """Return the macros that every kernel is compiled with."""
    (top, _), (left, _) = problem.pads
    return {
        "IN_CHANNELS": problem.in_channels,
        "HEIGHT": problem.height,
        "WIDTH": problem.width,
        "OUT_CHANNELS": problem.out_channels,
        "OUT_HEIGHT": problem.out_height,
        "OUT_WIDTH": problem.out_width,
        "KERNEL_HEIGHT": problem.kernel[0],
        "KERNEL_WIDTH": problem.kernel[1],
        "PAD_TOP": top,
        "PAD_LEFT": left,
        "DILATION_H": problem.dilations[0],
        "DILATION_W": problem.dilations[1],
        "ELEMENT": ELEMENTS.index(problem.dtype),
        "VECTOR": ELEMENTS.index(variant.vectors or problem.dtype),
        "CHANNELS_LAST": int(variant.channels_last),
    }


def stride_and_group_macros(problem: Problem) -> dict[str, int]:
    """Return the macros of the kernels that serve any stride and any number of groups."""
    return {"GROUPS": problem.groups, "STRIDE_H": problem.strides[0], "STRIDE_W": problem.strides[1]}
