"""Plans for input_gradient.cu: what BatchNorm's statistics add to the gradient of x, in place on it."""

from __future__ import annotations

import math
from typing import NamedTuple

from fusedref.csrc import TRAINING
from fusedref.plans.base import Argument, Launch
from fusedref.plans.variant import KernelVariant, common_macros
from fusedref.problem import Problem
from fusedref.target import EMULATED, Target

RING_CHUNKS = 4  # chunks of rows of x, split; T has as many
SLOTS = 3  # chunks of x as they come

COMPOSITES_SIGNATURE = (
    *[Argument(name, "in") for name in ("slopes", "moments", "weight", "var", "gamma")],
    Argument("scaling_factor", "float32"),
    Argument("eps", "float32"),
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
    before = problem.out_channels + 18 * (8 + 4)
    return Launch(
        source=TRAINING / "input_gradient_composites.cu",
        symbol="composites",
        signature=COMPOSITES_SIGNATURE,
        macros=(*common_macros(problem, variant).items(), ("PIECES", variant.pieces(problem.dtype))),
        grid=(_kinds(problem)[1], (2 * height - 1) * (2 * width - 1) + 1, 1),
        block=(576, 1, 1),
        shared=8 * (problem.out_channels * (2 * taps * 8 + 2) + max(shares * taps * 64, before) + 16),
    )


class Geometry(NamedTuple):
    """Sizes that input_gradient.cu is compiled with, as the macros of the same names in upper case."""

    tile_columns: int  # of a strip
    chunk_rows: int  # that a block computes at a time
    shared_bytes: int  # of struct Shared


def input_gradient_launch(
    problem: Problem, target: Target = EMULATED, variant: KernelVariant = KernelVariant()
) -> Launch:
    """Return the launch that turns ``dx`` from T into the gradient of x."""
    geometry = _geometry(problem, target, variant)
    strips = problem.batch * math.ceil(problem.width / geometry.tile_columns)
    chunks = math.ceil(problem.height / geometry.chunk_rows)
    macros = common_macros(problem, variant._replace(vectors=None)) | {  # input_gradient.cu takes no vectors
        "PIECES": variant.pieces(problem.dtype),
        **{name.upper(): size for name, size in geometry._asdict().items()},
    }

    def cost(down: int) -> int:
        """Return the time of ``down`` strips an image, in chunks; a strip costs about two more than it has."""
        waves = math.ceil(strips * down / target.multiprocessors)
        return waves * (math.ceil(chunks / down) + 2)

    return Launch(
        source=TRAINING / "input_gradient.cu",
        symbol="input_gradient",
        signature=SIGNATURE,
        macros=tuple(macros.items()),
        grid=(strips, min(range(1, chunks + 1), key=cost), 1),
        block=(512 if any(_near(problem)[1]) else 384, 1, 1),
        shared=geometry.shared_bytes,
    )


def _geometry(problem: Problem, target: Target, variant: KernelVariant) -> Geometry:
    """Return the geometry with as many rows in a chunk as eight warps compute and shared memory holds."""
    pieces, atom = variant.pieces(problem.dtype), 16 // problem.dtype.itemsize
    height, width = problem.kernel
    across = math.ceil(problem.width / 128)
    columns = problem.width if across == 1 else 4 * math.ceil(problem.width / across / 4)
    halo = 2 * (width - 1)
    near = sum(side + halo for side in _near(problem)[1] if side)
    aligned = problem.width % atom == 0 and columns % atom == 0
    loaded = columns if across == 1 else columns + halo
    offset = 0 if aligned and across == 1 else atom - 1
    raw = SLOTS * math.ceil((loaded + offset) / atom) + (RING_CHUNKS if aligned else 1) * math.ceil(columns / atom)

    def shared_bytes(rows: int) -> int:
        """Return the shared memory of a block whose strips have ``rows`` rows."""
        near_rows = 2 * (max(16 // rows * rows, rows) + rows)
        pixels = RING_CHUNKS * rows * ((columns + halo) | 1) + near_rows * (near | 1)
        composites = height * (2 * width - 1) * 32
        return 16 * (pieces * (pixels + composites) + rows * problem.in_channels * raw) + 8 * (8 + 2 + 2 * RING_CHUNKS)

    most = 4 * (8 // math.ceil(columns / 16))
    rows = next((rows for rows in range(most, 4, -4) if shared_bytes(rows) <= target.shared_limit), 4)
    return Geometry(columns, rows, shared_bytes(rows))


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
