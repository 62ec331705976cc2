"""Plans whose convolution is torch's, of the library that torch calls; BatchNorm and the scale follow in one pass.

    z = conv2d(x, weight)        y = a * (z + shift) + b, in place, by affine.cu

This costs as much as a convolution with BatchNorm folded into its weights, because torch adds the bias in a pass of its
own. Folded weights would have to be kept between calls, but nothing shows that they are out of date: torch's BatchNorm
changes running statistics, and a replayed CUDA graph changes parameters, without a new version of a tensor.
"""

from __future__ import annotations

import math

from fusedref.csrc import INFERENCE
from fusedref.plans.base import Argument, Launch, Plan
from fusedref.plans.device import H200, predict
from fusedref.plans.slices import THREADS, divided
from fusedref.plans.variant import KernelVariant
from fusedref.problem import Problem
from fusedref.target import EMULATED, Target

SIGNATURE = (
    *[Argument(name, "in") for name in ("bias", "running_mean", "running_var", "gamma", "beta")],
    *[Argument(name, "float32") for name in ("scaling_factor", "eps")],
    Argument("y", "inout"),
    Argument("batch", "int64"),
    *[Argument(name, "int32") for name in ("channels", "plane")],
)


def unserved_by_library(problem: Problem, target: Target, variant: KernelVariant = KernelVariant()) -> str | None:
    """Return why torch's convolution does not serve ``problem``, None where it does."""
    if any(before != behind for before, behind in problem.pads):
        return "torch's convolution pads both sides alike"
    if problem.out_height * problem.out_width >= 2**31:
        return "affine.cu counts the pixels of a plane in 32 bits"
    return None


def library_plan(
    problem: Problem,
    target: Target = EMULATED,
    variant: KernelVariant = KernelVariant(),
    reason: str = "torch's convolution serves every problem",
) -> Plan:
    """Return the plan to run ``problem`` by torch's convolution, and BatchNorm and the scale in place after it."""
    macros, grid = divided(problem, target, variant)
    unit = "CUDA cores" if variant.pieces(problem.dtype) == 2 else "tensor cores"
    predicted = predict(problem, variant, unit)
    predicted["memory"] += 1e6 * 2 * problem.dtype.itemsize * math.prod(problem.output_shape) / H200["memory"]
    return Plan(
        kernel="library",
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
            ),
        ),
    )


def library_wins(problem: Problem, target: Target, variant: KernelVariant, own: Plan) -> str | None:
    """Return why torch's convolution should be faster than ``own``, the plan by a kernel of ours, None if it is not."""
    return None
