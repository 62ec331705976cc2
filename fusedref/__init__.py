"""Conv2d + BatchNorm2d + scale in one CUDA kernel, and the means to check any kernel that claims to do the same.

A name is imported when it is first used, so that ``fusedref.emulator`` starts without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusedref.fusion import FusionReport, fuse, unfuse
    from fusedref.module import FusedConvBnScale
    from fusedref.ops.inference import fused_conv_bn_scale
    from fusedref.ops.training_mode import fused_conv_bn_scale_training
    from fusedref.plans import plan
    from fusedref.problem import KERNELBENCH_73, Problem
    from fusedref.reference import ConvBnScale
    from fusedref.tuning import Tuned, tune
    from fusedref.validation.report import Report
    from fusedref.validation.validate import validate

__all__ = [
    "KERNELBENCH_73",
    "ConvBnScale",
    "FusedConvBnScale",
    "FusionReport",
    "Problem",
    "Report",
    "Tuned",
    "fuse",
    "fused_conv_bn_scale",
    "fused_conv_bn_scale_training",
    "plan",
    "tune",
    "unfuse",
    "validate",
]

_MODULES = {
    "KERNELBENCH_73": "problem",
    "ConvBnScale": "reference",
    "FusedConvBnScale": "module",
    "FusionReport": "fusion",
    "Problem": "problem",
    "Report": "validation.report",
    "Tuned": "tuning",
    "fuse": "fusion",
    "fused_conv_bn_scale": "ops.inference",
    "fused_conv_bn_scale_training": "ops.training_mode",
    "plan": "plans",
    "tune": "tuning",
    "unfuse": "fusion",
    "validate": "validation.validate",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
