"""Plans whose convolution is torch's, by a library that torch calls; BatchNorm and the scale follow in one pass.

    z = conv2d(x, weight)        y = a * (z + shift) + b, in place, by affine.cu

``library`` computes z by torch's convolution, ``matmul`` that of a 1x1 kernel by torch's matrix product, which is often
faster.

The pass costs no more than the bias of a convolution with BatchNorm folded into its weights, because torch adds a bias
in a pass of its own. Folded weights would have to be kept between calls, but nothing shows that they are out of date:
torch's BatchNorm changes running statistics, and a replayed CUDA graph changes parameters, without a new version of a
tensor.
"""

from __future__ import annotations

import math

from fusedref.csrc import INFERENCE
from fusedref.plans.base import Argument, Launch, Plan
from fusedref.plans.device import H200, predict
from fusedref.plans.variant import KernelVariant
from fusedref.problem import ELEMENTS, Problem
from fusedref.target import EMULATED, Target

THREADS = 256  # of affine.cu
SIGNATURE = (
    *[Argument(name, "in") for name in ("bias", "running_mean", "running_var", "gamma", "beta")],
    *[Argument(name, "float32") for name in ("scaling_factor", "eps")],
    Argument("y", "inout"),
    Argument("batch", "int64"),
    *[Argument(name, "int32") for name in ("channels", "plane")],
)
LIBRARIES = "library", "matmul"  # the kernels of these plans


def unserved_by_library(problem: Problem, target: Target, variant: KernelVariant = KernelVariant()) -> str | None:
    """Return why torch's convolution does not serve ``problem``, None where it does."""
    if any(before != behind for before, behind in problem.pads):
        return "torch's convolution pads both sides alike"
    if math.prod(problem.output_shape[1:]) >= 2**31:
        return "affine.cu counts the numbers of an image in 32 bits"
    return None


def unserved_by_matmul(problem: Problem, target: Target, variant: KernelVariant = KernelVariant()) -> str | None:
    """Return why torch's matrix product does not serve ``problem``, None where it does."""
    if problem.kernel != (1, 1) or problem.pads != ((0, 0), (0, 0)) or problem.groups != 1:
        return "a matrix product computes 1x1 kernels without padding and groups"
    if variant.precision == "tf32":
        return "whether torch's matrix product rounds to tf32 is one of its settings"
    return unserved_by_library(problem, target, variant)


def library_plan(
    problem: Problem,
    target: Target = EMULATED,
    variant: KernelVariant = KernelVariant(),
    reason: str = "torch's convolution serves every problem",
    kernel: str = "library",
) -> Plan:
    """Return the plan to run ``problem`` by torch, as ``kernel`` says, and BatchNorm and the scale after it."""
    macros, grid, shared = _division(problem, target, variant)
    predicted = predict(problem, variant, "CUDA cores" if variant.pieces(problem.dtype) == 2 else "tensor cores")
    predicted["memory"] += 1e6 * 2 * problem.dtype.itemsize * math.prod(problem.output_shape) / H200["memory"]
    return Plan(
        kernel=kernel,
        reason=reason,
        variant=variant,
        tile=None,
        predicted=predicted,
        launches=(
            Launch(
                source=INFERENCE / "affine.cu",
                symbol="affine",
                signature=SIGNATURE,
                macros=tuple(macros.items()),
                grid=grid,
                block=(THREADS, 1, 1),
                shared=shared,
            ),
        ),
    )


def _division(
    problem: Problem, target: Target, variant: KernelVariant
) -> tuple[dict[str, int], tuple[int, int, int], int]:
    """Return macros, grid and shared memory of affine.cu."""
    batch, channels, plane = problem.batch, problem.out_channels, problem.out_height * problem.out_width
    channels_last = variant.channels_last or plane == 1  # one and the same memory where there is one pixel
    unit = math.gcd(16 // problem.dtype.itemsize, channels if channels_last else channels * plane)
    lanes = min(THREADS, 128 // (unit * problem.dtype.itemsize), 1 << (channels // unit - 1).bit_length())
    many = 2 * target.multiprocessors  # blocks
    if channels_last:
        groups = math.ceil(channels / (unit * lanes))

        def blocks(ahead: int) -> int:
            """Return how many blocks there can be."""
            return groups * math.ceil(batch * plane * lanes / (THREADS * ahead))

        ahead = next((ahead for ahead in (4, 2) if blocks(ahead) >= many), 1)
        most = math.ceil(8 * many / groups)  # a thread computes the numbers of its channels once
        return (
            _macros(problem, variant, channels_last, unit, ahead, lanes, 0),
            (groups, max(1, min(blocks(ahead) // groups, most)), 1),
            0,
        )

    def chunks(ahead: int) -> int:
        """Return the blocks for an image."""
        return math.ceil(channels * plane / (THREADS * ahead * unit))

    ahead = next((ahead for ahead in (4, 2) if batch * chunks(ahead) >= many), 1)
    planes = min(channels, THREADS * ahead * unit // plane + 2)
    return (
        _macros(problem, variant, channels_last, unit, ahead, 1, int(plane % unit == 0)),
        (chunks(ahead), max(1, min(batch, 65535, math.ceil(8 * many / chunks(ahead)))), 1),
        12 * planes,
    )


def _macros(
    problem: Problem, variant: KernelVariant, channels_last: bool, unit: int, ahead: int, lanes: int, whole: int
) -> dict[str, int]:
    return {
        "ELEMENT": ELEMENTS.index(problem.dtype),
        "VECTOR": ELEMENTS.index(variant.vectors or problem.dtype),
        "CHANNELS_LAST": int(channels_last),
        "UNIT": unit,
        "AHEAD": ahead,
        "LANES": lanes,
        "WHOLE": whole,
    }
