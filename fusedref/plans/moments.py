"""The launches of moments.cu and statistics.cu: batch statistics from the second moments of the patches, on sm_90a."""

from __future__ import annotations

import math
from typing import NamedTuple

from fusedref.csrc import TRAINING
from fusedref.plans.base import Argument, Launch
from fusedref.plans.variant import KernelVariant, common_macros
from fusedref.problem import Problem
from fusedref.target import EMULATED, Target

MOMENTS_SIGNATURE = (
    Argument("x", "in"),
    Argument("parts", "out"),
    Argument("finished", "out"),
    Argument("batch", "int64"),
)
STATISTICS_SIGNATURE = (
    Argument("parts", "in"),
    Argument("weight", "in"),
    Argument("bias", "in"),
    Argument("running_mean", "inout"),
    Argument("running_var", "inout"),
    Argument("batches", "inout"),
    Argument("momentum", "float32"),
    Argument("mean", "out"),
    Argument("var", "out"),
    Argument("centre", "out"),
    Argument("moments", "out"),
    Argument("squares", "out"),
    Argument("finished", "inout"),
    Argument("batch", "int64"),
)
INTERIOR_WARPS, BORDER_WARPS, WARPS = 8, 4, 12  # as in moments.cu
GROUP = 4  # rows of a unit
WIDEST = 128  # columns of a unit, at most


class Geometry(NamedTuple):
    """Sizes that moments.cu is compiled with, as the macros of the same names in upper case."""

    most_blocks: int  # one per multiprocessor
    unit_pairs: int  # pairs of columns of a unit, at most
    units_across: int  # units that share rows
    stages: int  # units in shared memory
    shares: int  # blocks that share an edge of the images' rows
    shared_bytes: int  # of struct Shared


class MomentsPlan(NamedTuple):
    """The two launches, and what they need beside tensors of the problem."""

    launches: tuple[Launch, Launch]
    parts: int  # elements of ``parts``, float64
    moments: int  # elements of ``moments``, float64
    squares: int  # elements of ``squares``, float64


def unserved_by_moments(problem: Problem, target: Target, variant: KernelVariant = KernelVariant()) -> str | None:
    """Return why moments.cu is not the kernel for the statistics of ``problem``, None where it is."""
    if target.architecture != "sm_90a":
        return f"the moments of x need float64 tensor cores, which {target.architecture} does not have"
    if variant.channels_last:
        return "the moments of x are for tensors in NCHW order"
    if problem.strides != (1, 1) or problem.dilations != (1, 1) or problem.groups != 1:
        return "the moments of x serve stride 1, dilation 1 and one group"
    if problem.in_channels > 8 or problem.out_channels > 64:
        return "the moments of x serve up to 8 input and 64 output channels"
    if max(problem.kernel) > 3:
        return "the moments of x serve kernels up to 3 x 3"
    if any(max(pads) >= kernel for pads, kernel in zip(problem.pads, problem.kernel, strict=True)):
        return "the moments of x serve padding below the kernel's size"
    if problem.batch * problem.height * problem.width >= 2**30:
        return "the moments of x count pixels in 32 bits"
    return None


def moments_plan(problem: Problem, target: Target = EMULATED, variant: KernelVariant = KernelVariant()) -> MomentsPlan:
    """Return the launches of moments.cu and statistics.cu for ``problem``."""
    rows, columns = (kernel - 1 for kernel in problem.kernel)
    (top, bottom), (left, right) = problem.pads
    lines_down = min((rows - top) + (rows - bottom), problem.height)
    lines_left = min(columns - left, problem.width)
    lines_right = min(columns - right, problem.width - lines_left)
    lines_right += (problem.width - lines_left - lines_right) % 2  # the interior is pairs of columns
    inner_rows, inner_pairs = problem.height - lines_down, (problem.width - lines_left - lines_right) // 2

    units_across = max(math.ceil(2 * inner_pairs / WIDEST), 1)
    units = problem.batch * math.ceil(inner_rows / GROUP) * units_across if inner_pairs else 0
    blocks = max(min(units, target.multiprocessors), 1)
    sides = (lines_left > 0) + math.ceil(lines_right / 2)
    edges, corners = lines_down + 2 * sides, lines_down * (lines_left + lines_right)
    shares = max((target.multiprocessors - lines_down * sides) // max(edges, 1), 1)

    size = problem.dtype.itemsize
    unit_pairs = max(math.ceil(inner_pairs / units_across), 1)
    lags = columns + 1 + rows * (2 * columns + 1)
    sums = lags * 64 + 8
    margin = 2 if columns else 0
    row = _round_up(min(2 * unit_pairs + 2 * margin, problem.width) * size + 16 - size, 16)
    stage = problem.in_channels * (_round_up((GROUP + rows) * row, 128) + 16)

    def shared_bytes(stages: int) -> int:
        """Return the bytes of shared memory with ``stages`` stages."""
        held = _round_up(max(stages * stage, 8 * INTERIOR_WARPS * sums), 128)
        return _round_up(held + 8 * (BORDER_WARPS * sums + WARPS * 64) + 16 * stages, 128)

    stages = next(n for n in range(8, 0, -1) if shared_bytes(n) <= target.shared_limit)
    geometry = Geometry(target.multiprocessors, unit_pairs, units_across, stages, shares, shared_bytes(stages))
    sizes = {name.upper(): size for name, size in geometry._asdict().items()}
    # moments.cu takes no vectors, so that the same compiled kernel serves vectors of any dtype.
    of_x, macros = (common_macros(problem, kind) | sizes for kind in (variant._replace(vectors=None), variant))
    taps = math.prod(problem.kernel)
    pairs = taps * (taps + 1) // 2
    return MomentsPlan(
        launches=(
            Launch(
                source=TRAINING / "moments.cu",
                symbol="moments",
                signature=MOMENTS_SIGNATURE,
                macros=tuple(of_x.items()),
                grid=(blocks, 1, 1),
                block=(32 * WARPS, 1, 1),
                shared=geometry.shared_bytes,
            ),
            Launch(
                source=TRAINING / "statistics.cu",
                symbol="finish_statistics",
                signature=STATISTICS_SIGNATURE,
                macros=tuple(macros.items()),
                grid=(pairs + taps + 1, 1, 1),
                block=(512, 1, 1),
            ),
        ),
        parts=(blocks + (lines_down + 2 * (lines_left + lines_right)) * shares + corners) * sums,
        moments=taps * 8 + (taps * 8) ** 2 + 16,
        squares=pairs * 64,
    )


def _round_up(number: int, unit: int) -> int:
    return math.ceil(number / unit) * unit
