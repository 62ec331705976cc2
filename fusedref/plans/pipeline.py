"""Plans for pipeline.cu: wgmma behind an asynchronous pipeline, for small kernels and few input channels on sm_90a."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from fusedref.csrc import INFERENCE
from fusedref.plans.base import INFERENCE_SIGNATURE, Argument, Launch, Plan
from fusedref.plans.device import predict
from fusedref.plans.variant import KernelVariant, common_macros
from fusedref.problem import Problem
from fusedref.target import EMULATED, Target

TURN_LATENCY = 950  # nanoseconds of a turn beyond those that memory moves its bytes in: the best on an H100


class Geometry(NamedTuple):
    """Sizes that pipeline.cu is compiled with, as the macros of the same names in upper case."""

    tile_rows: int  # outputs of a tile
    tile_columns: int
    stages: int  # tiles of x in shared memory
    grain: int  # the largest power of two, up to a sector, that divides the start of every run
    extra: int  # outputs of the next tile that a tile computes too, so that its runs can end where a sector ends
    run_pitch: int  # elements from one channel's run in a buffer to the next
    tiles_in_flight: int  # tiles that a loading thread holds in registers
    units_per_warpgroup: int
    tail: int  # pixels of a last, smaller unit, for ``extra``
    shared_bytes: int  # of struct Shared


def unserved_by_pipeline(problem: Problem, target: Target, variant: KernelVariant = KernelVariant()) -> str | None:
    """Return why the pipeline is not the kernel for ``problem``, None where it is."""
    if target.architecture != "sm_90a":
        return f"the pipeline multiplies with wgmma, which sm_90a has and {target.architecture} has not"
    if variant.channels_last:
        return "the pipeline serves tensors in NCHW order"
    if problem.strides != (1, 1) or problem.groups != 1:
        return "the pipeline serves stride 1 and one group"
    if problem.in_channels > 8 or math.prod(problem.kernel) > 9:
        return "the pipeline's weights fit into registers up to 8 input channels and 9 taps"
    if problem.out_channels < 16 or problem.out_height * problem.out_width < 64:
        return "under 16 output channels, or 64 pixels of an image, would leave most of a tile empty"
    if _geometry(problem, target, variant) is None:
        return "not even a row of pixels, with what its windows reach, fits into shared memory"
    if problem.batch * problem.out_height * problem.out_width >= 2**30:
        return "the pipeline counts tiles in 32 bits"
    return None


def pipeline_plan(
    problem: Problem,
    target: Target = EMULATED,
    variant: KernelVariant = KernelVariant(),
    pivot: int = 0,
    reason: str = "the tensor cores compute it in float32 precision at the speed of memory",
) -> Plan:
    """Return the plan to run ``problem`` by pipeline.cu: persistent blocks, at most one per multiprocessor.

    With ``pivot``, the kernel subtracts from each input channel its pivot, which stands at that index of a further
    argument, ``moments``.

    Raise ValueError where not even a row of pixels fits into shared memory.
    """
    geometry = _geometry(problem, target, variant)
    if geometry is None:
        raise ValueError(f"the pipeline has no tile that fits into shared memory for {problem}")
    rows, columns = geometry.tile_rows, geometry.tile_columns
    tiles = problem.batch * math.ceil(problem.out_height / rows) * math.ceil(problem.out_width / columns)
    channel_blocks = math.ceil(problem.out_channels / 64)
    macros = common_macros(problem, variant) | {
        "PIECES": _pieces(problem, variant),
        "PIVOT": pivot,
        "TURN": _turn(problem, target, geometry),
        **{name.upper(): size for name, size in geometry._asdict().items()},
    }
    return Plan(
        kernel="pipeline",
        reason=reason,
        variant=variant,
        tile=(64, rows, columns),
        predicted=predict(problem, variant, "tensor cores"),
        launches=(
            Launch(
                source=INFERENCE / "pipeline.cu",
                symbol="pipeline",
                signature=(*INFERENCE_SIGNATURE, *([Argument("moments", "in")] if pivot else [])),
                macros=tuple(macros.items()),
                grid=(max(1, min(tiles, target.multiprocessors // channel_blocks)), channel_blocks, 1),
                block=(512, 1, 1),
                shared=geometry.shared_bytes,
            ),
        ),
    )


def _pieces(problem: Problem, variant: KernelVariant) -> int:
    """Return how many fp16 numbers stand for one: 3 where two would have larger errors than a float32 sum."""
    pieces = variant.pieces(problem.dtype)
    return 3 if pieces == 2 and problem.taps < 45 else pieces


def _geometry(problem: Problem, target: Target, variant: KernelVariant) -> Geometry | None:
    """Return the geometry whose tiles move the fewest bytes, None where nothing fits into shared memory.

    Tiles are whole rows of outputs, or pieces of a row: as few as there can be, or one more if that does not fit. The
    tiles below each other then read x once for each row that their windows reach, so those must be few.
    """
    least = math.ceil(problem.out_width * problem.dtype.itemsize / 1024)
    choices = (_geometry_in_pieces(problem, target, variant, across) for across in (least, least + 1))
    return next(choices) or (next(choices) if problem.span[0] <= 3 else None)


def _geometry_in_pieces(problem: Problem, target: Target, variant: KernelVariant, across: int) -> Geometry | None:
    """Return the best geometry with so many tiles side by side, None where none fits into shared memory."""
    size = problem.dtype.itemsize
    aim, sector = 1024 // size, 32 // size  # outputs of a channel
    columns = problem.out_width if across == 1 else _round_up(math.ceil(problem.out_width / across), sector)
    most = min(problem.out_height, aim // columns) if across == 1 else 1

    def pixels(rows: int) -> int:
        """Return the pixels of x that a tile of so many rows fetches."""
        return (rows + problem.span[0] - 1) * (columns + problem.span[1] - 1)

    def cost(geometry: Geometry) -> tuple[int, int]:
        """Return the elements that the tiles of a plane move; among equals the lower tile, with more blocks, wins.

        A copy costs about 64 bytes beside its own.
        """
        rows = geometry.tile_rows
        stored = 64 * (rows * columns + 64 // size)
        return math.ceil(problem.out_height / rows) * (stored + pixels(rows) * problem.in_channels), rows

    choices = [_geometry_of(problem, variant, rows, columns) for rows in range(1, most + 1) if pixels(rows) <= 3 * aim]
    return min((choice for choice in choices if choice.shared_bytes <= target.shared_limit), key=cost, default=None)


def _geometry_of(problem: Problem, variant: KernelVariant, rows: int, columns: int) -> Geometry:
    """Return the geometry for tiles of ``rows`` x ``columns`` outputs."""
    stages = 4 if variant.precision == "tf32" else 3
    buffers, unit, size = 2, 32, problem.dtype.itemsize
    sector, plane = 32 // size, problem.out_height * problem.out_width
    grain = math.gcd(
        sector,
        plane,
        0 if rows * columns == plane else rows * problem.out_width,
        columns if columns < problem.out_width else 0,
    )
    one_run = rows >= problem.out_height or columns < problem.out_width or problem.out_width < sector
    extra = 0 if one_run else sector - grain
    # 4 modulo 64 bytes, so that the channels of a store fall into different banks.
    run_pitch = _round_up(max(rows * columns + extra + sector - math.gcd(grain, 4) - 4, 48), 2 * sector) + 4

    down, right = (span - 1 for span in problem.span)
    in_pixels = (rows + down) * (columns + right) + (extra + right if extra else 0)
    tiles_in_flight = 2 if problem.dtype == torch.float32 and in_pixels <= 3 * 192 else 1

    pitch = columns + right
    body = _round_up(rows * pitch, 2 * unit)
    tail = 0 if body >= rows * pitch + extra else 8 if extra <= 8 else 16
    staged_pixels = body + tail + down * pitch + right
    ranges = 8 * 2 * tiles_in_flight * 6
    pieces = _pieces(problem, variant)
    planes = 2 if pieces == 3 and problem.in_channels <= 4 else pieces
    rest = 8 * (2 * stages + 2 * buffers) + 4 * stages + ranges + 4 * 2
    shared_bytes = _round_up(stages * planes * 16 * staged_pixels, 128) + _round_up(
        _round_up(size * buffers * 64 * run_pitch, 8) + rest, 128
    )
    units = body // (2 * unit)
    return Geometry(rows, columns, stages, grain, extra, run_pitch, tiles_in_flight, units, tail, shared_bytes)


def _turn(problem: Problem, target: Target, geometry: Geometry) -> int:
    """Return the nanoseconds from one burst of reads to the next, 0 for no bursts.

    In a turn every multiprocessor stores as many tiles as it loads in one burst.
    """
    burst = geometry.tiles_in_flight
    if burst == 1:
        return 0
    image = problem.in_channels * problem.height * problem.width + math.prod(problem.output_shape[1:])
    tiles = math.ceil(problem.out_height / geometry.tile_rows) * math.ceil(problem.out_width / geometry.tile_columns)
    tile = image * problem.dtype.itemsize / tiles / math.ceil(problem.out_channels / 64)
    return TURN_LATENCY + round(1e9 * burst * tile * target.multiprocessors / target.bandwidth)


def _round_up(number: int, unit: int) -> int:
    return math.ceil(number / unit) * unit
