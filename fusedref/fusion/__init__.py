"""Fuse the convolutions of a user's model with the BatchNorms after them.

``find`` traces a model and proves which layers may be fused; ``layers`` has what they become.
"""

from fusedref.fusion.apply import fuse, unfuse
from fusedref.fusion.report import FusionReport, Line

__all__ = ["FusionReport", "Line", "fuse", "unfuse"]
