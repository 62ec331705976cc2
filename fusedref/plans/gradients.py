"""Plans for gradients.cu: the parameters' gradients from the partial sums of the pass over dy."""

from __future__ import annotations

from fusedref.csrc import TRAINING
from fusedref.plans.base import Argument, Launch
from fusedref.plans.variant import KernelVariant, common_macros
from fusedref.problem import Problem

SIGNATURE = (
    *[Argument(name, "in") for name in ("parts", "moments", "weight", "bias", "gamma", "mean", "var")],
    Argument("scaling_factor", "float32"),
    Argument("eps", "float32"),
    Argument("batch", "int64"),
    *[Argument(name, "out") for name in ("dweight", "dgamma", "dbeta", "dbias", "slopes")],
)


def gradients_launch(
    problem: Problem, parts: int, training: bool = True, variant: KernelVariant = KernelVariant()
) -> Launch:
    """Return the launch that adds ``parts`` partial sums and writes the gradients that are not None.

    ``training`` says whether BatchNorm took the batch's statistics. ``slopes``, float64 [2, out_channels], is what
    ``composites_launch`` needs; it may be None, too.
    """
    macros = common_macros(problem, variant) | {"PARTIAL_SUMS": parts, "TRAINING": int(training)}
    return Launch(
        source=TRAINING / "gradients.cu",
        symbol="finish_backward",
        signature=SIGNATURE,
        macros=tuple(macros.items()),
        grid=(problem.out_channels, 1, 1),
        block=(576, 1, 1),
    )
