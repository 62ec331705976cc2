"""The rungs of training mode: BatchNorm with the statistics of the batch, and the gradients.

A rung of mode "train" is
``(x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps, momentum) -> y``. It updates
running_mean and running_var in place, as torch does: with the batch's mean and unbiased variance. A rung of mode
"backward" is ``(dy, x, weight, bias, gamma, beta, scaling_factor, eps) -> (dx, dweight, dbias, dgamma, dbeta)``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fusedref import fused_conv_bn_scale
from fusedref.cuda.compile import source_module
from fusedref.cuda.launch import InOut, Out, launch
from fusedref.problem import Problem
from kernels import ladder
from kernels.ladder import Rung

SMALL = Problem(2, 2, 3, 9, 11, 3)  # that validates quickly on the emulator
SLICES = 16  # blocks that share a channel of rung 11
TILE_SLICES = 264  # blocks that share the tiles of rungs 12 and 13: the same on every GPU, and so are the bits
MAX_TAPS = 87  # of a patch, for which a block of rung 12 has a thread for every 4 x 4 of its products


class Training(NamedTuple):
    """Hold the arguments of a rung of mode "train"."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    scaling_factor: float
    eps: float = 1e-5
    momentum: float = 0.1


def _candidate(compute: Callable[[Training], Tensor]) -> Callable[..., Tensor]:
    """Return ``compute`` as a function of the ten arguments."""

    @functools.wraps(compute)
    def candidate(*arguments: Any) -> Tensor:
        return compute(Training(*arguments))

    return candidate


def batch_statistics(z: Tensor, slices: int = SLICES) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance of each channel of z [batch, channels, height, width], by rung 11.

    ``slices`` blocks share a channel, at most one per image.
    """
    batch, channels, height, width = z.shape
    slices = min(slices, batch)
    parts, mean, var = z.new_empty(channels, slices, 3), z.new_empty(channels), z.new_empty(channels)
    module = source_module(ladder.KERNELS / "11_batch_statistics.cu", device=z.device)
    sizes = np.int32(batch), np.int32(channels), np.int32(height * width)
    reduce, merge = module.get_function("batch_statistics"), module.get_function("merge_statistics")
    launch(reduce, z, Out(parts), *sizes, block=(ladder.THREADS, 1, 1), grid=(channels, slices, 1))
    launch(merge, parts, Out(mean), Out(var), np.int32(slices), block=(32, 1, 1), grid=(channels, 1, 1))
    return mean, var


class PatchMoments(NamedTuple):
    """Hold what rungs 12 and 13 know of the patches of x: float64, on x's device."""

    mean: Tensor  # [taps]
    cov: Tensor  # [taps, taps]


def conv_statistics(given: Training, padding: int = 0) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of the convolution, which is not stored; update the running statistics (12)."""
    problem, module = _compiled("12_training", given, padding)
    slices = _slices(problem)
    parts = given.x.new_empty(problem.out_channels, slices, 3)
    grid = slices, math.ceil(problem.out_channels / 64), 1
    function = module.get_function("conv_statistics")
    launch(function, given.x, given.weight, Out(parts), np.int32(problem.batch), block=(32, 8, 1), grid=grid)
    mean, var = torch.empty_like(given.running_mean), torch.empty_like(given.running_var)
    running = InOut(given.running_mean), InOut(given.running_var)
    numbers = parts, _bias(given), np.float32(given.momentum)
    function = module.get_function("finish_statistics")
    grid = problem.out_channels, 1, 1
    launch(function, *numbers, Out(mean), Out(var), *running, np.int32(slices), block=(32, 1, 1), grid=grid)
    return mean, var


def moments(given: Training, padding: int = 0) -> PatchMoments:
    """Return mean and covariance of the patches of x, by rung 12. Raise ValueError if it is too large."""
    problem, module = _compiled("12_training", given, padding)
    slices, taps = _slices(problem), problem.taps
    parts = given.x.new_empty(slices, taps + 1, taps + 1, dtype=torch.float64)
    mean, cov = parts.new_empty(taps), parts.new_empty(taps, taps)
    block = ladder.THREADS, 1, 1
    function = module.get_function("moments")
    launch(function, given.x, InOut(parts), np.int32(problem.batch), block=block, grid=(slices, 1, 1))
    function = module.get_function("finish_moments")
    grid = math.ceil(taps * (taps + 1) / ladder.THREADS), 1, 1
    launch(function, parts, Out(mean), Out(cov), np.int32(slices), block=block, grid=grid)
    return PatchMoments(mean, cov)


def statistics_of_moments(given: Training, patches: PatchMoments, padding: int = 0) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of the convolution from ``patches``; update the running statistics (12)."""
    problem, module = _compiled("12_training", given, padding)
    mean, var = torch.empty_like(given.running_mean), torch.empty_like(given.running_var)
    inputs = *patches, given.weight, _bias(given), np.float32(given.momentum)
    running = InOut(given.running_mean), InOut(given.running_var)
    count = np.float32(problem.batch * problem.out_height * problem.out_width)
    function = module.get_function("statistics_of_moments")
    grid = problem.out_channels, 1, 1
    launch(function, *inputs, Out(mean), Out(var), *running, count, block=(128, 1, 1), grid=grid)
    return mean, var


