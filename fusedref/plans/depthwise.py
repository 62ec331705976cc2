"""Plans for depthwise.cu and depthwise_last.cu: a filter for each channel, at the speed of memory."""

from __future__ import annotations

import math

from fusedref.csrc import INFERENCE
from fusedref.plans.base import INFERENCE_SIGNATURE, Launch, Plan
from fusedref.plans.device import predict
from fusedref.plans.variant import KernelVariant, common_macros, stride_and_group_macros
from fusedref.problem import Problem
from fusedref.target import EMULATED, Target

THREADS = 256
MOST_TAPS = 81  # that are unrolled
TILE = 4096  # numbers of x that a block of depthwise.cu should have in shared memory
BLOCKS = 256  # that there should be at the least
SHARED = 47 * 1024  # bytes that it can have


def unserved_by_depthwise(problem: Problem, target: Target, variant: KernelVariant = KernelVariant()) -> str | None:
    """Return why depthwise is not the kernel for ``problem``, None where it is."""
    if not problem.groups == problem.in_channels == problem.out_channels:
        return "depthwise serves one filter for each channel"
    if problem.taps > MOST_TAPS or max(problem.dilations) > 4 or max(problem.strides) > 4:
        return f"depthwise unrolls up to {MOST_TAPS} taps, with a stride and a dilation of up to 4"
    if problem.in_channels * problem.height * problem.width >= 2**31 or problem.width > 2**16:
        return "depthwise counts the numbers of an image in 32 bits"
    if not variant.channels_last:
        planes, rows, _ = _tile(problem)
        if 4 * planes * _numbers(problem, rows) > SHARED:
            return "not even a few rows, with what their windows reach, fit into shared memory"
        if problem.batch * problem.in_channels // planes * math.ceil(problem.out_height / rows) >= 2**31 - 1:
            return "depthwise counts tiles in 31 bits"
    return None


def depthwise_plan(
    problem: Problem,
    target: Target = EMULATED,
    variant: KernelVariant = KernelVariant(),
    reason: str = "it computes a filter for each channel at the speed of memory",
) -> Plan:
    """Return the plan to run ``problem`` by depthwise.cu or, with channels last, by depthwise_last.cu."""
    few = problem.taps <= 9
    if variant.channels_last:
        blocks = 3 if few else 2
        tile, sizes, grid = _division_of_channels_last(problem, target, blocks)
    else:
        blocks = 4 if few else 3 if problem.taps <= 25 else 2
        planes, rows, run = _tile(problem)
        tile = planes, rows, problem.out_width
        unit = math.gcd(16 // problem.dtype.itemsize, problem.width)
        sizes = {"PLANES": planes, "TILE_ROWS": rows, "RUN": run, "UNIT": unit}
        count = math.ceil(problem.batch * problem.in_channels / planes) * math.ceil(problem.out_height / rows)
        grid = max(1, count), 1, 1
    macros = common_macros(problem, variant) | stride_and_group_macros(problem) | sizes | {"BLOCKS": blocks}
    name = "depthwise_last" if variant.channels_last else "depthwise"
    return Plan(
        kernel="depthwise",
        reason=reason,
        variant=variant,
        tile=tile,
        predicted=predict(problem, variant, "CUDA cores"),
        launches=(
            Launch(
                source=INFERENCE / f"{name}.cu",
                symbol=name,
                signature=INFERENCE_SIGNATURE,
                macros=tuple(macros.items()),
                grid=grid,
                block=(THREADS, 1, 1),
            ),
        ),
    )


def _tile(problem: Problem) -> tuple[int, int, int]:
    """Return the planes and rows of a block of depthwise.cu, and the rows of a thread.

    Of the tiles that fit, take the one whose threads execute the fewest instructions for an output: those that have
    nothing left to do wait for the others.
    """
    height, (kernel_height, kernel_width) = problem.out_height, problem.kernel
    found: list[tuple[float, int, int, int]] = []
    for run in range(2, 9):
        groups = math.ceil(height / run)
        rows = (run - 1) * problem.strides[0] + (kernel_height - 1) * problem.dilations[0] + 1
        instructions = problem.taps * (run + 1) + kernel_width * rows + 30  # of a thread, for ``run`` outputs

        def cost(planes: int, some: int, instructions: int = instructions, run: int = run) -> float:
            """Return the instructions for a row of outputs, where a block has so many groups of rows."""
            passes = math.ceil(planes * some * problem.out_width / THREADS)
            return passes * instructions / (planes * min(height, some * run))

        most = min(TILE // _numbers(problem, groups * run), max(1, problem.batch * problem.in_channels // BLOCKS))
        if _numbers(problem, groups * run) <= TILE:
            found += [(cost(planes, groups), planes, groups * run, run) for planes in range(1, most + 1)]
        else:
            for tiles in range(1, groups + 1):
                some = math.ceil(groups / tiles)
                if some == 1 or _numbers(problem, some * run) <= TILE:
                    found.append((cost(1, some) * tiles * some / groups, 1, some * run, run))
                    break
    return min(found)[1:]


def _numbers(problem: Problem, rows: int) -> int:
    """Return the numbers in shared memory for so many rows of a plane."""
    pad = problem.pads[1][0]
    columns = (problem.out_width - 1) * problem.strides[1] + problem.span[1] - pad
    pitch = -(-(-(-pad // 4) * 4 + max(columns, problem.width)) // 4) * 4
    return ((rows - 1) * problem.strides[0] + problem.span[0]) * pitch


def _division_of_channels_last(
    problem: Problem, target: Target, blocks: int
) -> tuple[tuple[int, int, int], dict[str, int], tuple[int, int, int]]:
    """Return tile, macros and grid of depthwise_last.cu."""
    unit = math.gcd(2 if problem.taps <= 25 else 1, problem.in_channels)  # more would spill registers
    lanes = min(32, 1 << (problem.in_channels // unit - 1).bit_length())
    run, columns = (4, 2) if problem.strides == (1, 1) else (2, 2)
    run, columns = min(run, problem.out_height), min(columns, problem.out_width)
    groups = math.ceil(problem.in_channels / (unit * lanes))
    jobs = problem.batch * math.ceil(problem.out_height / run) * math.ceil(problem.out_width / columns)
    count = math.ceil(jobs * lanes / THREADS)
    most = math.ceil(4 * blocks * target.multiprocessors / groups)
    macros = {"RUN": run, "COLUMNS": columns, "UNIT": unit, "LANES": lanes}
    return (unit * lanes, run, columns), macros, (groups, max(1, min(count, most)), 1)
