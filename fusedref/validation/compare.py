"""Compare y with float64, element by element."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fusedref.problem import Problem
from fusedref.validation.bounds import (
    TF32_NORM_LIMIT,
    TF32_UNIT,
    UNIT,
    allowed_error,
    expected_y,
    magnitude_of,
    rounding_error,
    spread_of,
)
from fusedref.validation.cases import Case, Errors, Worst
from fusedref.validation.inputs import Inputs
from fusedref.validation.report import rounding_of
from fusedref.validation.slips import explain


def compare(
    name: str,
    problem: Problem,
    inputs: Inputs,
    y: Tensor,
    reasons: Sequence[str] = (),
    precision: str = "fp32",
) -> Case:
    """The case for ``y``: how far from float64 it is, where it is too far, and why, as far as can be seen.

    ``reasons`` are those already found; those found here join them in the case.
    """
    reasons = list(reasons)
    errors = Errors(problem)
    worst = None
    squares = torch.zeros(5, dtype=torch.float64)  # of the error, of the result, of m, of q, of the rounding of y
    images = max(1, 2**24 // math.prod(problem.output_shape[1:]))  # at a time, for the memory's sake
    for start in range(0, problem.batch, images):
        part = inputs._replace(x=inputs.x[start : start + images])
        got = y[start : start + images].double()
        expected, magnitude = expected_y(problem, part), magnitude_of(problem, part)
        spread = spread_of(problem, part, precision)
        allowed = allowed_error(magnitude, spread)
        rounding = rounding_error(expected.abs() + allowed, problem.dtype)
        error = (got - expected).abs()
        bounds = (error / (allowed + rounding)).nan_to_num(nan=math.inf)
        errors.add(start, bounds > 1, got)
        summed = error, expected, magnitude, spread, rounding
        squares += torch.stack([values.square().sum() for values in summed]).cpu()
        index = int(bounds.argmax())
        if worst is None or bounds.reshape(-1)[index] > worst.bounds:
            image, *rest = (int(i) for i in np.unravel_index(index, bounds.shape))
            here = (image, *rest)
            worst = Worst((start + image, *rest), got[here].item(), expected[here].item(), bounds[here].item())

    error, result, magnitude, spread, rounding = squares.sqrt().tolist()
    relative_l2 = error / result
    limit = (8 + math.sqrt(problem.taps)) * UNIT * max(result, magnitude / math.sqrt(problem.taps + 3))
    limit += TF32_NORM_LIMIT * TF32_UNIT * spread + rounding
    if errors.wrong:
        reasons += errors.in_words()
        reasons += explain(problem, inputs, y, relative_l2, errors, precision)
    elif not error <= limit:
        arithmetic = rounding_of(precision, problem.dtype)
        reasons.append(f"the relative L2 error is {relative_l2:.1e}, {arithmetic} stays below {limit / result:.1e}")
    return Case(name, problem, relative_l2, worst, errors, tuple(reasons))
