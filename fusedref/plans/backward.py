"""Plans for prepare_backward.cu and backward.cu: the one pass over dy of the gradients, on tensor cores of sm_90a."""

from __future__ import annotations

import math
from typing import NamedTuple

from fusedref.csrc import TRAINING
from fusedref.plans.base import Argument, Launch
from fusedref.plans.variant import KernelVariant, common_macros
from fusedref.problem import Problem
from fusedref.target import EMULATED, Target

CHANNELS = 64  # output channels of a block
LOADERS = 4  # loading warps, of 16 channels each
PIXELS = 128  # loading threads: columns of a row that they can load
STAGES = 2  # rows of dy that the tensor cores can read

PREPARE_SIGNATURE = (
    *[Argument(name, "in") for name in ("weight", "var", "gamma")],
    Argument("scaling_factor", "float32"),
    Argument("eps", "float32"),
    Argument("filters", "out"),
)
BACKWARD_SIGNATURE = (
    *[Argument(name, "in") for name in ("dy", "x", "moments", "filters")],
    Argument("parts", "out"),
    Argument("dx", "out"),
    Argument("batch", "int64"),
)


class Geometry(NamedTuple):
    """Sizes that backward.cu is compiled with, as the macros of the same names in upper case."""

    strips: int  # of an image, side by side
    strip_columns: int  # columns of dy in a strip
    t_tiles: int  # tiles of 16 columns of T that a strip computes
    chunk_bytes: int  # bytes that one copy of dy moves
    raw_rows: int  # rows of dy in shared memory as they come
    shared_bytes: int  # of struct Shared


def unserved_by_backward(problem: Problem, target: Target, variant: KernelVariant = KernelVariant()) -> str | None:
    """Return why backward.cu does not compute the gradients of ``problem``, None where it does."""
    if target.architecture != "sm_90a":
        return f"the backward pass is written for sm_90a, not {target.architecture}"
    if variant.channels_last:
        return "the backward pass serves tensors in NCHW order"
    if problem.strides != (1, 1) or problem.dilations != (1, 1) or problem.groups != 1:
        return "the backward pass serves stride 1, dilation 1 and one group"
    if problem.in_channels > 8 or problem.out_channels > CHANNELS:
        return f"the backward pass serves up to 8 input channels and {CHANNELS} output channels"
    if max(problem.kernel) > 3:
        return "the backward pass serves kernels up to 3 x 3"
    if any(max(pads) >= side for pads, side in zip(problem.pads, problem.kernel, strict=True)):
        return "the backward pass serves padding below the kernel's size"
    if problem.batch * problem.out_height * math.ceil(problem.out_width / 16) >= 2**31:
        return "the backward pass counts rows in 32 bits"
    return None


def filters_size(problem: Problem) -> int:
    """Return the float32 numbers that ``prepare_backward`` writes for ``backward``."""
    return math.prod(problem.kernel) * 4 * 32 * 4 + CHANNELS + 1


def parts_shape(problem: Problem, target: Target = EMULATED) -> tuple[int, int, int]:
    """Return the shape of the parts of A' and q: [blocks, 64, columns + 8]; column ``columns`` is q."""
    return _blocks(problem, target), CHANNELS, math.prod(problem.kernel) * 8 + 8


def prepare_backward_launch(problem: Problem, variant: KernelVariant = KernelVariant()) -> Launch:
    """Return the launch that scales and splits the filters of the input's gradient."""
    return Launch(
        source=TRAINING / "prepare_backward.cu",
        symbol="prepare_backward",
        signature=PREPARE_SIGNATURE,
        macros=tuple(common_macros(problem, variant).items()),
        grid=(1, 1, 1),
        block=(512, 1, 1),
    )


def backward_launch(
    problem: Problem,
    target: Target = EMULATED,
    variant: KernelVariant = KernelVariant(),
    *,
    with_a: bool = True,
    with_t: bool = True,
) -> Launch:
    """Return the launch of the pass over dy: parts of A' and q if ``with_a``, T if ``with_t``."""
    geometry = _geometry(problem, variant, with_t)
    macros = common_macros(problem, variant) | {
        "PIECES": variant.pieces(problem.dtype),
        "WITH_A": int(with_a),
        "WITH_T": int(with_t),
        **{name.upper(): size for name, size in geometry._asdict().items()},
    }
    return Launch(
        source=TRAINING / "backward.cu",
        symbol="backward",
        signature=BACKWARD_SIGNATURE,
        macros=tuple(macros.items()),
        grid=(_blocks(problem, target), 1, 1),
        block=(32 * LOADERS * (1 + with_a + with_t), 1, 1),
        shared=geometry.shared_bytes,
    )


def _geometry(problem: Problem, variant: KernelVariant, with_t: bool) -> Geometry:
    (_, _), (left, _) = problem.pads
    height, width = problem.kernel
    halo, size, pieces = width - 1, problem.dtype.itemsize, variant.pieces(problem.dtype)
    if problem.out_width + halo <= PIXELS:
        strips, columns, first_of_t = 1, problem.out_width, left
        tiles = math.ceil(problem.width / 16)
        loaded, aligned = columns, problem.out_width * size
    else:
        most = (PIXELS - halo) // 16 * 16
        strips = math.ceil(problem.out_width / most)
        columns, first_of_t = _round_up(math.ceil(problem.out_width / strips), 16), 0
        tiles = math.ceil((columns + halo) / 16)
        loaded = columns + halo
        aligned = math.gcd(problem.out_width * size, halo * size)
    chunk = math.gcd(16, aligned, loaded * size)
    steps = math.ceil(columns / 16) * 16
    tiles_of_warp = math.ceil(tiles / 2)
    staged = halo + max(steps, first_of_t + tiles_of_warp * 32 if with_t else 0)
    raw_row = size * CHANNELS * _round_up(loaded, 32)
    sums = 2 * 2 * height * width * 32 * 16
    dy = STAGES * pieces * staged * 128
    x = (height - 1 + STAGES) * pieces * (steps + halo) * 16
    partial = 4 * 2 * 2 * (tiles_of_warp if with_t else 1) * 32 * 4
    rest = 8 * 2 * STAGES + 4 * 16 + 4 * 2 * LOADERS + 4 * STAGES

    def total(rows: int) -> int:
        return _round_up(_round_up(max(rows * raw_row, sums), 128) + dy + x + partial + rest, 128)

    raw_rows = next((rows for rows in (4, 3) if total(rows) <= 227 * 1024), 2)
    return Geometry(strips, columns, tiles, chunk, raw_rows, total(raw_rows))


def _blocks(problem: Problem, target: Target) -> int:
    """Return the blocks: at most one per multiprocessor, and no fewer than four rows for each."""
    strips = _geometry(problem, KernelVariant(), with_t=True).strips
    return max(1, min(target.multiprocessors, problem.batch * strips * problem.out_height // 4))


def _round_up(number: int, unit: int) -> int:
    return math.ceil(number / unit) * unit
