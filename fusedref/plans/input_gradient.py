"""Plans for input_gradient.cu: what BatchNorm's statistics add to the gradient of x, in place on it."""

from __future__ import annotations

import math
from typing import NamedTuple

from fusedref.csrc import TRAINING
from fusedref.plans.base import Argument, Launch
from fusedref.plans.variant import KernelVariant, common_macros
from fusedref.problem import Problem
from fusedref.target import EMULATED, Target

COMPOSITES_SIGNATURE = (
    *[Argument(name, "in") for name in ("slopes", "moments", "weight")],
    *[Argument(name, "out") for name in ("composites", "constants")],
)
SIGNATURE = (
    *[Argument(name, "in") for name in ("x", "moments", "composites", "constants")],
    Argument("dx", "inout"),
)


def composites_shape(problem: Problem) -> tuple[int, int]:
    """Return the shape of ``composites``, int32: [borders, 4-byte registers of a border's fragments]."""
    height, width = problem.kernel
    return math.prod(_kinds(problem)), height * (2 * width - 1) * 2 * 32 * 4


def constants_shape(problem: Problem) -> tuple[int, int]:
    """Return the shape of ``constants``, float32: [1 + borders, 8 channels of a pair of pixels]."""
    return 1 + math.prod(_kinds(problem)), 16


def composites_launch(problem: Problem, variant: KernelVariant = KernelVariant()) -> Launch:
    """Return the launch that makes ``composites`` and ``constants`` for ``input_gradient_launch``."""
    height, width = problem.kernel
    taps, shares = height * width, 576 // (height * width * 16)
    return Launch(
        source=TRAINING / "input_gradient_composites.cu",
        symbol="composites",
        signature=COMPOSITES_SIGNATURE,
        macros=tuple(common_macros(problem, variant._replace(vectors=None)).items()),  # it takes no vectors
        grid=(_kinds(problem)[1], (2 * height - 1) * (2 * width - 1) + 1, 1),
        block=(576, 1, 1),
        shared=8 * (problem.out_channels * (taps * 8 + 2) + max(shares * taps * 64, 18 * 8) + 16),
    )


class Geometry(NamedTuple):
    """Sizes that input_gradient.cu is compiled with, as the macros of the same names in upper case."""

    tile_columns: int  # of a strip
    chunk_rows: int  # that a block computes at a time
    blocks: int  # resident per multiprocessor
    shared_bytes: int  # of struct Shared


def input_gradient_launch(
    problem: Problem, target: Target = EMULATED, variant: KernelVariant = KernelVariant()
) -> Launch:
    """Return the launch that turns ``dx`` from T into the gradient of x."""
    geometry = _geometry(problem, variant)
    strips = problem.batch * math.ceil(problem.width / geometry.tile_columns)
    chunks = math.ceil(problem.height / geometry.chunk_rows)
    macros = common_macros(problem, variant._replace(vectors=None)) | {  # input_gradient.cu takes no vectors
        "PIECES": variant.pieces(problem.dtype),
        **{name.upper(): size for name, size in geometry._asdict().items()},
    }

    def cost(down: int) -> int:
        """Return the time of ``down`` strips an image, in chunks; a strip costs about two more than it has."""
        waves = math.ceil(strips * down / (geometry.blocks * target.multiprocessors))
        return waves * (math.ceil(chunks / down) + 2)

    return Launch(
        source=TRAINING / "input_gradient.cu",
        symbol="input_gradient",
        signature=SIGNATURE,
        macros=tuple(macros.items()),
        grid=(strips, min(range(1, chunks + 1), key=cost), 1),
        block=(256, 1, 1),
        shared=geometry.shared_bytes,
    )


def _geometry(problem: Problem, variant: KernelVariant) -> Geometry:
    pieces = variant.pieces(problem.dtype)
    height, width = problem.kernel
    across = math.ceil(problem.width / 128)
    columns = problem.width if across == 1 else 4 * math.ceil(problem.width / across / 4)
    rows = 4 * (8 // math.ceil(columns / 16))
    ring = (3 if height > 1 else 2) * rows * ((columns + 2 * (width - 1)) | 1)
    near = sum(side + 2 * (width - 1) for side in _near(problem)[1] if side)
    near_rows = max(16 // rows * rows, rows) + 3 * rows
    steps = height * (2 * width - 1)
    shared = 16 * pieces * (ring + near_rows * (near | 1) + 32 * steps) + 8 * 8
    return Geometry(columns, rows, 2, shared)


def _kinds(problem: Problem) -> tuple[int, int]:
    """Return how many kinds of pairs of rows and of columns there are, as in input_gradient_borders.cuh."""
    (above, below), (left, right) = _near(problem)
    pairs = math.ceil(problem.height / 2)
    pairs_below = pairs - (problem.height - below) // 2 if below else 0
    return min(pairs, math.ceil(above / 2) + pairs_below + 1), min(problem.width, left + right + 1)


def _near(problem: Problem) -> list[tuple[int, int]]:
    """Return how many rows are near the border above and below, and how many columns left and right."""
    sides = zip(problem.kernel, problem.pads, strict=True)
    return [(taps - 1 - before, taps - 1 - after) for taps, (before, after) in sides]
