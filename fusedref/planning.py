"""Which kernel runs a problem, with which constants, launched how, and why."""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache

from fusedref.problem import Problem


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a problem is run: which kernel (``kernels/<kernel>.cu``), why, with which constants, launched how."""

    kernel: str
    reason: str
    tile: tuple[int, int, int]  # (channels, rows, columns) of the outputs that a block works on at a time
    shared: int  # bytes of dynamic shared memory of a block
    macros: tuple[tuple[str, int], ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]


EMULATED = "sm_90a", 132  # the emulator stands for an H200: its architecture and multiprocessors
SHARED_LIMIT = 227 * 1024  # bytes that a block can have on sm_90


@lru_cache(maxsize=1024)
def plan(problem: Problem, architecture: str = EMULATED[0], multiprocessors: int = EMULATED[1]) -> Plan:
    """The plan for ``problem`` on a GPU of this architecture: the pipeline where it serves, else the general kernel.

    ``architecture`` is nvcc's name, such as ``"sm_90a"`` or ``"sm_80"``.
    """
    unserved = unserved_by_pipeline(problem, architecture)
    return folded_plan(problem, unserved) if unserved else pipeline_plan(problem, multiprocessors)


def unserved_by_pipeline(problem: Problem, architecture: str) -> str | None:
    """Why the pipeline is not the kernel for ``problem``, or None where it is."""
    if architecture != "sm_90a":
        return f"the pipeline multiplies with wgmma, which sm_90a has and {architecture} has not"
    if problem.strides != (1, 1) or problem.groups != 1:
        return "the pipeline serves stride 1 and one group"
    if problem.in_channels > 8 or math.prod(problem.kernel) > 9:
        return "the pipeline's weights fit into registers up to 8 input channels and 9 taps"
    if problem.taps < 48:
        return "a float32 sum of fewer than 48 products has smaller errors than fp16 pieces"
    if problem.out_channels < 16 or problem.out_height * problem.out_width < 64:
        return "under 16 output channels, or 64 pixels of an image, would leave most of a tile empty"
    if _pipeline_tile(problem) is None:
        return "not even a row of pixels, with what its windows reach, fits into shared memory"
    if problem.batch * problem.out_height * problem.out_width >= 2**30:
        return "the pipeline counts tiles in 32 bits"
    return None


def pipeline_plan(problem: Problem, multiprocessors: int = EMULATED[1]) -> Plan:
    """The plan to run ``problem`` by pipeline.cu: persistent blocks, at best one per multiprocessor."""
    rows, columns = _pipeline_tile(problem)
    shared = _pipeline_shared(problem, rows, columns)
    tiles = problem.batch * math.ceil(problem.out_height / rows) * math.ceil(problem.out_width / columns)
    channel_blocks = math.ceil(problem.out_channels / 64)
    macros = _macros(problem) | {"TILE_ROWS": rows, "TILE_COLUMNS": columns, "SHARED_BYTES": shared}
    return Plan(
        kernel="pipeline",
        reason="the tensor cores compute it in float32 precision at the speed of memory",
        tile=(64, rows, columns),
        shared=shared,
        macros=tuple(macros.items()),
        grid=(max(1, min(tiles, multiprocessors // channel_blocks)), channel_blocks, 1),
        block=(512, 1, 1),
    )


def _pipeline_tile(problem: Problem) -> tuple[int, int] | None:
    """Rows and columns of a tile: about 256 outputs, whole rows if they are no longer. None where nothing fits."""
    across = math.ceil(problem.out_width / 256)
    columns = problem.out_width if across == 1 else 4 * math.ceil(problem.out_width / across / 4)
    most = min(problem.out_height, 256 // columns) if across == 1 else 1
    choices = list(range(most, 0, -1))
    if problem.out_height * problem.out_width % 4 == 0:  # then a run of a multiple of 16 bytes can be copied in bulk
        choices.sort(key=lambda rows: rows * columns % 4 != 0 and rows < problem.out_height)
    for rows in choices:
        pixels = (rows + problem.span[0] - 1) * (columns + problem.span[1] - 1)
        if pixels <= 768 and _pipeline_shared(problem, rows, columns) <= SHARED_LIMIT:  # 768: four a loading thread
            return rows, columns
    return None


def _pipeline_shared(problem: Problem, rows: int, columns: int) -> int:
    """The size of pipeline.cu's struct Shared, which the compiler checks."""
    stages, buffers, unit = 3, 2, 32
    down, right = (span - 1 for span in problem.span)
    pitch = columns + right
    pixels = 2 * unit * math.ceil(rows * pitch / (2 * unit)) + down * pitch + right
    floats = 64 * (math.ceil(rows * columns / 16) * 16 + 4)
    rest = 8 * (2 * stages + 2 * buffers) + 4 * stages + 4 * 4 * 6 + 4
    return 128 * (math.ceil(stages * 32 * pixels / 128) + math.ceil((buffers * 4 * floats + rest) / 128))


def folded_plan(problem: Problem, reason: str = "it serves every problem in float32") -> Plan:
    """The plan to run ``problem`` by the general kernel, folded.cu."""
    (top, bottom), (left, right) = problem.pads
    if max(problem.height + top + bottom, problem.width + left + right) >= 2**31:
        raise ValueError(f"height and width with padding must be below 2**31, got {problem}")
    macros = _macros(problem) | {
        "GROUPS": problem.groups,
        "STRIDE_H": problem.strides[0],
        "STRIDE_W": problem.strides[1],
    }
    threads = 256
    units = problem.batch * problem.out_channels * math.ceil(problem.out_height * problem.out_width / threads)
    return Plan(
        kernel="folded",
        reason=reason,
        tile=(1, 1, threads),
        shared=0,
        macros=tuple(macros.items()),
        grid=(min(units, 2**31 - 1), 1, 1),
        block=(threads, 1, 1),
    )


def _macros(problem: Problem) -> dict[str, int]:
    """The constants that both kernels are compiled with."""
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
    }