def normalise(given: Training, mean: Tensor, var: Tensor, padding: int = 0) -> Tensor:
    """Return y by the finished kernel of evaluation mode, with the statistics of the batch."""
    numbers = given.scaling_factor, given.eps
    operands = given.x, given.weight, given.bias, mean, var, given.gamma, given.beta
    y: Tensor = fused_conv_bn_scale(*operands, *numbers, padding=padding)
    return y


class Gradients(NamedTuple):
    """Hold what rung 13 returns."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    gamma: Tensor
    beta: Tensor


def backward(
    dy: Tensor,
    given: Training,
    patches: PatchMoments,
    var: Tensor,
    padding: int = 0,
    pivot: Tensor | None = None,
) -> Gradients:
    """Return the gradients of y, by rung 13.

    ``patches`` are rung 12's and ``var`` is the batch's biased variance, both of the forward pass. ``pivot`` is a
    number per input channel that is subtracted from x; by default the mean of its numbers in all patches. Raise
    ValueError above MAX_TAPS.
    """
    problem, module = _compiled("13_backward", given, padding)
    gamma = torch.ones_like(given.running_mean) if given.gamma is None else given.gamma
    numbers = np.float32(given.scaling_factor), np.float32(given.eps)
    slices, taps = _slices(problem), problem.taps
    if pivot is None:
        pivot = patches.mean.view(problem.in_channels, -1).mean(1).float()
    parts = dy.new_empty(slices, problem.out_channels, taps + 1)
    dx = torch.empty_like(given.x)
    function = module.get_function("backward")
    operands = given.weight, gamma, var, *numbers
    outputs = Out(parts), Out(dx)
    grid = slices, 1, 1
    launch(function, dy, given.x, pivot, *operands, *outputs, np.int32(problem.batch), block=(32, 8, 1), grid=grid)

    dweight, vectors = torch.empty_like(given.weight), [torch.empty_like(var) for _ in range(3)]
    corrections = patches.mean.new_empty(2, problem.out_channels)
    function = module.get_function("finish_parameters")
    count = np.float64(problem.batch * problem.out_height * problem.out_width)
    gradients = Out(dweight), *map(Out, vectors), Out(corrections)
    grid = problem.out_channels, 1, 1
    inputs = parts, *patches, pivot, *operands, count
    launch(function, *inputs, *gradients, np.int32(slices), block=(128, 1, 1), grid=grid)

    margin, span = problem.kernel[0] - 1 - padding, 2 * problem.kernel[0] - 1
    classes = [min(size, 2 * margin + 1) for size in (problem.height, problem.width)]
    constants = dy.new_empty(*classes, problem.in_channels)
    composites = dy.new_empty(*classes, problem.in_channels, span, span, problem.in_channels)
    function = module.get_function("composite_kernels")
    outputs = Out(constants), Out(composites)
    launch(function, corrections, given.weight, *outputs, block=(256, 1, 1), grid=(math.prod(classes), 1, 1))

    function = module.get_function("input_gradient")
    grid = math.ceil(problem.width / 32), math.ceil(problem.height / 8), problem.batch
    launch(function, given.x, pivot, constants, composites, InOut(dx), block=(32, 8, 1), grid=grid)
    return Gradients(dx, dweight, *vectors)


def _compiled(file: str, given: Training, padding: int) -> tuple[Problem, Any]:
    """Return the problem of the arguments and ``file`` compiled for it; raise ValueError if that is too large."""
    batch, in_channels, height, width = given.x.shape
    out_channels, _, kernel_size, _ = given.weight.shape
    problem = Problem(batch, in_channels, out_channels, height, width, kernel_size, padding=padding)
    _check_count(problem.batch * problem.out_height * problem.out_width)
    if problem.taps > MAX_TAPS:
        raise ValueError(f"{file} serves at most {MAX_TAPS} products per output, got {problem.taps}")
    _check_shared(file, problem)
    return problem, source_module(ladder.KERNELS / f"{file}.cu", options(problem), given.x.device)


def options(problem: Problem) -> tuple[str, ...]:
    """Return the options for nvcc that define the sizes of rungs 12 and 13."""
    return *ladder.tensor_cores.options(problem), f"-DPADDING={problem.pads[0][0]}"


def _check_shared(file: str, problem: Problem) -> None:
    """Raise ValueError if a kernel of ``file`` needs more shared memory than a block has on every GPU."""
    reach = problem.kernel[0] - 1
    halo, pitched = (8 + reach) * (32 + reach), (8 + reach) * (33 + reach) + 31  # at most, with the padding of 13
    channels, taps = problem.in_channels, problem.taps
    needed = {
        "12_training": {
            "conv_statistics": 4 * (channels * halo + 64 * taps + 2 * 64 * 3),
            "moments": 8 * (channels + 1) * halo,
        },
        "13_backward": {
            "backward": 4 * ((channels + 8) * pitched + 8 * taps + problem.out_channels * (taps + 1)),
            "input_gradient": 4 * channels * (8 + 2 * reach) * (32 + 2 * reach),
        },
    }[file]
    kernel = max(needed, key=lambda name: needed[name])
    if needed[kernel] > ladder.MAX_SHARED_BYTES:
        raise ValueError(
            f"{kernel} needs {needed[kernel]} bytes of shared memory for {channels} input channels, "
            f"{problem.out_channels} output channels and a {reach + 1}x{reach + 1} kernel, "
            f"a block has {ladder.MAX_SHARED_BYTES}"
        )


def _check_count(count: int) -> None:
    """Raise ValueError for one value per channel, which has no unbiased variance."""
    if count == 1:
        raise ValueError("training needs more than 1 value per channel, got 1")


def _slices(problem: Problem) -> int:
    """Return the number of blocks that share the tiles of 8 x 32 outputs."""
    tiles = problem.batch * math.ceil(problem.out_height / 8) * math.ceil(problem.out_width / 32)
    return min(TILE_SLICES, tiles)


def _bias(given: Training) -> Tensor:
    return torch.zeros_like(given.running_mean) if given.bias is None else given.bias


@_candidate
def _rung_11(given: Training) -> Tensor:
    z = ladder.library_convolution(given.x, given.weight, given.bias)
    mean, var = batch_statistics(z)
    count = math.prod(z.shape) // z.shape[1]
    _check_count(count)
    given.running_mean.lerp_(mean, given.momentum)
    given.running_var.lerp_(var * (count / (count - 1)), given.momentum)
    return ladder.bn_scale(z, mean, var, given.gamma, given.beta, given.scaling_factor, given.eps)


@_candidate
def _rung_12(given: Training) -> Tensor:
    return normalise(given, *conv_statistics(given))


@_candidate
def _rung_12_moments(given: Training) -> Tensor:
    return normalise(given, *statistics_of_moments(given, moments(given)))


def forward_and_backward(dy: Tensor, given: Training) -> tuple[Tensor, Gradients]:
    """Return y and the gradients by rungs 12 and 13; update the running statistics. The moments are computed once."""
    patches = moments(given)
    mean, var = statistics_of_moments(given, patches)
    return normalise(given, mean, var), backward(dy, given, patches, var)


def _rung_13(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    scaling_factor: float,
    eps: float,
) -> Gradients:
    running = weight.new_zeros(len(weight)), weight.new_ones(len(weight))  # as nobody asks for them
    given = Training(x, weight, bias, *running, gamma, beta, scaling_factor, eps)
    patches = moments(given)
    found = backward(dy, given, patches, statistics_of_moments(given, patches)[1])
    return found if bias is not None else found._replace(bias=None)


TRAINING = [
    Rung(11, "batch_statistics", "library convolution, our statistics, rung 03's BatchNorm and scale",
         "a reduction: threads, warps, blocks and launches merge their means and variances in a fixed order",
         _rung_11, 4, 4, mode="train"),
    Rung(12, "training", "a convolution for the statistics alone, then rung 10",
         "computing the convolution twice is cheaper than storing it once",
         _rung_12, 3, 1, 2, mode="train"),
    Rung(12, "moments", "moments of the patches of x, then rung 10",
         "z is linear in the patches: their mean and covariance hold the statistics of every channel",
         _rung_12_moments, 4, 1, 2, mode="train"),
    Rung(13, "backward", "after the moments: one pass over dy and a small one over x",
         "z is linear in the patches: what BatchNorm subtracts from dy can be subtracted afterwards",
         _rung_13, 8, 2, 7, mode="backward"),  # launches and passes with those of 12 moments
]  # fmt: skip
