"""Which kernel runs a problem, with which constants, launched how, and why."""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache
from typing import NamedTuple

import torch

from fusedref.problem import ELEMENTS, Problem


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a problem is run: which kernel (``kernels/<kernel>.cu``), why, with which constants, launched how."""

    kernel: str
    reason: str
    tile: tuple[int, int, int]  # (channels, rows, columns) of the outputs that a block works on at a time
    shared: int  # bytes of dynamic shared memory of a block
    predicted: dict[str, float] = dataclasses.field(hash=False)  # microseconds by resource, as ``predict`` has them
    macros: tuple[tuple[str, int], ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]

    @property
    def registers(self) -> int:
        """The most registers that a thread can have, as the launch bounds leave it."""
        resident = math.prod(self.block) * dict(self.macros).get("BLOCKS", 1)
        return min(255, 65536 // resident // 8 * 8)

    @property
    def limiter(self) -> str:
        """The resource that is needed longest."""
        return max(self.predicted, key=self.predicted.get)

    @property
    def channels_last(self) -> bool:
        """Whether x and y lie in memory with their channels last."""
        return dict(self.macros)["CHANNELS_LAST"] == 1

    def __str__(self) -> str:
        channels, rows, columns = self.tile
        first, *others = sorted(self.predicted, key=self.predicted.get, reverse=True)
        rest = ", ".join(f"{name} {self.predicted[name]:.1f}" for name in others)
        return "\n".join(
            [
                f"kernel         {self.kernel}: {self.reason}",
                f"tile           {channels} channels x {rows} rows x {columns} columns",
                f"launch         {math.prod(self.grid)} blocks of {math.prod(self.block)} threads",
                f"shared memory  {self.shared} bytes a block",
                f"registers      at most {self.registers} a thread",
                f"limiter        {first}, {self.predicted[first]:.1f} us at the least on an H200 ({rest})",
            ]
        )


EMULATED = "sm_90a", 132  # the emulator stands for an H200: its architecture and multiprocessors
SHARED_LIMIT = 227 * 1024  # bytes that a block can have on sm_90

# An H200's data sheet: bytes a second, and multiplications and additions a second (fp16 with fp32 sums, and fp32).
H200 = {"memory": 4.8e12, "tensor cores": 989e12, "CUDA cores": 67e12}
LAUNCH = 2.0  # microseconds that an empty kernel takes there


@lru_cache(maxsize=1024)
def plan(
    problem: Problem,
    architecture: str = EMULATED[0],
    multiprocessors: int = EMULATED[1],
    precision: str = "fp32",
    channels_last: bool = False,
    vectors: torch.dtype | None = None,
) -> Plan:
    """The plan for ``problem`` on a GPU of this architecture: the pipeline where it serves, else the general kernel.

    ``architecture`` is nvcc's name, such as ``"sm_90a"`` or ``"sm_80"``. ``precision="tf32"`` (for float32 alone)
    allows to round the factors of the products. ``channels_last`` is how x and y lie in memory; ``vectors`` is the
    dtype of bias, running_mean, running_var, gamma and beta: the problem's (None), or float32.

    Raises ValueError where one of these is something else.
    """
    check_precision(precision, problem.dtype)
    if vectors not in (None, problem.dtype, torch.float32):
        raise ValueError(f"vectors must be torch.float32 or the problem's {problem.dtype}, got {vectors}")
    how = How(precision, channels_last, vectors)
    unserved = unserved_by_pipeline(problem, architecture, how)
    return folded_plan(problem, how, unserved) if unserved else pipeline_plan(problem, multiprocessors, how)


class How(NamedTuple):
    """What a kernel depends on besides the problem: arguments of ``plan``, which says what they mean."""

    precision: str = "fp32"
    channels_last: bool = False
    vectors: torch.dtype | None = None


def check_precision(precision: object, dtype: torch.dtype) -> None:
    """Raises the ValueError that ``precision`` deserves for tensors of this dtype."""
    if precision not in ("fp32", "tf32"):
        raise ValueError(f"precision must be 'fp32' or 'tf32', got {precision!r}")
    if precision == "tf32" and dtype != torch.float32:
        raise ValueError(f"precision='tf32' is for float32 tensors, got {dtype}: their products are exact as they are")


def unserved_by_pipeline(problem: Problem, architecture: str, how: How = How()) -> str | None:
    """Why the pipeline is not the kernel for ``problem``, or None where it is."""
    if architecture != "sm_90a":
        return f"the pipeline multiplies with wgmma, which sm_90a has and {architecture} has not"
    if how.channels_last:
        return "the pipeline serves tensors in NCHW order"
    if problem.strides != (1, 1) or problem.groups != 1:
        return "the pipeline serves stride 1 and one group"
    if problem.in_channels > 8 or math.prod(problem.kernel) > 9:
        return "the pipeline's weights fit into registers up to 8 input channels and 9 taps"
    if problem.taps < 48 and pieces(problem, how) == 2:
        return "a float32 sum of fewer than 48 products has smaller errors than fp16 pieces"
    if problem.out_channels < 16 or problem.out_height * problem.out_width < 64:
        return "under 16 output channels, or 64 pixels of an image, would leave most of a tile empty"
    if _pipeline_tile(problem, how) is None:
        return "not even a row of pixels, with what its windows reach, fits into shared memory"
    if problem.batch * problem.out_height * problem.out_width >= 2**30:
        return "the pipeline counts tiles in 32 bits"
    return None


def pipeline_plan(problem: Problem, multiprocessors: int = EMULATED[1], how: How = How()) -> Plan:
    """The plan to run ``problem`` by pipeline.cu: persistent blocks, at best one per multiprocessor."""
    rows, columns = _pipeline_tile(problem, how)
    shared = _pipeline_shared(problem, how, rows, columns)
    tiles = problem.batch * math.ceil(problem.out_height / rows) * math.ceil(problem.out_width / columns)
    channel_blocks = math.ceil(problem.out_channels / 64)
    macros = _macros(problem, how) | {
        "PIECES": pieces(problem, how),
        "TILE_ROWS": rows,
        "TILE_COLUMNS": columns,
        "SHARED_BYTES": shared,
    }
    return Plan(
        kernel="pipeline",
        reason="the tensor cores compute it in float32 precision at the speed of memory",
        tile=(64, rows, columns),
        shared=shared,
        predicted=predict(problem, how, "tensor cores"),
        macros=tuple(macros.items()),
        grid=(max(1, min(tiles, multiprocessors // channel_blocks)), channel_blocks, 1),
        block=(512, 1, 1),
    )


def _pipeline_tile(problem: Problem, how: How) -> tuple[int, int] | None:
    """Rows and columns of a tile: about 1 KB of a channel, whole rows if they are no longer. None where nothing fits."""
    aim = 1024 // problem.dtype.itemsize
    across = math.ceil(problem.out_width / aim)
    columns = problem.out_width if across == 1 else 4 * math.ceil(problem.out_width / across / 4)
    most = min(problem.out_height, aim // columns) if across == 1 else 1
    choices = list(range(most, 0, -1))
    if problem.out_height * problem.out_width % 4 == 0:  # then runs that start at even places can be written in pairs
        choices.sort(key=lambda rows: rows * columns % 4 != 0 and rows < problem.out_height)
    for rows in choices:
        pixels = (rows + problem.span[0] - 1) * (columns + problem.span[1] - 1)
        if pixels <= 3 * aim and _pipeline_shared(problem, how, rows, columns) <= SHARED_LIMIT:
            return rows, columns
    return None


def _pipeline_shared(problem: Problem, how: How, rows: int, columns: int) -> int:
    """The size of pipeline.cu's struct Shared, which the compiler checks. Names are those of its constants."""
    stages, buffers, unit, size = 3, 2, 32, problem.dtype.itemsize
    sector, run, plane = 32 // size, rows * columns, problem.out_height * problem.out_width
    tiles_down, tiles_across = math.ceil(problem.out_height / rows), math.ceil(problem.out_width / columns)
    grain = math.gcd(sector, plane, *[rows * problem.out_width] * (tiles_down > 1), *[columns] * (tiles_across > 1))
    extra = 0 if tiles_down == 1 or tiles_across > 1 or problem.out_width < sector else sector - grain
    run_pitch = _round_up(run + extra + sector - math.gcd(grain, 4) - 4, 2 * sector) + 4
    down, right = (span - 1 for span in problem.span)
    pitch = columns + right
    body = _round_up(rows * pitch, 2 * unit)
    tail = 0 if body >= rows * pitch + extra else 8 if extra <= 8 else 16
    pixels = body + tail + down * pitch + right
    rest = 8 * (2 * stages + 2 * buffers) + 4 * stages + 4 * 4 * 6 + 4 * 2
    return _round_up(stages * pieces(problem, how) * 16 * pixels, 128) + _round_up(
        _round_up(size * buffers * 64 * run_pitch, 8) + rest, 128
    )


