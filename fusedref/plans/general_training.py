"""Plans for training any problem: launches of the kernels around the convolutions, and which convolutions are ours."""

from __future__ import annotations

import dataclasses
import math

import torch

from fusedref.csrc import TRAINING
from fusedref.plans import own_plan_for
from fusedref.plans.base import Argument, Launch
from fusedref.plans.depthwise_gradient import depthwise_gradient_plan, unserved_by_depthwise_gradient
from fusedref.plans.variant import KernelVariant
from fusedref.plans.weight_gradient import (
    WeightPlan,
    best_weight_tile,
    unserved_by_weight_gradient,
    weight_gradient_plan,
)
from fusedref.problem import ELEMENTS, Problem
from fusedref.target import Target

THREADS = 256  # of general.cuh
RESIDENT = {False: 4, True: 2}  # its blocks on a multiprocessor, by channels_last
UNITS_AHEAD = 4  # that a thread has in flight
WAVES = 4  # of blocks, so that the last ones to end matter less
MOST_SLICES = {False: 512, True: 128}  # a block of the second pass adds the sums of all slices of its channels

SIZES = (Argument("batch", "int64"), Argument("channels", "int32"), Argument("plane", "int32"))
STATISTICS = (Argument("z", "in"), Argument("parts", "out"), Argument("batches", "inout"), *SIZES)
NORMALIZE = (
    Argument("z", "in"),
    Argument("parts", "in"),
    *[Argument(name, "in") for name in ("bias", "gamma", "beta")],
    *[Argument(name, "inout") for name in ("running_mean", "running_var")],
    Argument("batches", "in"),
    *[Argument(name, "float64") for name in ("momentum", "scaling_factor", "eps")],
    *[Argument(name, "out") for name in ("y", "mean", "var")],
    *SIZES,
)
REDUCE = (
    *[Argument(name, "in") for name in ("dy", "z", "bias", "mean", "var")],
    Argument("eps", "float64"),
    Argument("parts", "out"),
    *SIZES,
)
APPLY = (
    *[Argument(name, "in") for name in ("dy", "z", "parts", "bias", "gamma", "mean", "var")],
    *[Argument(name, "float64") for name in ("scaling_factor", "eps")],
    *[Argument(name, "out") for name in ("dz", "dbias", "dgamma", "dbeta")],
    *SIZES,
)


def forward_launches(problem: Problem, target: Target, variant: KernelVariant) -> tuple[Launch, Launch]:
    """Return the launches of channel_statistics and normalize, which compute y from z."""
    return _launches(
        problem, target, variant, "general_forward.cu", {"channel_statistics": STATISTICS, "normalize": NORMALIZE}
    )


def backward_launches(
    problem: Problem, target: Target, variant: KernelVariant, batch_statistics: bool
) -> tuple[Launch, Launch]:
    """Return the launches of reduce_gradient and apply_gradient, which compute dz and the vectors' gradients from dy.

    ``batch_statistics`` says whether BatchNorm used the batch's statistics, not given ones.
    """
    kernels = {"reduce_gradient": REDUCE, "apply_gradient": APPLY}
    return _launches(
        problem, target, variant, "general_backward.cu", kernels, {"BATCH_STATISTICS": int(batch_statistics)}
    )


def slices_of(launch: Launch) -> int:
    """Return how many slices of the pixels the launch divides its work into."""
    return launch.grid[1]


def library_convolves(problem: Problem, target: Target, variant: KernelVariant, coarse: bool) -> bool:
    """Return whether the library convolves ``problem`` faster than the plan of evaluation mode, as on an H100.

    ``coarse`` says whether the library multiplies numbers of 11 bits or fewer, which tensor cores do for it too. In
    float32 the plan is up to three times as fast, except where planes are small or a stride skips pixels of single
    taps, and where one thread computes an output, unless each channel has its own filter.
    """
    if problem.out_height * problem.out_width < 64:
        return True
    if own_plan_for(problem, target, variant).kernel in ("depthwise", "folded"):
        depthwise = problem.groups == problem.in_channels == problem.out_channels
        return problem.dtype != torch.float32 or not depthwise
    if coarse:
        channels = problem.in_channels // problem.groups
        return problem.kernel == (1, 1) or not (8 <= channels <= 32 if variant.channels_last else channels <= 64)
    return problem.kernel == (1, 1) and problem.strides != (1, 1)


def weight_plan(problem: Problem, target: Target, variant: KernelVariant, coarse: bool) -> WeightPlan | None:
    """Return the plan for the gradient of the weight, None where the library computes it, as fast or faster.

    ``coarse`` is that of ``library_convolves``.
    """
    if unserved_by_depthwise_gradient(problem, variant) is None:
        return depthwise_gradient_plan(problem, target)
    if unserved_by_weight_gradient(problem, target, variant) is not None:
        return None
    if problem.kernel == (1, 1):
        by_library = coarse
    else:
        many = problem.in_channels // problem.groups > 64
        by_library = problem.out_height * problem.out_width < 256 or (coarse and many)
    return None if by_library else weight_gradient_plan(problem, best_weight_tile(problem, target))


def input_gradient_problem(problem: Problem) -> Problem | None:
    """Return the convolution of dz, with the filter turned around, that is dx; None where there is none.

    There is one for stride 1 and a padding below the kernel's span.
    """
    (top, bottom), (left, right) = problem.pads
    rows, columns = problem.span[0] - 1, problem.span[1] - 1
    if problem.strides != (1, 1) or (top, left) != (bottom, right) or top > rows or left > columns:
        return None
    return dataclasses.replace(
        problem,
        in_channels=problem.out_channels,
        out_channels=problem.in_channels,
        height=problem.out_height,
        width=problem.out_width,
        padding=(rows - top, columns - left),
        bias=False,
    )


def _launches(
    problem: Problem,
    target: Target,
    variant: KernelVariant,
    source: str,
    kernels: dict[str, tuple[Argument, ...]],
    macros: dict[str, int] | None = None,
) -> tuple[Launch, Launch]:
    """Return two launches of one grid."""
    plane, channels, size = problem.out_height * problem.out_width, problem.out_channels, problem.dtype.itemsize
    if variant.channels_last:
        unit = math.gcd(4, channels)
        lanes = min(128 // (unit * size), 1 << (channels // unit - 1).bit_length())  # 128 bytes, or all channels
        groups, units_per_thread = math.ceil(channels / (unit * lanes)), problem.batch * plane * lanes / THREADS
    else:
        unit, lanes = math.gcd(16 // size, plane), 1
        groups, units_per_thread = channels, problem.batch * plane / unit / THREADS
    seats = WAVES * RESIDENT[variant.channels_last] * target.multiprocessors
    slices = min(
        MOST_SLICES[variant.channels_last], math.ceil(seats / groups), max(1, math.ceil(units_per_thread / UNITS_AHEAD))
    )
    all_macros = {
        "ELEMENT": ELEMENTS.index(problem.dtype),
        "VECTOR": ELEMENTS.index(variant.vectors or problem.dtype),
        "CHANNELS_LAST": int(variant.channels_last),
        "UNIT": unit,
        "LANES": lanes,
        **(macros or {}),
    }
    first, second = (
        Launch(
            source=TRAINING / source,
            symbol=symbol,
            signature=signature,
            macros=tuple(all_macros.items()),
            grid=(groups, slices, 1),
            block=(THREADS, 1, 1),
        )
        for symbol, signature in kernels.items()
    )
    return first, second
