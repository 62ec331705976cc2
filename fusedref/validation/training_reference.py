"""Compute BatchNorm with the statistics of the batch, and all gradients, in float64: right, or with a usual slip.

With z = conv(x, weight) + bias, the mean m and the biased variance v of z per channel over images, rows and columns,
i = 1 / sqrt(v + eps), zhat = (z - m) i and s the scaling factor:

    y = s (gamma zhat + beta)
    dbeta = s sum(dy),  dgamma = s sum(dy zhat),  c1 = mean(dy),  c2 = mean(dy zhat)
    dz = s gamma i (dy - c1 - c2 zhat)

and dx, dweight and dbias are the convolution's for dz. In evaluation mode m and v are the running statistics, which do
not depend on x: c1 and c2 are 0 then.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedref.parameters import Parameters
from fusedref.problem import Problem

EVERYTHING = (0, 2, 3)  # the axes of y over which BatchNorm takes its means


class Forward(NamedTuple):
    """The forward pass in float64: z, normalised (zhat) and y have y's shape, the others broadcast with it."""

    z: Tensor
    mean: Tensor
    var: Tensor  # biased
    inverse: Tensor  # 1 / sqrt(var + eps)
    normalised: Tensor
    y: Tensor


class Gradients(NamedTuple):
    """The gradients of the five inputs that can have one."""

    dx: Tensor
    dweight: Tensor
    dbias: Tensor | None
    dgamma: Tensor | None
    dbeta: Tensor | None


GRADIENTS = Gradients._fields


def channels(vector: Tensor) -> Tensor:
    """Return a vector in float64 as [1, channels, 1, 1]."""
    return vector.double().view(1, -1, 1, 1)


def convolve(problem: Problem, x: Tensor, weight: Tensor) -> Tensor:
    """Compute the convolution without a bias."""
    return F.conv2d(x, weight, None, **problem.conv_options)


def convolution_gradients(problem: Problem, x: Tensor, weight: Tensor, dz: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients of the convolution's x and weight for the gradient dz of its result."""
    with torch.enable_grad():
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        dx, dweight = torch.autograd.grad(convolve(problem, x, weight), (x, weight), dz)
    return dx, dweight


def forward(
    problem: Problem,
    inputs: Parameters,
    *,
    training: bool = True,
    axes: tuple[int, ...] = EVERYTHING,
    unbiased: bool = False,
) -> Forward:
    """Compute the forward pass in float64, with the running statistics where not ``training``.

    ``axes`` and ``unbiased`` are for slips: statistics over other axes, and the unbiased variance.
    """
    z = convolve(problem, inputs.x.double(), inputs.weight.double())
    if inputs.bias is not None:
        z += channels(inputs.bias)
    if training:
        mean = z.mean(axes, keepdim=True)
        var = (z - mean).square().mean(axes, keepdim=True)
        if unbiased:
            var = var * _unbiased_factor(problem)
    else:
        mean, var = channels(inputs.running_mean), channels(inputs.running_var)
    inverse = (var + inputs.eps).rsqrt()
    normalised = (z - mean) * inverse
    y = normalised if inputs.gamma is None else normalised * channels(inputs.gamma)
    y = y if inputs.beta is None else y + channels(inputs.beta)
    return Forward(z, mean, var, inverse, normalised, y * inputs.scaling_factor)


def running(problem: Problem, inputs: Parameters, found: Forward, momentum: float) -> tuple[Tensor, Tensor]:
    """Compute running_mean and running_var after the call: the running variance takes the batch's unbiased one."""
    return moved(inputs, found.mean.flatten(), found.var.flatten() * _unbiased_factor(problem), momentum=momentum)


def moved(inputs: Parameters, mean: Tensor, var: Tensor, *, momentum: float) -> tuple[Tensor, Tensor]:
    """Return the running statistics, moved by ``momentum`` of the way to ``mean`` and ``var``."""
    old_mean, old_var = inputs.running_mean.double(), inputs.running_var.double()
    return (1 - momentum) * old_mean + momentum * mean, (1 - momentum) * old_var + momentum * var


def gradients(
    problem: Problem,
    inputs: Parameters,
    dy: Tensor,
    found: Forward,
    *,
    training: bool = True,
    c1: bool = True,
    c2: bool = True,
    axes: tuple[int, ...] = EVERYTHING,
) -> Gradients:
    """Compute all gradients in float64.

    ``c1``, ``c2`` and ``axes`` are for slips: a term left out, or means over other axes.
    """
    dy = dy.double()
    dz = dy.clone()
    if training and c1:
        dz -= dy.mean(axes, keepdim=True)
    if training and c2:
        dz -= (dy * found.normalised).mean(axes, keepdim=True) * found.normalised
    dz *= found.inverse * inputs.scaling_factor
    if inputs.gamma is not None:
        dz *= channels(inputs.gamma)
    dx, dweight = convolution_gradients(problem, inputs.x.double(), inputs.weight.double(), dz)
    s = inputs.scaling_factor
    return Gradients(
        dx,
        dweight,
        None if inputs.bias is None else dz.sum(EVERYTHING),
        None if inputs.gamma is None else s * (dy * found.normalised).sum(EVERYTHING),
        None if inputs.beta is None else s * dy.sum(EVERYTHING),
    )


def pixels_of(problem: Problem) -> int:
    """Return how many numbers of z a channel has: those that BatchNorm takes its mean of."""
    return problem.batch * problem.out_height * problem.out_width


def _unbiased_factor(problem: Problem) -> float:
    pixels = pixels_of(problem)
    return pixels / (pixels - 1) if pixels > 1 else float("nan")