def _round_up(number: int, unit: int) -> int:
    return math.ceil(number / unit) * unit


def folded_plan(problem: Problem, how: How = How(), reason: str = "it serves every problem") -> Plan:
    """The plan to run ``problem`` by the general kernel, folded.cu."""
    (top, bottom), (left, right) = problem.pads
    if max(problem.height + top + bottom, problem.width + left + right) >= 2**31:
        raise ValueError(f"height and width with padding must be below 2**31, got {problem}")
    macros = _macros(problem, how) | {
        "GROUPS": problem.groups,
        "STRIDE_H": problem.strides[0],
        "STRIDE_W": problem.strides[1],
    }
    threads = 256
    runs, pixels = problem.batch * problem.out_channels, problem.out_height * problem.out_width
    if how.channels_last:
        runs, pixels = problem.batch, pixels * problem.out_channels
    units = runs * math.ceil(pixels / threads)
    return Plan(
        kernel="folded",
        reason=reason,
        tile=(threads, 1, 1) if how.channels_last else (1, 1, threads),
        shared=0,
        predicted=predict(problem, how, "CUDA cores"),
        macros=tuple(macros.items()),
        grid=(min(units, 2**31 - 1), 1, 1),
        block=(threads, 1, 1),
    )


def predict(problem: Problem, how: How, unit: str) -> dict[str, float]:
    """Microseconds that an H200 needs at the least, by resource; a kernel takes the longest of them, at best.

    "memory" moves ``problem.least_bytes``. ``unit``, "tensor cores" or "CUDA cores", multiplies and adds; on tensor
    cores once for each pair of ``pieces`` but that of the two low ones, with input channels rounded up to 8. "launch" is
    there whatever the size.
    """
    flops = problem.flops
    if unit == "tensor cores":
        group = problem.in_channels // problem.groups
        flops *= math.ceil(group / 8) * 8 / group * (1 if pieces(problem, how) == 1 else 3)
    return {"memory": 1e6 * problem.least_bytes / H200["memory"], unit: 1e6 * flops / H200[unit], "launch": LAUNCH}


def pieces(problem: Problem, how: How) -> int:
    """How many numbers a tensor core gets for one of x or weight: a float32 is split, unless it may be rounded."""
    return 2 if problem.dtype == torch.float32 and how.precision == "fp32" else 1


def _macros(problem: Problem, how: How) -> dict[str, int]:
    """The constants that every kernel is compiled with."""
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
        "ELEMENT": ELEMENTS.index(problem.dtype),
        "VECTOR": ELEMENTS.index(how.vectors or problem.dtype),
        "CHANNELS_LAST": int(how.channels_last),
    }
