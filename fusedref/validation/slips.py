"""What a refused candidate may have done instead."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fusedref.problem import Problem
from fusedref.validation.bounds import allowed_error, expected_y, magnitude_of, rounding_error, spread_of
from fusedref.validation.cases import Errors
from fusedref.validation.inputs import Inputs


def explain(
    problem: Problem, inputs: Inputs, y: Tensor, relative_l2: float, errors: Errors, precision: str
) -> list[str]:
    """What the candidate may have done instead, where one of the usual slips gives exactly its first image."""
    if not y.any():
        return ["every element is zero"]
    first = inputs._replace(x=inputs.x[:1])
    for slip, changed in _slips(first):
        expected = expected_y(problem, changed)
        allowed = allowed_error(magnitude_of(problem, changed), spread_of(problem, changed, precision))
        allowed = allowed + rounding_error(expected.abs() + allowed, problem.dtype)
        if ((y[:1].double() - expected).abs() <= allowed).all():
            return [f"y is what comes out where {slip}"]
    if relative_l2 < 2.0**-6 and errors.wrong >= y.numel() / 4:  # a few wrong elements are no matter of precision
        bits = -math.log2(relative_l2)
        return [f"the errors are those of about {bits:.0f} bits (float32 keeps 24, tf32 and fp16 11, bf16 8)"]
    return []


def _slips(inputs: Inputs) -> Iterator[tuple[str, Inputs]]:
    """The usual mistakes, as inputs with which the right operator gives the wrong answer."""
    mean, var, eps = inputs.running_mean, inputs.running_var, inputs.eps
    if inputs.bias is not None:
        yield "bias is left out", inputs._replace(bias=None)
    yield "running_mean is left out", inputs._replace(running_mean=torch.zeros_like(mean))
    yield "running_mean is added", inputs._replace(running_mean=-mean)
    yield "running_var is left out", inputs._replace(running_var=torch.ones_like(var))
    yield "running_var and eps are left out", inputs._replace(running_var=torch.ones_like(var), eps=0.0)
    yield "gamma is left out", inputs._replace(gamma=torch.ones_like(mean))
    yield "beta is left out", inputs._replace(beta=torch.zeros_like(mean))
    yield "eps is left out", inputs._replace(eps=0.0)
    yield "eps is 1e-5, whatever is given", inputs._replace(eps=1e-5)
    yield "eps is added after the square root", inputs._replace(running_var=(var.double().sqrt() + eps) ** 2, eps=0.0)
    yield "the square root is forgotten", inputs._replace(running_var=(var.double() + eps) ** 2, eps=0.0)
    yield "scaling_factor is left out", inputs._replace(scaling_factor=1.0)
    yield "scaling_factor is 2, whatever is given", inputs._replace(scaling_factor=2.0)
    yield "beta is added after the scale", inputs._replace(beta=inputs.beta.double() / inputs.scaling_factor)
    yield "the filter is flipped", inputs._replace(weight=inputs.weight.flip(2, 3))
    if inputs.weight.shape[2] == inputs.weight.shape[3]:
        yield "the filter's rows and columns are swapped", inputs._replace(weight=inputs.weight.transpose(2, 3))
