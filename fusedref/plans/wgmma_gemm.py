"""Plans for wgmma_gemm.cu: an implicit matrix product on the asynchronous tensor cores of sm_90a."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from fusedref.csrc import INFERENCE
from fusedref.plans.base import INFERENCE_SIGNATURE, Argument, Launch, Plan
from fusedref.plans.device import predict
from fusedref.plans.implicit_gemm import in_one_row
from fusedref.plans.variant import KernelVariant, common_macros, stride_and_group_macros
from fusedref.problem import Problem
from fusedref.target import EMULATED, Target

PREPARE_THREADS = 256
NOTE_BYTES = 16
MOST_SCRATCH = 2**30  # bytes
PREPARE_SIGNATURE = (
    Argument("x", "in"),
    Argument("weight", "in"),
    Argument("scratch", "out"),
    Argument("batch", "int64"),
)


class WgmmaTile(NamedTuple):
    """A way for wgmma_gemm.cu to divide its work, in the terms of its macros, and what it should cost."""

    strip: int
    merged: bool
    chunk: int
    down: int
    across: int
    pixels: int
    direct: bool
    pitch: int
    plane_rows: int
    x_stages: int
    weight_stages: int
    raw_stages: int
    shared_bytes: int
    tiles: int
    scratch: int  # bytes
    cycles: float  # about how many both launches take

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the numbers that tell this tile from the problem's others, see ``wgmma_tile``."""
        return tuple(map(int, self[:7]))

    @property
    def channels(self) -> int:
        """Return the output channels of a block."""
        return 64 * self.down


def unserved_by_wgmma_gemm(problem: Problem, target: Target, variant: KernelVariant = KernelVariant()) -> str | None:
    """Return why wgmma_gemm cannot compute ``problem``, None where it can."""
    if target.architecture != "sm_90a":
        return f"wgmma_gemm multiplies with wgmma, which sm_90a has and {target.architecture} has not"
    if problem.groups != 1:
        return "wgmma_gemm serves one group"
    if problem.taps < 24 and variant.pieces(problem.dtype) == 2:
        return "a float32 sum of fewer than 24 products has smaller errors than fp16 pieces"
    if problem.in_channels < 16 or problem.out_channels < 16:
        return "under 16 input or output channels would leave most of a product empty"
    if max(problem.in_channels * problem.height * problem.width, math.prod(problem.output_shape[1:])) >= 2**31 - 2**16:
        return "wgmma_gemm counts the elements of an image in 32 bits"
    if next(wgmma_tiles(problem, target, variant), None) is None:
        return "wgmma_gemm has no tile that fits into shared memory, with positions that it can count in 32 bits"
    return None


