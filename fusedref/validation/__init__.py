"""Validate a candidate: a function or a kernel that claims to compute the operator.

``validate`` calls it on random inputs and compares what it returns with float64; ``bounds`` has the rounding bound.
"""

from fusedref.validation.call import Candidate
from fusedref.validation.compare import compare
from fusedref.validation.inputs import random_inputs, shapes_around
from fusedref.validation.kernel import candidate_from_kernel
from fusedref.validation.report import Report
from fusedref.validation.subjects import by_autograd
from fusedref.validation.validate import MODES, cases_of, validate

__all__ = [
    "MODES",
    "Candidate",
    "Report",
    "by_autograd",
    "candidate_from_kernel",
    "cases_of",
    "compare",
    "random_inputs",
    "shapes_around",
    "validate",
]
