"""Plans for backward.cu: the one pass over dy of the gradients, on tensor cores of sm_90a."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from fusedref.csrc import TRAINING
from fusedref.plans.base import Argument, Launch
from fusedref.plans.variant import KernelVariant, common_macros
from fusedref.problem import Problem
from fusedref.target import EMULATED, Target

CHANNELS = 64  # output channels of a block
LOADERS = 4  # loading warps, of 16 channels each
PIXELS = 128  # loading threads: columns of a row that they can load
STAGES = 2  # rows of dy that the tensor cores can read

SIGNATURE = (
    *[Argument(name, "in") for name in ("dy", "x", "moments", "weight", "var", "gamma")],
    Argument("scaling_factor", "float32"),
    Argument("eps", "float32"),
    Argument("parts", "out"),
    Argument("dx", "out"),
    Argument("batch", "int64"),
)


class Geometry(NamedTuple):
    """Sizes that backward.cu is compiled with, as the macros of the same names in upper case."""

    strips: int  # of an image, side by side
    strip_columns: int  # columns of dy in a strip
    t_blocks: int  # blocks of 64 columns of T that a strip computes
    raw_rows: int  # rows of dy in shared memory as loaded, not yet split
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


def parts_shape(problem: Problem, target: Target = EMULATED) -> tuple[int, int, int]:
    """Return the shape of the parts of A' and q: [blocks, 64, columns + 8]; column ``columns`` is q."""
    return _blocks(problem, target), CHANNELS, math.prod(problem.kernel) * 8 + 8


def backward_launch(
    problem: Problem,
    target: Target = EMULATED,
    variant: KernelVariant = KernelVariant(),
    *,
    with_a: bool = True,
    with_t: bool = True,
) -> Launch:
    """Return the launch of the pass over dy: parts of A' and q if ``with_a``, T if ``with_t``."""
    geometry = _geometry(problem, variant, with_a, with_t)
    macros = common_macros(problem, variant if with_t else variant._replace(vectors=None)) | {  # A' takes no vectors
        "PIECES": variant.pieces(problem.dtype),
        "WITH_A": int(with_a),
        "WITH_T": int(with_t),
        **{name.upper(): size for name, size in geometry._asdict().items()},
    }
    return Launch(
        source=TRAINING / "backward.cu",
        symbol="backward",
        signature=SIGNATURE,
        macros=tuple(macros.items()),
        grid=(_blocks(problem, target), 1, 1),
        block=(128 * (1 + with_a + with_t), 1, 1),
        shared=geometry.shared_bytes,
    )


def _geometry(problem: Problem, variant: KernelVariant, with_a: bool, with_t: bool) -> Geometry:
    """Return the geometry whose strips cost the least, among columns of all multiples of 16."""
    halo = problem.kernel[1] - 1
    if problem.out_width + halo <= PIXELS:
        return _geometry_of(problem, variant, with_a, with_t, 1, problem.out_width)
    choices = [(math.ceil(problem.out_width / columns), columns) for columns in range(16, PIXELS - halo + 1, 16)]

    def cost(choice: tuple[int, int]) -> int:
        """Return the columns that the warps of each kind compute: those of T, those of A' and those that are loaded."""
        strips, columns = choice
        return strips * (64 * _t_blocks(problem, *choice) + columns + _round_up(columns + halo, 32))

    return _geometry_of(problem, variant, with_a, with_t, *min(choices, key=cost))


def _t_blocks(problem: Problem, strips: int, columns: int) -> int:
    """Return the blocks of 64 columns of dy that reach the columns of T of every strip, the last up to the border."""
    (_, _), (pad_left, _) = problem.pads
    before = pad_left if strips == 1 else problem.kernel[1] - 1  # columns of dy that reach columns before the strip's
    return math.ceil((before + max(columns if strips > 1 else 0, problem.width - (strips - 1) * columns)) / 64)


def _geometry_of(
    problem: Problem, variant: KernelVariant, with_a: bool, with_t: bool, strips: int, columns: int
) -> Geometry:
    """Return the geometry for ``strips`` strips of ``columns`` columns."""
    height, width = problem.kernel
    (_, _), (pad_left, _) = problem.pads
    halo, size, pieces = width - 1, problem.dtype.itemsize, variant.pieces(problem.dtype)
    left = halo - pad_left
    loaded = columns if strips == 1 else columns + halo
    t_blocks = _t_blocks(problem, strips, columns)
    steps = _round_up(columns, 16)
    staged = halo + max(steps, 64 * t_blocks if with_t else 0)
    atom = 16 // size
    most_offset = atom - math.gcd(problem.out_width, atom, 0 if strips == 1 else left)
    raw_row = CHANNELS * 16 * math.ceil((loaded + most_offset) / atom)
    dy = STAGES * pieces * staged * 128
    x = (height - 1 + 2) * (pieces if problem.dtype == torch.float32 else 2) * (steps + halo) * 16
    ones = 16 if problem.dtype == torch.float32 else 256
    filters = pieces * (height * width * 8 * CHANNELS * 2 if with_t else 16)
    t = size * 2 * 8 * ((64 * t_blocks if with_t else 0) + atom)
    beyond = 4 * 4 * t_blocks * 2 * 8
    sums = 8 * 128 * (4 * height * width if with_a else 1)
    rest = 8 * CHANNELS + 8 * 2 * STAGES + 4 * 16 + 4 * 2 * LOADERS + 4 * 8 + 4 * STAGES
    raw_rows = 1 + min(4, round(2**15 / raw_row))  # about 32 KiB in flight; more is slower
    shared_bytes = _round_up(
        raw_rows * raw_row
        + dy
        + _round_up(x, 128)
        + _round_up(ones, 128)
        + _round_up(filters, 16)
        + t
        + beyond
        + sums
        + rest,
        128,
    )
    return Geometry(strips, columns, t_blocks, raw_rows, shared_bytes)


def _blocks(problem: Problem, target: Target) -> int:
    """Return the blocks: at most one per multiprocessor, and no fewer than four rows for each."""
    strips = _geometry(problem, KernelVariant(), with_a=True, with_t=True).strips
    return max(1, min(target.multiprocessors, problem.batch * strips * problem.out_height // 4))


def _round_up(number: int, unit: int) -> int:
    return math.ceil(number / unit) * unit
