"""Guess what a refused candidate does instead of the operator."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fusedref.parameters import Parameters
from fusedref.problem import Problem
from fusedref.validation.bounds import allowed_error, expected_y, magnitude_of, rounding_error, spread_of
from fusedref.validation.cases import Errors


def explain(
    problem: Problem, inputs: Parameters, y: Tensor, relative_l2: float, errors: Errors, precision: str
) -> list[str]:
    """Return a reason where y is zero, fits one of the usual slips, or has errors as large as a shorter format's.

    A slip fits if it gives the whole first image to rounding.
    """
    if not y.any():
        return ["every element is zero"]
    first = inputs._replace(x=inputs.x[:1])
    for slip, changed in _slips(first):
        expected = expected_y(problem, changed)
        allowed = allowed_error(magnitude_of(problem, changed), spread_of(problem, changed, precision))
        allowed = allowed + rounding_error(expected.abs() + allowed, problem.dtype)
        if ((y[:1].double() - expected).abs() <= allowed).all():
            return [f"y is what comes out where {slip}"]
    if 0 < relative_l2 < 2.0**-6 and errors.wrong >= y.numel() / 4:  # a few wrong elements have another cause
        bits = -math.log2(relative_l2)
        return [f"the errors are those of about {bits:.0f} bits (float32 keeps 24, tf32 and fp16 11, bf16 8)"]
    return []


def _slips(inputs: Parameters) -> Iterator[tuple[str, Parameters]]:
    """Yield the usual slips: a name, and inputs with which the right operator gives the wrong result."""
    mean, var, eps = inputs.running_mean, inputs.running_var, inputs.eps
    if inputs.bias is not None:
        yield "bias is left out", inputs._replace(bias=None)
        yield "bias is added twice", inputs._replace(bias=2 * inputs.bias)
    yield "running_mean is left out", inputs._replace(running_mean=torch.zeros_like(mean))
    yield "running_mean is added", inputs._replace(running_mean=-mean)
    yield "running_var is left out", inputs._replace(running_var=torch.ones_like(var))
    yield "running_var and eps are left out", inputs._replace(running_var=torch.ones_like(var), eps=0.0)
    yield "eps is added after the square root", inputs._replace(running_var=(var.double().sqrt() + eps) ** 2, eps=0.0)
    yield "the square root is forgotten", inputs._replace(running_var=(var.double() + eps) ** 2, eps=0.0)
    yield from slips_beside_statistics(inputs)


def slips_beside_statistics(inputs: Parameters) -> Iterator[tuple[str, Parameters]]:
    """Yield those slips that do not change the running statistics, so that they are slips in training as well."""
    if inputs.gamma is not None:
        yield "gamma is left out", inputs._replace(gamma=None)
    if inputs.beta is not None:
        yield "beta is left out", inputs._replace(beta=None)
    yield "eps is left out", inputs._replace(eps=0.0)
    yield "eps is 1e-5, whatever is given", inputs._replace(eps=1e-5)
    yield "scaling_factor is left out", inputs._replace(scaling_factor=1.0)
    yield "scaling_factor is 2, whatever is given", inputs._replace(scaling_factor=2.0)
    if inputs.beta is not None:
        yield "beta is added after the scale", inputs._replace(beta=inputs.beta.double() / inputs.scaling_factor)
    yield "the filter is flipped", inputs._replace(weight=inputs.weight.flip(2, 3))
    if inputs.weight.shape[2] == inputs.weight.shape[3]:
        yield "the filter's rows and columns are swapped", inputs._replace(weight=inputs.weight.transpose(2, 3))
