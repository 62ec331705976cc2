"""Conv2d + BatchNorm2d + scale in one CUDA kernel, and the means to check any kernel that claims to do the same."""

from fusedref.module import FusedConvBnScale
from fusedref.ops.inference import fused_conv_bn_scale
from fusedref.plans import plan
from fusedref.problem import KERNELBENCH_73, Problem
from fusedref.reference import ConvBnScale
from fusedref.validation import Report, validate

__all__ = [
    "KERNELBENCH_73",
    "ConvBnScale",
    "FusedConvBnScale",
    "Problem",
    "Report",
    "fused_conv_bn_scale",
    "plan",
    "validate",
]
