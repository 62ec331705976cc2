"""Plans for depthwise_gradient.cu: the gradient of the weight of a depthwise convolution in float32."""

from __future__ import annotations

import math

import torch

from fusedref.csrc import TRAINING
from fusedref.plans.base import Launch
from fusedref.plans.variant import KernelVariant, common_macros, stride_and_group_macros
from fusedref.plans.weight_gradient import GRADIENT, WeightPlan, adding
from fusedref.problem import Problem
from fusedref.target import Target

THREADS = 256
RUN = 4  # pixels of a thread at a time
RESIDENT = 4  # blocks on a multiprocessor
MOST_TAPS = 49  # each has a register


def unserved_by_depthwise_gradient(problem: Problem, variant: KernelVariant) -> str | None:
    """Return why depthwise_gradient.cu is not for ``problem``, None where it is."""
    if problem.groups != problem.in_channels:
        return "depthwise_gradient serves one input channel per group"
    if problem.dtype != torch.float32:
        return "depthwise_gradient serves float32"
    if variant.channels_last:
        return "depthwise_gradient serves tensors in NCHW order"
    if math.prod(problem.kernel) > MOST_TAPS:
        return f"depthwise_gradient has registers for {MOST_TAPS} taps"
    return None


def depthwise_gradient_plan(problem: Problem, target: Target) -> WeightPlan:
    """Return the plan to run ``problem`` by depthwise_gradient.cu."""
    runs = problem.batch * problem.out_height * math.ceil(problem.out_width / RUN)
    seats = RESIDENT * target.multiprocessors
    count = max(1, min(math.ceil(4 * seats / problem.out_channels), math.ceil(runs / (4 * THREADS)), 1024))
    macros = common_macros(problem, KernelVariant()) | stride_and_group_macros(problem)
    first = Launch(
        source=TRAINING / "depthwise_gradient.cu",
        symbol="depthwise_gradient",
        signature=GRADIENT,
        macros=tuple(macros.items()),
        grid=(problem.out_channels, count, 1),
        block=(THREADS, 1, 1),
    )
    part = problem.out_channels, math.prod(problem.kernel)
    return WeightPlan((first, adding(first, "sum_depthwise_gradient", part, count)), (count, *part), torch.float64)
