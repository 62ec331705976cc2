"""Which kernel runs a problem, with which constants, launched how, and why."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
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
                f"tile           {channels} x {rows} x {columns} (channels x rows x columns of y)",
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
STEADY = 3.96e12  # bytes a second that the pipeline's turns allow for: what was best on one
LAUNCH = 2.3  # microseconds that an empty kernel took on one, less what the events around it took


@lru_cache(maxsize=1024)
def plan(
    problem: Problem,
    architecture: str = EMULATED[0],
    multiprocessors: int = EMULATED[1],
    precision: str = "fp32",
    channels_last: bool = False,
    vectors: torch.dtype | None = None,
) -> Plan:
    """The plan for ``problem`` on a GPU of this architecture: by the first kernel of pipeline, implicit_gemm and folded
    that serves it. ``reason`` says what speaks for it, or against those before it.

    ``architecture`` is nvcc's name, such as ``"sm_90a"`` or ``"sm_80"``. ``precision="tf32"`` (for float32 alone)
    allows to round the factors of the products. ``channels_last`` is how x and y lie in memory; ``vectors`` is the
    dtype of bias, running_mean, running_var, gamma and beta: the problem's (None), or float32.

    Raises ValueError where one of these is something else.
    """
    check_precision(precision, problem.dtype)
    if vectors not in (None, problem.dtype, torch.float32):
        raise ValueError(f"vectors must be torch.float32 or the problem's {problem.dtype}, got {vectors}")
    how = How(precision, channels_last, vectors)
    not_pipeline = unserved_by_pipeline(problem, architecture, how)
    if not_pipeline is None:
        return pipeline_plan(problem, multiprocessors, how)
    not_gemm = unserved_by_implicit_gemm(problem, architecture, how)
    if not_gemm is None:
        tile = min(gemm_tiles(problem, architecture, multiprocessors, how), key=lambda tile: tile.cycles)
        return implicit_gemm_plan(problem, tile, how, not_pipeline)
    return folded_plan(problem, how, f"{not_pipeline}; {not_gemm}")


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
        "TURN": _pipeline_turn(problem, multiprocessors, rows, columns),
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
    """Rows and columns of the tiles that move the fewest bytes. None where nothing fits into shared memory."""
    size = problem.dtype.itemsize
    aim = 1024 // size  # outputs of a channel; whole rows if they are no longer
    across = math.ceil(problem.out_width / aim)
    columns = problem.out_width if across == 1 else 4 * math.ceil(problem.out_width / across / 4)
    most = min(problem.out_height, aim // columns) if across == 1 else 1

    def pixels(rows: int) -> int:
        """Of the input, that a tile of so many rows fetches."""
        return (rows + problem.span[0] - 1) * (columns + problem.span[1] - 1)

    def cost(rows: int) -> tuple[int, int]:
        """Elements of a plane; a copy costs about 64 bytes beside its own. Of equals the lower tile, of more blocks."""
        stored = 64 * (rows * columns + 64 // size)
        return math.ceil(problem.out_height / rows) * (stored + pixels(rows) * problem.in_channels), rows

    choices = [
        rows
        for rows in range(1, most + 1)
        if pixels(rows) <= 3 * aim and _pipeline_shared(problem, how, rows, columns) <= SHARED_LIMIT
    ]
    return (min(choices, key=cost), columns) if choices else None


def _pipeline_turn(problem: Problem, multiprocessors: int, rows: int, columns: int) -> int:
    """Nanoseconds in which every multiprocessor stores as many tiles as it loads in one burst. 0: no bursts."""
    burst = _pipeline_under_way(problem, rows, columns)
    if burst == 1:
        return 0
    image = problem.in_channels * problem.height * problem.width + math.prod(problem.output_shape[1:])
    tiles = math.ceil(problem.out_height / rows) * math.ceil(problem.out_width / columns)
    tile = image * problem.dtype.itemsize / tiles / math.ceil(problem.out_channels / 64)
    return round(1e9 * burst * tile * multiprocessors / STEADY)


def _pipeline_under_way(problem: Problem, rows: int, columns: int) -> int:
    """Tiles that a thread of pipeline.cu loads at a time: its UNDER_WAY."""
    extra = _pipeline_extra(problem, rows, columns)
    down, right = (span - 1 for span in problem.span)
    pixels = (rows + down) * (columns + right) + (extra + right if extra else 0)
    return 2 if problem.dtype == torch.float32 and pixels <= 3 * 192 else 1


def _pipeline_grain(problem: Problem, rows: int, columns: int) -> int:
    """The largest power of two, up to a sector, that divides where every run starts: pipeline.cu's GRAIN."""
    plane = problem.out_height * problem.out_width
    down = 0 if rows * columns == plane else rows * problem.out_width
    across = columns if columns < problem.out_width else 0
    return math.gcd(32 // problem.dtype.itemsize, plane, down, across)


def _pipeline_extra(problem: Problem, rows: int, columns: int) -> int:
    """Outputs of the next tile that a tile works out too: pipeline.cu's EXTRA."""
    sector = 32 // problem.dtype.itemsize
    if rows >= problem.out_height or columns < problem.out_width or problem.out_width < sector:
        return 0
    return sector - _pipeline_grain(problem, rows, columns)


def _pipeline_shared(problem: Problem, how: How, rows: int, columns: int) -> int:
    """The size of pipeline.cu's struct Shared, which the compiler checks. Names are those of its constants."""
    stages = 4 if how.precision == "tf32" else 3
    buffers, unit, size = 2, 32, problem.dtype.itemsize
    sector, run = 32 // size, rows * columns
    grain, extra = _pipeline_grain(problem, rows, columns), _pipeline_extra(problem, rows, columns)
    run_pitch = _round_up(max(run + extra + sector - math.gcd(grain, 4) - 4, 48), 2 * sector) + 4
    down, right = (span - 1 for span in problem.span)
    pitch = columns + right
    body = _round_up(rows * pitch, 2 * unit)
    tail = 0 if body >= rows * pitch + extra else 8 if extra <= 8 else 16
    pixels = body + tail + down * pitch + right
    ranges = 8 * 2 * _pipeline_under_way(problem, rows, columns) * 6
    rest = 8 * (2 * stages + 2 * buffers) + 4 * stages + ranges + 4 * 2
    return _round_up(stages * pieces(problem, how) * 16 * pixels, 128) + _round_up(
        _round_up(size * buffers * 64 * run_pitch, 8) + rest, 128
    )


def _round_up(number: int, unit: int) -> int:
    return math.ceil(number / unit) * unit


SHARED_LIMITS = {80: 163, 86: 99, 87: 163, 89: 99, 120: 99, 121: 99}  # KB that a block can have; elsewhere 227


def unserved_by_implicit_gemm(problem: Problem, architecture: str, how: How = How()) -> str | None:
    """Why implicit_gemm is not the kernel for ``problem``, or None where it is."""
    if _number(architecture) < 80:
        return f"implicit_gemm multiplies 16 x 16 by 16 x 8 numbers at a time, which {architecture} cannot"
    if problem.out_channels // problem.groups < 8:
        return "under 8 output channels would leave most of a product's 16 empty"
    if problem.taps < 36 and pieces(problem, how) == 2:
        return "a float32 sum of fewer than 36 products has smaller errors than fp16 pieces"
    if max(problem.in_channels * problem.height * problem.width, math.prod(problem.output_shape[1:])) >= 2**31 - 2**16:
        return "implicit_gemm counts the elements of an image in 32 bits"
    if problem.batch * problem.out_height * problem.out_width >= 2**30:
        return "implicit_gemm counts tiles in 32 bits"
    if next(gemm_tiles(problem, architecture, 1, how), None) is None:
        return "not even a small tile, with what its windows reach, fits into shared memory"
    return None


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
        """Output channels of a block."""
        return self.warp_channels * self.down


def implicit_gemm_plan(
    problem: Problem, chosen: GemmTile, how: How = How(), reason: str = "it serves every shape on tensor cores"
) -> Plan:
    """The plan to run ``problem`` by implicit_gemm.cu with one of its ``gemm_tiles``."""
    problem = _in_one_row(problem)
    sizes = {
        "TILE_ROWS": chosen.rows,
        "TILE_COLUMNS": chosen.columns,
        "CHUNK": chosen.chunk,
        "SLOTS": chosen.slots,
        "WARP_CHANNELS": chosen.warp_channels,
        "WARPS_DOWN": chosen.down,
        "WARPS_ACROSS": chosen.across,
        "BLOCKS": chosen.blocks,
        "SHARED_BYTES": chosen.shared,
        "PIECES": pieces(problem, how),
    }
    return Plan(
        kernel="implicit_gemm",
        reason=reason,
        tile=(chosen.channels, chosen.rows, chosen.columns),
        shared=chosen.shared,
        predicted=predict(problem, how, "tensor cores"),
        macros=tuple((_macros(problem, how) | _strides_and_groups(problem) | sizes).items()),
        grid=chosen.grid,
        block=(32 * chosen.down * chosen.across, 1, 1),
    )


def _in_one_row(problem: Problem) -> Problem:
    """The same problem with each plane as one row, where windows are single pixels: tiles then divide it evenly."""
    if problem.kernel != (1, 1) or problem.strides != (1, 1) or problem.pads != ((0, 0), (0, 0)):
        return problem
    return dataclasses.replace(problem, height=1, width=problem.height * problem.width, padding=0)


def gemm_tiles(
    problem: Problem, architecture: str = EMULATED[0], multiprocessors: int = EMULATED[1], how: How = How()
) -> Iterator[GemmTile]:
    """The tiles worth considering for implicit_gemm.cu that fit into shared memory; ``plan`` takes the cheapest."""
    problem = _in_one_row(problem)
    in_channels, out_channels = problem.in_channels // problem.groups, problem.out_channels // problem.groups
    limit = 1024 * SHARED_LIMITS.get(_number(architecture), 227)
    chunks = [8, 16, 32, 64] if in_channels >= 8 else [in_channels]
    for warp_channels, down, across in itertools.product((16, 32), (1, 2, 4), (1, 2, 4, 8)):
        channels, warps = warp_channels * down, down * across
        if warps not in (4, 8, 16) or (channels >= 2 * out_channels and channels > 16):
            continue
        blocks_of_channels = problem.groups * math.ceil(out_channels / channels)
        fewest = math.ceil(problem.out_width / (32 * across))
        for columns in sorted({math.ceil(problem.out_width / n) for n in range(fewest, fewest + 12)}):
            rows = min(problem.out_height, 32 * across // columns)
            rows = math.ceil(problem.out_height / math.ceil(problem.out_height / rows))
            tiles = problem.batch * math.ceil(problem.out_height / rows) * math.ceil(problem.out_width / columns)
            for chunk, resident in itertools.product(chunks, (False, True)):
                count = math.ceil(in_channels / chunk)
                if chunk >= 2 * in_channels > 8 or (resident and count == 1):
                    continue
                slots = count if resident else 1
                tile = GemmTile(rows, columns, chunk, slots, warp_channels, down, across)
                shared = _gemm_shared(problem, how, tile)
                registers = 80 if warp_channels == 16 else 128 if _number(architecture) < 120 else 160
                blocks = min((limit + 1024) // (shared + 1024), 65536 // (registers * 32 * warps), 48 // warps)
                if blocks == 0:
                    continue
                tile = tile._replace(blocks=blocks, shared=shared)
                yield _gemm_launch(problem, how, tile, tiles, blocks_of_channels, multiprocessors)


def _gemm_entries(problem: Problem, how: How, chunk: int) -> int:
    """implicit_gemm.cu's ENTRIES: steps of 8 products for an output and a chunk of input channels."""
    fold = min(8 // min(chunk, 8), problem.kernel[1])
    while problem.dtype != torch.float32 and problem.kernel[1] % fold:
        fold -= 1
    return math.ceil(chunk / 8) * problem.kernel[0] * math.ceil(problem.kernel[1] / fold)


def _gemm_input(problem: Problem, tile: GemmTile) -> tuple[int, int]:
    """Rows and columns of x that the outputs of a tile see."""
    outputs = tile.rows, tile.columns
    return tuple((n - 1) * stride + span for n, stride, span in zip(outputs, problem.strides, problem.span))


def _gemm_units(problem: Problem, how: How, tile: GemmTile) -> tuple[int, int]:
    """Elements of weights, and of x, that implicit_gemm.cu copies at once: up to 16 bytes of whatever they divide."""
    in_channels, size = problem.in_channels // problem.groups, problem.dtype.itemsize
    taps = math.prod(problem.kernel)
    if how.channels_last:
        x_lengths = problem.in_channels, in_channels, tile.chunk
    else:
        x_lengths = problem.width, tile.columns * problem.strides[1] if problem.out_width > tile.columns else 0
    return math.gcd(16 // size, in_channels * taps, tile.chunk * taps), math.gcd(16 // size, *x_lengths)


def _gemm_shared(problem: Problem, how: How, tile: GemmTile) -> int:
    """The size of implicit_gemm.cu's struct Shared, which the compiler checks."""
    (rows, columns), size = _gemm_input(problem, tile), problem.dtype.itemsize
    entries, count = _gemm_entries(problem, how, tile.chunk), pieces(problem, how)
    taps = math.prod(problem.kernel)
    weight_unit, x_unit = _gemm_units(problem, how, tile)

    def odd_units(elements: int, unit: int) -> int:
        """``elements``, rounded up to an odd number of units, so that rows begin in different banks."""
        least = max(unit, 4 // size)
        return (math.ceil(elements / least) | 1) * least

    raw_weights = tile.channels * odd_units(tile.chunk * taps, weight_unit)
    if how.channels_last:
        raw_x = rows * columns * odd_units(tile.chunk, x_unit)
    else:
        raw_x = tile.chunk * rows * _round_up(-problem.pads[1][0] % x_unit + columns, x_unit)
    stride = problem.strides[1]
    least = stride * math.ceil(columns / stride)
    pitch = next((p for p in range(least, least + 8) if (problem.strides[0] * p - tile.columns) % 8 == 0), least)
    filters = 16 * tile.slots * entries * count * tile.channels
    staged = 16 * count * math.ceil(tile.chunk / 8) * rows * pitch
    warps = tile.down * tile.across
    runs = 4 * warps * 8 * (tile.warp_channels + 4 if how.channels_last else 40)
    rest = 12 * tile.channels + 4 * (tile.slots * tile.channels + 1) + 8 * (tile.channels + warps) + 4 * entries
    return sum(_round_up(part, 16) for part in (filters + staged + runs + rest, size * raw_weights, size * raw_x))


def _gemm_launch(
    problem: Problem, how: How, tile: GemmTile, tiles: int, blocks_of_channels: int, multiprocessors: int
) -> GemmTile:
    """The tile with its grid, and about how many cycles the launch takes."""
    in_channels = problem.in_channels // problem.groups
    count, warps = math.ceil(in_channels / tile.chunk), tile.down * tile.across
    steps, numbers = _gemm_entries(problem, how, tile.chunk) / 2, pieces(problem, how)
    rows, columns = _gemm_input(problem, tile)
    tensor = warps * (tile.warp_channels / 4) * steps * (3 if numbers == 2 else 1) * 1.5
    shared = warps * steps * (tile.warp_channels * 32 + 1024) * numbers / 128
    weight_unit, x_unit = _gemm_units(problem, how, tile)
    # Instructions of 32 lanes, 4 a cycle; and copies, of which a short one takes as long as a long one.
    x = tile.chunk * rows * columns * (16 / 128 + 0.65 / x_unit)
    weights = tile.channels * tile.chunk * math.prod(problem.kernel) * (16 / 128 + 0.65 / weight_unit)
    seats = multiprocessors * tile.blocks
    if tile.slots == count:  # blocks that stay, and keep their weights
        down = max(1, min(tiles, seats // blocks_of_channels))
    else:
        down = max(1, min(tiles, 65535))
    together = min(tile.blocks, math.ceil(down * blocks_of_channels / multiprocessors))
    # Of what a block waits for, the others of its multiprocessor hide a part.
    step = 1.5 * max(tensor, shared) + x + 3000 / together
    store = tile.channels * tile.rows * tile.columns * (0.06 + 1 / min(tile.columns, 32))
    if tile.slots == count:
        each = math.ceil(tiles / down) * (count * step + store) + count * weights
    else:
        each = count * (step + weights) + store
    waves = down * blocks_of_channels / seats
    waves = math.ceil(waves) if waves < 4 else waves + 0.5  # many even out
    return tile._replace(grid=(blocks_of_channels, down, 1), cycles=waves * together * each + 3000)


def folded_plan(problem: Problem, how: How = How(), reason: str = "it serves every problem") -> Plan:
    """The plan to run ``problem`` by the general kernel, folded.cu."""
    (top, bottom), (left, right) = problem.pads
    if max(problem.height + top + bottom, problem.width + left + right) >= 2**31:
        raise ValueError(f"height and width with padding must be below 2**31, got {problem}")
    macros = _macros(problem, how) | _strides_and_groups(problem)
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
    cores once for each pair of ``pieces`` but that of the two low ones, with input channels rounded up to 8. "launch"
    is there whatever the size.
    """
    flops = problem.flops
    if unit == "tensor cores":
        group = problem.in_channels // problem.groups
        flops *= math.ceil(group / 8) * 8 / group * (1 if pieces(problem, how) == 1 else 3)
    return {"memory": 1e6 * problem.least_bytes / H200["memory"], unit: 1e6 * flops / H200[unit], "launch": LAUNCH}


def pieces(problem: Problem, how: How) -> int:
    """How many numbers a tensor core gets for one of x or weight: a float32 is split, unless it may be rounded."""
    return 2 if problem.dtype == torch.float32 and how.precision == "fp32" else 1


def _number(architecture: str) -> int:
    """80 of ``"sm_80"``, 90 of ``"sm_90a"``."""
    return int("".join(filter(str.isdigit, architecture)))


def _strides_and_groups(problem: Problem) -> dict[str, int]:
    """What kernels need to know that serve more than stride 1 and one group."""
    return {"GROUPS": problem.groups, "STRIDE_H": problem.strides[0], "STRIDE_W": problem.strides[1]}


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
