"""Compare y with float64, element by element."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fusedref.parameters import Parameters
from fusedref.problem import Problem
from fusedref.validation.bounds import allowed_error, expected_y, magnitude_of, norm_limit, rounding_error, spread_of
from fusedref.validation.cases import Case, Errors, Worst, border_of_y, rounding_of
from fusedref.validation.slips import explain

OUTPUTS_AT_A_TIME = 2**24  # compared in parts, or float64 copies of all would fill the memory


def compare(
    name: str,
    problem: Problem,
    inputs: Parameters,
    y: Tensor,
    reasons: Sequence[str] = (),
    precision: str = "fp32",
) -> Case:
    """Return the case for ``y``: its error against float64, where it is too large, and the likely cause.

    y [batch, out_channels, out_height, out_width], of any floating dtype. The case has ``reasons`` and the reasons
    found here. ``bounds`` has the limits.
    """
    reasons = list(reasons)
    errors = Errors(problem.output_shape, border=border_of_y(problem))
    worst = None
    squares = torch.zeros(5, dtype=torch.float64, device="cpu")  # of the error, y, m, q and the rounding of y
    images = max(1, OUTPUTS_AT_A_TIME // math.prod(problem.output_shape[1:]))
    for start in range(0, problem.batch, images):
        part = inputs._replace(x=inputs.x[start : start + images])
        got = y[start : start + images].double()
        expected, magnitude = expected_y(problem, part), magnitude_of(problem, part)
        spread = spread_of(problem, part, precision)
        allowed = allowed_error(magnitude, spread)
        rounding = rounding_error(expected.abs() + allowed, problem.dtype)
        error = (got - expected).abs()
        bounds = torch.where(error == 0, 0.0, error / (allowed + rounding)).nan_to_num(nan=math.inf)
        errors.add(start, bounds > 1, got)
        summed = error, expected, magnitude, spread, rounding
        squares += torch.stack([values.square().sum() for values in summed]).cpu()
        index = int(bounds.argmax())
        if worst is None or bounds.reshape(-1)[index] > worst.bounds:
            image, channel, row, column = (int(i) for i in np.unravel_index(index, tuple(bounds.shape)))
            here = image, channel, row, column
            place = start + image, channel, row, column
            worst = Worst(place, got[here].item(), expected[here].item(), bounds[here].item())

    error_norm, result, *others = squares.sqrt().tolist()
    relative_l2 = _ratio(error_norm, result)
    limit = norm_limit(problem, result, *others)
    if errors.wrong:
        reasons += errors.in_words()
        reasons += explain(problem, inputs, y, relative_l2, errors, precision)
    elif not error_norm <= limit:
        arithmetic = rounding_of(precision, problem.dtype)
        reasons.append(
            f"the relative L2 error is {relative_l2:.1e}, {arithmetic} stays below {_ratio(limit, result):.1e}"
        )
    return Case(name, problem, relative_l2, worst, errors, tuple(reasons))


def _ratio(norm: float, result: float) -> float:
    """Divide; a result of 0 has no error or an infinite one."""
    return norm / result if result else math.inf if norm else 0.0
