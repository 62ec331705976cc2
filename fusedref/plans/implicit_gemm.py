"""Plans for implicit_gemm.cu: tensor cores of every card since sm_80, for any stride, dilation, layout and groups."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from fusedref.csrc import INFERENCE
from fusedref.plans.base import INFERENCE_SIGNATURE, Launch, Plan
from fusedref.plans.device import predict
from fusedref.plans.variant import KernelVariant, common_macros, stride_and_group_macros
from fusedref.problem import Problem
from fusedref.target import EMULATED, Target


class GemmTile(NamedTuple):
    """A way for implicit_gemm.cu to divide its work, in the terms of its macros, and what it should cost."""

    rows: int
    columns: int
    chunk: int
    slots: int
    warp_channels: int
    down: int
    across: int
    blocks: int = 1
    shared: int = 0
    grid: tuple[int, int, int] = (1, 1, 1)
    cycles: float = math.inf  # about how many the launch takes

    @property
    def channels(self) -> int:
        """Return the output channels of a block."""
        return self.warp_channels * self.down


class Geometry(NamedTuple):
    """Sizes that follow from a problem and a tile, as the macros of the same names in upper case."""

    fold: int  # taps of a filter's row that share a shared-memory row of 8 numbers
    pitch: int  # rows of shared memory from one row of pixels to the next
    weight_unit: int  # elements of weights that one copy moves, at most 16 bytes
    weight_pitch: int  # elements between output channels of raw weights
    x_unit: int  # elements of x that one copy moves
    raw_columns: int  # columns of a raw row of x
    raw_pitch: int  # elements between input channels of raw x; with channels last, between its pixels
    y_unit: int  # elements of y that one store moves
    shared_bytes: int  # of struct Shared


def unserved_by_implicit_gemm(problem: Problem, target: Target, variant: KernelVariant = KernelVariant()) -> str | None:
    """Return why implicit_gemm is not the kernel for ``problem``, None where it is."""
    if target.compute_capability < 80:
        return f"implicit_gemm multiplies 16 x 16 by 16 x 8 numbers at a time, which {target.architecture} cannot"
    if problem.out_channels // problem.groups < 8:
        return "under 8 output channels would leave most of a product's 16 empty"
    if problem.taps < 36 and variant.pieces(problem.dtype) == 2:
        return "a float32 sum of fewer than 36 products has smaller errors than fp16 pieces"
    if max(problem.in_channels * problem.height * problem.width, math.prod(problem.output_shape[1:])) >= 2**31 - 2**16:
        return "implicit_gemm counts the elements of an image in 32 bits"
    if problem.batch * problem.out_height * problem.out_width >= 2**30:
        return "implicit_gemm counts tiles in 32 bits"
    if next(gemm_tiles(problem, target._replace(multiprocessors=1), variant), None) is None:
        return "not even a small tile, with what its windows reach, fits into shared memory"
    return None


def implicit_gemm_plan(
    problem: Problem,
    tile: GemmTile,
    variant: KernelVariant = KernelVariant(),
    reason: str = "it serves every shape on tensor cores",
) -> Plan:
    """Return the plan to run ``problem`` by implicit_gemm.cu with one of its ``gemm_tiles``."""
    problem = in_one_row(problem)
    sizes = {
        "TILE_ROWS": tile.rows,
        "TILE_COLUMNS": tile.columns,
        "CHUNK": tile.chunk,
        "SLOTS": tile.slots,
        "WARP_CHANNELS": tile.warp_channels,
        "WARPS_DOWN": tile.down,
        "WARPS_ACROSS": tile.across,
        "BLOCKS": tile.blocks,
        "PIECES": variant.pieces(problem.dtype),
        **{name.upper(): size for name, size in _geometry(problem, variant, tile)._asdict().items()},
    }
    macros = common_macros(problem, variant) | stride_and_group_macros(problem) | sizes
    return Plan(
        kernel="implicit_gemm",
        reason=reason,
        variant=variant,
        tile=(tile.channels, tile.rows, tile.columns),
        predicted=predict(problem, variant, "tensor cores"),
        launches=(
            Launch(
                source=INFERENCE / "implicit_gemm.cu",
                symbol="implicit_gemm",
                signature=INFERENCE_SIGNATURE,
                macros=tuple(macros.items()),
                grid=tile.grid,
                block=(32 * tile.down * tile.across, 1, 1),
                shared=tile.shared,
            ),
        ),
    )


def best_gemm_tile(problem: Problem, target: Target, variant: KernelVariant) -> GemmTile:
    """Return the cheapest of the ``gemm_tiles``."""
    return min(gemm_tiles(problem, target, variant), key=lambda tile: tile.cycles)


def gemm_tiles(
    problem: Problem, target: Target = EMULATED, variant: KernelVariant = KernelVariant()
) -> Iterator[GemmTile]:
    """Yield the tiles worth considering for implicit_gemm.cu that fit into shared memory."""
    problem = in_one_row(problem)
    in_channels, out_channels = problem.in_channels // problem.groups, problem.out_channels // problem.groups
    chunks = [8, 16, 32, 64] if in_channels >= 8 else [in_channels]
    for warp_channels, down, across in itertools.product((16, 32), (1, 2, 4), (1, 2, 4, 8)):
        channels, warps = warp_channels * down, down * across
        if warps not in (4, 8, 16) or (channels >= 2 * out_channels and channels > 16):
            continue
        fewest = math.ceil(problem.out_width / (32 * across))
        for columns in sorted({math.ceil(problem.out_width / n) for n in range(fewest, fewest + 12)}):
            rows = min(problem.out_height, 32 * across // columns)
            rows = math.ceil(problem.out_height / math.ceil(problem.out_height / rows))
            for chunk, resident in itertools.product(chunks, (False, True)):
                count = math.ceil(in_channels / chunk)
                if chunk >= 2 * in_channels > 8 or (resident and count == 1):
                    continue
                slots = count if resident else 1
                tile = _fitted(
                    problem, target, variant, GemmTile(rows, columns, chunk, slots, warp_channels, down, across)
                )
                if tile is not None:
                    yield tile


def gemm_tile(problem: Problem, target: Target, variant: KernelVariant, sizes: Sequence[Any]) -> GemmTile | None:
    """Return the tile whose first seven sizes are ``sizes``, None where it does not fit into shared memory."""
    return _fitted(in_one_row(problem), target, variant, GemmTile(*sizes))


def in_one_row(problem: Problem) -> Problem:
    """Return the same problem with each plane as one row if windows are single pixels: tiles divide it evenly."""
    if problem.kernel != (1, 1) or problem.strides != (1, 1) or problem.pads != ((0, 0), (0, 0)):
        return problem
    return dataclasses.replace(problem, height=1, width=problem.height * problem.width, padding=0)


def _entries(problem: Problem, chunk: int, fold: int) -> int:
    """Return the steps of 8 products for an output and a chunk of input channels."""
    return math.ceil(chunk / 8) * problem.kernel[0] * math.ceil(problem.kernel[1] / fold)


def _input_size(problem: Problem, tile: GemmTile) -> tuple[int, int]:
    """Return the rows and columns of x that the outputs of a tile see."""
    rows, columns = (
        (outputs - 1) * stride + span
        for outputs, stride, span in zip((tile.rows, tile.columns), problem.strides, problem.span, strict=True)
    )
    return rows, columns


def _geometry(problem: Problem, variant: KernelVariant, tile: GemmTile) -> Geometry:
    """Return the geometry of ``tile``."""
    in_channels, out_channels = problem.in_channels // problem.groups, problem.out_channels // problem.groups
    (rows, columns), size, taps = _input_size(problem, tile), problem.dtype.itemsize, math.prod(problem.kernel)

    fold = min(8 // min(tile.chunk, 8), problem.kernel[1])
    while problem.dtype != torch.float32 and problem.kernel[1] % fold:
        fold -= 1
    # If possible, 8 consecutive outputs have no bank conflict even if they continue in the next row.
    least = problem.strides[1] * math.ceil(columns / problem.strides[1])
    pitch = next((p for p in range(least, least + 8) if (problem.strides[0] * p - tile.columns) % 8 == 0), least)

    def unit_of(*lengths: int) -> int:
        """Return the elements of the largest copy, up to 16 bytes, that divides all lengths."""
        return math.gcd(16 // size, *lengths)

    def odd_units(elements: int, unit: int) -> int:
        """Return ``elements``, rounded up to an odd number of units, so that rows begin in different banks."""
        least = max(unit, 4 // size)
        return (math.ceil(elements / least) | 1) * least

    weight_unit = unit_of(in_channels * taps, tile.chunk * taps)
    weight_pitch = odd_units(tile.chunk * taps, weight_unit)
    if variant.channels_last:
        x_unit, y_unit = unit_of(problem.in_channels, in_channels, tile.chunk), unit_of(4, out_channels)
        raw_columns, raw_pitch = columns, odd_units(tile.chunk, x_unit)
        raw_x = rows * columns * raw_pitch
    else:
        step = tile.columns * problem.strides[1] if problem.out_width > tile.columns else 0
        x_unit, y_unit = unit_of(problem.width, step), unit_of(4, problem.out_width, tile.columns)
        raw_columns = _round_up(-problem.pads[1][0] % x_unit + columns, x_unit)
        raw_pitch = rows * raw_columns
        raw_x = tile.chunk * raw_pitch

    entries, pieces, warps = _entries(problem, tile.chunk, fold), variant.pieces(problem.dtype), tile.down * tile.across
    filters = 16 * tile.slots * entries * pieces * tile.channels
    staged = 16 * pieces * math.ceil(tile.chunk / 8) * rows * pitch
    runs = 4 * warps * 8 * (tile.warp_channels + 4 if variant.channels_last else 40)
    rest = 12 * tile.channels + 4 * (tile.slots * tile.channels + 1) + 8 * (tile.channels + warps) + 4 * entries
    parts = filters + staged + runs + rest, size * tile.channels * weight_pitch, size * raw_x
    shared_bytes = sum(_round_up(part, 16) for part in parts)
    return Geometry(fold, pitch, weight_unit, weight_pitch, x_unit, raw_columns, raw_pitch, y_unit, shared_bytes)


def _fitted(problem: Problem, target: Target, variant: KernelVariant, tile: GemmTile) -> GemmTile | None:
    """Return the tile with its blocks, shared memory, grid and cost; None where it does not fit into shared memory."""
    geometry, warps = _geometry(problem, variant, tile), tile.down * tile.across
    shared = geometry.shared_bytes
    wide = 128 if 80 < target.compute_capability < 120 else 160  # the others need more to spill none
    registers = 80 if tile.warp_channels == 16 else wide
    fit = (target.shared_limit + 1024) // (shared + 1024), 65536 // (registers * 32 * warps), 48 // warps
    if min(fit) == 0:
        return None
    tile = tile._replace(blocks=min(fit), shared=shared)
    return _with_grid_and_cost(problem, variant, tile, geometry, target.multiprocessors)


def _with_grid_and_cost(
    problem: Problem, variant: KernelVariant, tile: GemmTile, geometry: Geometry, multiprocessors: int
) -> GemmTile:
    """Return the tile with its grid, and about how many cycles the launch takes."""
    tiles = problem.batch * math.ceil(problem.out_height / tile.rows) * math.ceil(problem.out_width / tile.columns)
    channel_blocks = problem.groups * math.ceil(problem.out_channels // problem.groups / tile.channels)
    in_channels = problem.in_channels // problem.groups
    count, warps = math.ceil(in_channels / tile.chunk), tile.down * tile.across
    steps, numbers = _entries(problem, tile.chunk, geometry.fold) / 2, variant.pieces(problem.dtype)
    rows, columns = _input_size(problem, tile)
    tensor = warps * (tile.warp_channels / 4) * steps * (3 if numbers == 2 else 1) * 1.5
    shared = warps * steps * (tile.warp_channels * 32 + 1024) * numbers / 128
    # Instructions of 32 lanes, 4 a cycle; and copies, of which a short one takes as long as a long one.
    x = tile.chunk * rows * columns * (16 / 128 + 0.65 / geometry.x_unit)
    weights = tile.channels * tile.chunk * math.prod(problem.kernel) * (16 / 128 + 0.65 / geometry.weight_unit)
    seats = multiprocessors * tile.blocks
    # Blocks that keep all their weights stay.
    down = max(1, min(tiles, seats // channel_blocks if tile.slots == count else 65535))
    resident = min(tile.blocks, math.ceil(down * channel_blocks / multiprocessors))
    # The other blocks of the multiprocessor hide a part of what a block waits for.
    step = 1.5 * max(tensor, shared) + x + 3000 / resident
    store = tile.channels * tile.rows * tile.columns * (0.06 + 1 / min(tile.columns, 32))
    if tile.slots == count:
        each = math.ceil(tiles / down) * (count * step + store) + count * weights
    else:
        each = count * (step + weights) + store
    waves = down * channel_blocks / seats
    waves = math.ceil(waves) if waves < 4 else waves + 0.5  # many even out
    return tile._replace(grid=(channel_blocks, down, 1), cycles=waves * resident * each + 3000)


def _round_up(number: int, unit: int) -> int:
    return math.ceil(number / unit) * unit
