"""What an H200 needs for a problem at the least."""

from __future__ import annotations

import math

from fusedref.plans.variant import KernelVariant
from fusedref.problem import Problem

# An H200's data sheet: bytes a second, and multiplications and additions a second (fp16 with fp32 sums, and fp32).
H200 = {"memory": 4.8e12, "tensor cores": 989e12, "CUDA cores": 67e12}
LAUNCH_OVERHEAD = 2.3  # microseconds of an empty kernel on an H200, less those of the events around it


def predict(problem: Problem, variant: KernelVariant, unit: str) -> dict[str, float]:
    """Return the microseconds that an H200 needs at the least, by resource; a kernel takes at least the longest.

    "memory" moves ``problem.least_bytes``. ``unit``, "tensor cores" or "CUDA cores", multiplies and adds; tensor cores
    do so three times where numbers are split in two pieces (the product of the two low ones is left out), with input
    channels rounded up to 8. "launch" is the same for every size.
    """
    flops: float = problem.flops
    if unit == "tensor cores":
        group = problem.in_channels // problem.groups
        flops *= math.ceil(group / 8) * 8 / group * (1 if variant.pieces(problem.dtype) == 1 else 3)
    memory = 1e6 * problem.least_bytes / H200["memory"]
    return {"memory": memory, unit: 1e6 * flops / H200[unit], "launch": LAUNCH_OVERHEAD}
