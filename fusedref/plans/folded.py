"""Plans for folded.cu, the general kernel: one thread per output on CUDA cores."""

from __future__ import annotations

import math

from fusedref.csrc import INFERENCE
from fusedref.plans.base import INFERENCE_SIGNATURE, Launch, Plan
from fusedref.plans.device import predict
from fusedref.plans.variant import KernelVariant, common_macros, stride_and_group_macros
from fusedref.problem import Problem
from fusedref.target import EMULATED, Target

THREADS = 256


def unserved_by_folded(problem: Problem, target: Target, variant: KernelVariant = KernelVariant()) -> str | None:
    """Return why folded is not the kernel for ``problem``, None where it is."""
    (top, bottom), (left, right) = problem.pads
    if max(problem.height + top + bottom, problem.width + left + right) >= 2**31:
        return "height and width with padding must be below 2**31"
    return None


def folded_plan(
    problem: Problem, variant: KernelVariant = KernelVariant(), reason: str = "it serves every problem"
) -> Plan:
    """Return the plan to run ``problem`` by folded.cu.

    Raise ValueError where a padded image has 2**31 rows or columns, which the kernel cannot count.
    """
    unserved = unserved_by_folded(problem, EMULATED, variant)
    if unserved is not None:
        raise ValueError(f"{unserved}, got {problem}")
    macros = common_macros(problem, variant) | stride_and_group_macros(problem)
    runs, outputs = problem.batch * problem.out_channels, problem.out_height * problem.out_width
    if variant.channels_last:
        runs, outputs = problem.batch, outputs * problem.out_channels
    blocks = runs * math.ceil(outputs / THREADS)
    return Plan(
        kernel="folded",
        reason=reason,
        variant=variant,
        tile=(THREADS, 1, 1) if variant.channels_last else (1, 1, THREADS),
        predicted=predict(problem, variant, "CUDA cores"),
        launches=(
            Launch(
                source=INFERENCE / "folded.cu",
                symbol="folded",
                signature=INFERENCE_SIGNATURE,
                macros=tuple(macros.items()),
                grid=(min(blocks, 2**31 - 1), 1, 1),
                block=(THREADS, 1, 1),
            ),
        ),
    )