def wgmma_gemm_plan(
    problem: Problem,
    tile: WgmmaTile,
    target: Target = EMULATED,
    variant: KernelVariant = KernelVariant(),
    reason: str = "wgmma multiplies fastest",
) -> Plan:
    """Return the plan to run ``problem`` by wgmma_gemm.cu with one of its ``wgmma_tiles``."""
    problem = in_one_row(problem)
    sizes = {
        "STRIP": tile.strip,
        "PITCH": tile.pitch,
        "PLANE_ROWS": tile.plane_rows,
        "MERGED": int(tile.merged),
        "CHUNK": tile.chunk,
        "DOWN": tile.down,
        "ACROSS": tile.across,
        "PIXELS": tile.pixels,
        "DIRECT": int(tile.direct),
        "X_STAGES": tile.x_stages,
        "WEIGHT_STAGES": tile.weight_stages,
        "RAW_STAGES": tile.raw_stages,
        "SHARED_BYTES": tile.shared_bytes,
        "PIECES": variant.pieces(problem.dtype),
    }
    macros = tuple((common_macros(problem, variant) | stride_and_group_macros(problem) | sizes).items())
    blocks, chunks = math.ceil(problem.out_channels / tile.channels), math.ceil(problem.in_channels / tile.chunk)
    return Plan(
        kernel="wgmma_gemm",
        reason=reason,
        variant=variant,
        tile=(tile.channels, 1, tile.pixels * tile.across),
        predicted=predict(problem, variant, "tensor cores"),
        launches=(
            Launch(
                source=INFERENCE / "wgmma_gemm_prepare.cu",
                symbol="wgmma_gemm_prepare",
                signature=PREPARE_SIGNATURE,
                macros=macros,
                grid=(blocks * tile.channels + (0 if tile.direct else chunks * tile.tiles), 1, 1),
                block=(PREPARE_THREADS, 1, 1),
            ),
            Launch(
                source=INFERENCE / "wgmma_gemm.cu",
                symbol="wgmma_gemm",
                signature=(*INFERENCE_SIGNATURE, Argument("scratch", "in")),
                macros=macros,
                grid=(blocks, max(1, min(tile.tiles, target.multiprocessors // blocks)), 1),
                block=(128 * (tile.down * tile.across + 1 + tile.direct), 1, 1),
                shared=tile.shared_bytes,
            ),
        ),
        scratch=tile.scratch,
    )


def best_wgmma_tile(problem: Problem, target: Target, variant: KernelVariant) -> WgmmaTile:
    """Return the cheapest of the ``wgmma_tiles``."""
    return min(wgmma_tiles(problem, target, variant), key=lambda tile: tile.cycles)


def wgmma_tiles(
    problem: Problem, target: Target = EMULATED, variant: KernelVariant = KernelVariant()
) -> Iterator[WgmmaTile]:
    """Yield the tiles worth considering for wgmma_gemm.cu that fit into shared memory."""
    problem = in_one_row(problem)
    strips = sorted({math.ceil(problem.out_width / n) for n in range(1, 17)}, reverse=True)
    strips = strips if math.prod(problem.kernel) > 1 else strips[:1]
    groups = [(2, 1), (1, 2)] if problem.out_channels > 64 else [(1, 2)]
    merges = (True,) if problem.kernel[0] == 1 else (True, False)
    chunks = [chunk for chunk in (16, 32, 64) if chunk < problem.in_channels + 16]
    for strip, (down, across) in itertools.product(strips, groups):
        blocks = max(1, target.multiprocessors // math.ceil(problem.out_channels / (64 * down)))
        positions = _positions(problem, strip)
        # The narrowest tiles that take as many turns of all multiprocessors as the widest, or a few more.
        fewest = max(1, math.ceil(positions / (128 * across * blocks)))
        widths = {8 * math.ceil(positions / ((fewest + more) * blocks * across * 8)) for more in range(3)}
        for pixels, merged, chunk, direct in itertools.product(
            sorted({max(64, width) for width in widths}), merges, chunks, (False, True)
        ):
            tile = wgmma_tile(problem, target, variant, (strip, merged, chunk, down, across, pixels, direct))
            if tile is not None:
                yield tile


def wgmma_tile(problem: Problem, target: Target, variant: KernelVariant, sizes: Sequence[int]) -> WgmmaTile | None:
    """Return the tile whose first seven fields are ``sizes``, None where it does not fit."""
    problem = in_one_row(problem)
    strip, merges, chunk, down, across, pixels, converts = sizes
    merged, direct = bool(merges), bool(converts)
    pieces, (kernel_height, kernel_width), taps = (
        variant.pieces(problem.dtype),
        problem.kernel,
        math.prod(problem.kernel),
    )
    rows, pitch = _plane(problem, strip)
    positions = _positions(problem, strip)
    width, chunks = pixels * across, math.ceil(problem.in_channels / chunk)
    tiles, blocks = math.ceil(positions / width), math.ceil(problem.out_channels / (64 * down))

    row_phases, column_phases = (
        min(kernel, stride // math.gcd(stride, dilation))
        for kernel, stride, dilation in zip(problem.kernel, problem.strides, problem.dilations, strict=True)
    )
    runs = (row_phases if merged else kernel_height) * column_phases
    down_distance = (kernel_height - 1) * problem.dilations[0] // problem.strides[0] * pitch if merged else 0
    run = width + down_distance + (kernel_width - 1) * problem.dilations[1] // problem.strides[1]
    items = runs * chunk // 8 * run
    x_stage = items * pieces * 16 + NOTE_BYTES
    weight_stage = chunk * pieces * 64 * down * 2
    if positions + width >= 2**31 or x_stage >= 2**17 or (items > 8 * PREPARE_THREADS and not direct):
        return None

    raw_stage = _round_up(8 * items * problem.dtype.itemsize, 16) if direct else 0

    def shared_bytes(x: int, weights: int, raw: int) -> int:
        """Return the bytes of struct Shared with so many stages."""
        rest = 16 * (x + weights + raw) + 20 * 64 * down + (80 if direct else 0)
        return _round_up(x * x_stage + weights * weight_stage + raw * raw_stage + rest, 16)

    choices = (
        [(3, 4, 4), (2, 4, 4), (2, 4, 3), (2, 3, 3), (2, 3, 2)]
        if direct
        else [(4, 4, 0), (3, 3, 0), (2, 4, 0), (2, 3, 0)]
    )
    stages = next((choice for choice in choices if shared_bytes(*choice) <= target.shared_limit), None)
    scratch = 64 * down * blocks * (chunks * chunk * taps * pieces * 2 + 8) + (
        0 if direct else tiles * chunks * x_stage
    )
    if stages is None or scratch > MOST_SCRATCH:
        return None
    x_stages, weight_stages, raw_stages = stages
    shared = shared_bytes(*stages)
    # Cycles of a tile, after an H100's: the products, the conversion beside them, the stores after them.
    products = 3 if pieces == 2 else 1
    multiplied = chunks * taps * (1.08 * chunk / 16 * products * width / 2 * down + 80)
    converted = chunks * ((5 if taps == 1 else 16) * items + 600) if direct else 0
    whole = pitch * rows * problem.dtype.itemsize % 32 == 0 and (pitch, rows) == (problem.out_width, problem.out_height)
    pairs = whole or (pitch % 2 == 0 and strip % 2 == 0 and problem.out_width % 2 == 0)
    stored = (0.3 if whole else 0.6 if pairs or variant.channels_last else 1.3) * 64 * down * width
    turns = math.ceil(tiles / max(1, target.multiprocessors // blocks)) * math.ceil(blocks / target.multiprocessors)
    # Bytes that memory moves, at about so many a cycle of all multiprocessors.
    x_bytes, y_bytes = (
        math.prod(shape) * problem.dtype.itemsize for shape in (problem.input_shape, problem.output_shape)
    )
    prepared = (2 * scratch + (0 if direct else x_bytes - scratch)) / 1600
    moved = ((x_bytes if direct else scratch) + y_bytes) / 1700
    cycles = max(turns * (max(multiplied, converted) + stored), moved) + prepared + 10000
    return WgmmaTile(
        strip, merged, chunk, down, across, pixels, direct, pitch, rows, x_stages, weight_stages, raw_stages, shared,
        tiles, scratch, cycles,
    )  # fmt: skip


def _round_up(number: int, unit: int) -> int:
    return math.ceil(number / unit) * unit


def _plane(problem: Problem, strip: int) -> tuple[int, int]:
    """Return the rows of a strip of so many columns of outputs, and the positions of a row."""
    (top, _), (left, _) = problem.pads
    rows = _pitch(problem.height, problem.out_height, top, problem.strides[0], problem.dilations[0], problem.kernel[0])
    if strip < problem.out_width:
        return rows, strip + (problem.kernel[1] - 1) * problem.dilations[1] // problem.strides[1]
    return rows, _pitch(
        problem.width, problem.out_width, left, problem.strides[1], problem.dilations[1], problem.kernel[1]
    )


def _positions(problem: Problem, strip: int) -> int:
    """Return the positions of all images."""
    rows, pitch = _plane(problem, strip)
    return problem.batch * math.ceil(problem.out_width / strip) * rows * pitch


@lru_cache(maxsize=1024)
def _pitch(size: int, outputs: int, pad: int, stride: int, dilation: int, kernel: int) -> int:
    """Return the positions from one row to the next, so few that what the taps of one row read beyond its end is zero.

    The zeros are those of its padding and, in the next row, those before its first element. ``pad`` is the padding
    before the first.
    """

    def is_zero(index: int, phase: int) -> bool:
        """Return whether x has no element at this index of a phase."""
        return not 0 <= index * stride + phase - pad < size

    def reads_only_zeros(pitch: int) -> bool:
        """Return whether all that a row's taps read beyond its end is zero, with this pitch."""
        for tap in range(kernel):
            distance, phase = divmod(tap * dilation, stride)
            for index in range(pitch, outputs + distance):
                if not (is_zero(index, phase) and is_zero(index - pitch, phase)):
                    return False
        return True

    return next(pitch for pitch in itertools.count(outputs) if reads_only_zeros(pitch))
