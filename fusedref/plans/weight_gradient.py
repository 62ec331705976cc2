"""Plans for weight_gradient.cu: the gradient of the weight in float32, on tensor cores since sm_80."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from fusedref.csrc import TRAINING
from fusedref.plans.base import Argument, Launch
from fusedref.plans.implicit_gemm import in_one_row
from fusedref.plans.variant import KernelVariant, common_macros, stride_and_group_macros
from fusedref.problem import Problem
from fusedref.target import Target

MOST_SUMS = 9  # products of 16 x 8 numbers that a warp sums at a time, for each 16 of its output channels
PIXELS = 64  # of a tile
GRADIENT = (Argument("dz", "in"), Argument("x", "in"), Argument("parts", "out"), Argument("batch", "int64"))
SUM = (Argument("parts", "in"), Argument("dweight", "out"), Argument("count", "int32"))


class WeightPlan(NamedTuple):
    """How the gradient of a weight is computed: by a launch that writes parts and one that adds them."""

    launches: tuple[Launch, Launch]
    parts: tuple[int, ...]  # their shape
    dtype: torch.dtype  # of the parts


class WeightTile(NamedTuple):
    """A way for weight_gradient.cu to divide its work, in the terms of its macros, and what it should cost."""

    rows: int
    columns: int
    warp_rows: int
    warp_slices: int
    warp_taps: int
    down: int
    across: int
    blocks: int
    shared: int = 0
    grid: tuple[int, int, int] = (1, 1, 1)
    cycles: float = math.inf

    @property
    def threads(self) -> int:
        """Return the threads of a block."""
        return 32 * self.down * self.across


def unserved_by_weight_gradient(problem: Problem, target: Target, variant: KernelVariant) -> str | None:
    """Return why weight_gradient.cu is not for ``problem``, None where it is."""
    if target.compute_capability < 80:
        return f"weight_gradient multiplies 16 x 16 by 16 x 8 numbers at a time, which {target.architecture} cannot"
    if problem.dtype != torch.float32:
        return "only float32 products need their factors split"
    if variant.channels_last:
        return "weight_gradient serves tensors in NCHW order"
    if problem.out_channels // problem.groups < 8:
        return "under 8 output channels would leave most of a product's 16 empty"
    if max(math.prod(shape[1:]) for shape in (problem.input_shape, problem.output_shape)) >= 2**31:
        return "weight_gradient counts the elements of an image in 32 bits"
    if next(weight_tiles(problem, target), None) is None:
        return "not even a small tile, with what its windows reach, fits into shared memory"
    return None


def weight_gradient_plan(problem: Problem, tile: WeightTile) -> WeightPlan:
    """Return the plan to run ``problem`` by weight_gradient.cu with one of its ``weight_tiles``."""
    problem = in_one_row(problem)
    macros = common_macros(problem, KernelVariant()) | stride_and_group_macros(problem)
    macros |= {
        "TILE_ROWS": tile.rows,
        "TILE_COLUMNS": tile.columns,
        "WARP_ROWS": tile.warp_rows,
        "WARP_SLICES": tile.warp_slices,
        "WARP_TAPS": tile.warp_taps,
        "WARPS_DOWN": tile.down,
        "WARPS_ACROSS": tile.across,
        "BLOCKS": tile.blocks,
    }
    first = Launch(
        source=TRAINING / "weight_gradient.cu",
        symbol="weight_gradient",
        signature=GRADIENT,
        macros=tuple(macros.items()),
        grid=tile.grid,
        block=(tile.threads, 1, 1),
        shared=tile.shared,
    )
    count, part = tile.grid[2], _part_shape(problem)
    return WeightPlan((first, adding(first, "sum_weight_gradient", part, count)), (count, *part), torch.float32)


def adding(first: Launch, symbol: str, part: tuple[int, ...], count: int) -> Launch:
    """Return the launch that adds the ``count`` parts that ``first`` writes."""
    lanes = min(32, 1 << max(0, (count // 4).bit_length() - 1))  # each adds 4 parts or more
    grid = (math.ceil(math.prod(part) / 32), 1, 1)
    return dataclasses.replace(first, symbol=symbol, signature=SUM, grid=grid, block=(32, lanes, 1), shared=0)


def _part_shape(problem: Problem) -> tuple[int, int, int]:
    """Return the shape of a part: [taps, out_channels, input channels of a group rounded up to 8]."""
    return math.prod(problem.kernel), problem.out_channels, _slices(problem) * 8


def best_weight_tile(problem: Problem, target: Target) -> WeightTile:
    """Return the cheapest of the ``weight_tiles``."""
    return min(weight_tiles(problem, target), key=lambda tile: tile.cycles)


def weight_tiles(problem: Problem, target: Target) -> Iterator[WeightTile]:
    """Yield the tiles worth considering for weight_gradient.cu that fit into shared memory."""
    problem = in_one_row(problem)
    taps, slices = math.prod(problem.kernel), _slices(problem)
    out_channels = problem.out_channels // problem.groups
    tap_ranges = math.ceil(taps / MOST_SUMS)
    warp_taps = math.ceil(taps / tap_ranges)
    warp_slices = math.ceil(slices / math.ceil(slices * warp_taps / MOST_SUMS))
    ranges = tap_ranges * math.ceil(slices / warp_slices)
    for columns, warp_rows, down, across in itertools.product(
        (8, 16, 32, 64), (1, 2), (1, 2, 4, 8), (1, 2, 3, 4, 6, 8)
    ):
        warps, rows = down * across, PIXELS // columns
        channels = 16 * warp_rows * down
        if warps not in (4, 6, 8) or (channels >= 2 * out_channels and channels > 16):
            continue
        if (across % tap_ranges and tap_ranges % across) or across >= 2 * ranges > 8:
            continue
        column_blocks, row_blocks = math.ceil(ranges / across), math.ceil(out_channels / channels)
        block_slices = warp_slices * max(1, across // tap_ranges)
        in_pixels = math.prod(
            (outputs - 1) * stride + span
            for outputs, stride, span in zip((rows, columns), problem.strides, problem.span, strict=True)
        )
        shared = 32 * block_slices * in_pixels + 4 * channels * (PIXELS + 8) + 8 * warps
        shared = math.ceil(shared / 16) * 16
        # Of a thread: sums, numbers in flight to shared memory, fragments, and the rest.
        loads = math.ceil(channels * PIXELS / (32 * warps)) + 8 * math.ceil(block_slices * in_pixels / (32 * warps))
        registers = 4 * warp_rows * warp_slices * warp_taps + loads + 16 * warp_rows + 44
        blocks = min(65536 // (32 * warps * registers), (target.shared_limit + 1024) // (shared + 1024))
        if blocks == 0:
            continue
        tiles = problem.batch * math.ceil(problem.out_height / rows) * math.ceil(problem.out_width / columns)
        grid = column_blocks, row_blocks * problem.groups
        parts = max(1, min(tiles, 65535, target.multiprocessors * blocks // math.prod(grid)))
        # Cycles of a multiprocessor for a tile: products, fragments from shared memory, numbers to be split.
        products = warps * warp_rows * warp_slices * warp_taps * 3 * (PIXELS / 16)
        fragments = warps * (2 * warp_rows + warp_slices * warp_taps) * (PIXELS / 16)
        split = channels * PIXELS + 8 * block_slices * in_pixels
        each = max(1.7 * products, 4 * fragments) + split * 14 / 128 + 400 / blocks
        waves = math.ceil(math.prod(grid) * parts / (target.multiprocessors * blocks))
        cycles = waves * math.ceil(tiles / parts) * each * blocks + parts * math.prod(_part_shape(problem)) / 200
        yield WeightTile(
            rows, columns, warp_rows, warp_slices, warp_taps, down, across, blocks, shared, (*grid, parts), cycles
        )


def _slices(problem: Problem) -> int:
    return math.ceil(problem.in_channels // problem.groups / 8)
