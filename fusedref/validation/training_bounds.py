"""The rounding bounds of training: how far y, the running statistics and the gradients may be from float64.

As in ``bounds``, u is 2**-24, each element may be off by 32 u times its magnitude, and the magnitude of a sum is the
sum of its terms' magnitudes. What is new are quantities that many elements share, and whose errors reach them all.
Magnitudes are written in capitals, |.| is taken of each element, and mean and sum go over a channel:

    Z = conv(|x|, |weight|) + |bias|                 the magnitude of z; mean(Z) is that of the batch mean m
    V = v + 2 mean(|z - m| Z) + 32 u mean(Z**2)      of the variance: an error d of z changes it by 2 (z - m) d + d**2
    K = 1 + i**2 V / 2                               i = 1 / sqrt(v + eps) has the relative error K u
    H = i (Z + mean(Z)) + |zhat| K                   of zhat
    Y = |s| (|gamma| H + |beta|)                     of y

Where z is small against its terms, as for data with a mean of 100 or where filters take differences of a smooth image,
Z is large against sqrt(v), and float32 can do no better than these magnitudes say. For the gradients:

    C1 = mean(|dy|), C2 = mean(|dy| (H + |zhat|))    of c1 and c2; dbeta and dgamma are s times the sums
    D = |s gamma| i (|dy| + C1 + |zhat| C2 + H |c2| + K |dy - c1 - c2 zhat|)       of dz
    dbias: sum(D); dweight and dx: the convolution's for D, |x| and |weight|

In evaluation mode m and v are given: mean(Z) becomes |m|, K is 1, and C1, C2 and c2 are 0 in D.

A running statistic has the magnitude (1 - momentum) |old| + momentum * new. Subnormal numbers may count as zero, as
they do on some processors: |x|, |weight| and |dy| are taken as 2**-107 larger, 32 u times which is the smallest normal
number.

**All elements together**: the L2 norm of a tensor's error must be within 8 u times the norm of its magnitude: where one
term outweighs all others, as with outliers, about eight roundings each add u of it. Products of tf32 exceed this where
the sums are short, as they are for all shapes but the problem itself.

**Where the problem is float16 or bfloat16**, torch's operators round z, z without its bias, zhat gamma + beta and dz to
that dtype, and a candidate may, too: Z, Y and D grow by the distance between neighbouring numbers at each of these
values, over 32 u: twice what one rounding needs, because the norm takes a quarter. Each result may be off by half the
distance between two of its neighbouring numbers as well; dx by as much again for the first of its two terms,
conv_transpose(s gamma i dy, weight), which may be kept in x's dtype until the second is known.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fusedref.parameters import Parameters
from fusedref.problem import Problem
from fusedref.validation.bounds import ELEMENT_LIMIT, UNIT, rounding_error
from fusedref.validation.training_reference import (
    EVERYTHING,
    Forward,
    Gradients,
    channels,
    convolution_gradients,
    convolve,
    pixels_of,
)

NORM_LIMIT = 8  # in units of UNIT * the norm of the magnitude
UNDERFLOW = 2.0**-107  # ELEMENT_LIMIT * UNIT times this is the smallest normal float32


class Magnitudes(NamedTuple):
    """The magnitudes of the forward pass that the others build on: Z, mean(Z), V, K and H of the module's text."""

    z: Tensor
    mean: Tensor
    var: Tensor
    inverse: Tensor
    normalised: Tensor


def forward_magnitudes(problem: Problem, inputs: Parameters, found: Forward, *, training: bool = True) -> Magnitudes:
    """Compute Z, mean(Z), V, K and H."""
    z = convolve(problem, _enlarged(inputs.x), _enlarged(inputs.weight))
    if inputs.bias is not None:
        z += channels(inputs.bias).abs()
    z += _stored(found.z, problem.dtype)
    if inputs.bias is not None:  # which torch adds to a convolution that is rounded already
        z += _stored(found.z - channels(inputs.bias), problem.dtype)
    if training:
        mean = z.mean(EVERYTHING, keepdim=True)
        var = 2 * ((found.z - found.mean).abs() * z).mean(EVERYTHING, keepdim=True)
        var += found.var + ELEMENT_LIMIT * UNIT * z.square().mean(EVERYTHING, keepdim=True)
        inverse = 1 + found.inverse.square() * var / 2
    else:
        mean, var = found.mean.abs(), found.var
        inverse = torch.ones_like(mean)
    return Magnitudes(z, mean, var, inverse, found.inverse * (z + mean) + found.normalised.abs() * inverse)


def y_magnitude(problem: Problem, inputs: Parameters, found: Forward, sizes: Magnitudes) -> Tensor:
    """Compute Y."""
    y = sizes.normalised if inputs.gamma is None else sizes.normalised * channels(inputs.gamma).abs()
    y = y if inputs.beta is None else y + channels(inputs.beta).abs()
    return y * abs(inputs.scaling_factor) + _stored(found.y, problem.dtype)


def running_magnitudes(
    problem: Problem, inputs: Parameters, sizes: Magnitudes, momentum: float
) -> tuple[Tensor, Tensor]:
    """Compute the magnitudes of running_mean and running_var after the call."""
    pixels = pixels_of(problem)
    mean, var = sizes.mean.flatten(), sizes.var.flatten() * (pixels / (pixels - 1))
    old_mean, old_var = inputs.running_mean.double().abs(), inputs.running_var.double()
    return (1 - momentum) * old_mean + momentum * mean, (1 - momentum) * old_var + momentum * var


def gradient_magnitudes(
    problem: Problem, inputs: Parameters, dy: Tensor, found: Forward, sizes: Magnitudes, *, training: bool = True
) -> Gradients:
    """Compute the magnitudes of all gradients."""
    normalised, size_of_dy, dy = found.normalised, _enlarged(dy), dy.double()
    products = size_of_dy * (sizes.normalised + normalised.abs())
    exact = dy
    if training:
        c1, c2 = dy.mean(EVERYTHING, keepdim=True), (dy * normalised).mean(EVERYTHING, keepdim=True)
        exact = dy - c1 - c2 * normalised
        dz = size_of_dy + size_of_dy.mean(EVERYTHING, keepdim=True)
        dz += normalised.abs() * products.mean(EVERYTHING, keepdim=True)
        dz += sizes.normalised * c2.abs()
        dz += sizes.inverse * exact.abs()
    else:
        dz = 2 * size_of_dy
    s = abs(inputs.scaling_factor)
    a = found.inverse * s if inputs.gamma is None else found.inverse * s * channels(inputs.gamma).abs()
    dz = a * dz + _stored(a * exact, problem.dtype)
    dx, dweight = convolution_gradients(problem, _enlarged(inputs.x), _enlarged(inputs.weight), dz)
    return Gradients(
        dx,
        dweight,
        None if inputs.bias is None else dz.sum(EVERYTHING),
        None if inputs.gamma is None else s * products.sum(EVERYTHING),
        None if inputs.beta is None else s * size_of_dy.sum(EVERYTHING),
    )


def first_term_of_dx(problem: Problem, inputs: Parameters, dy: Tensor, found: Forward) -> Tensor:
    """Compute conv_transpose(s gamma i dy, weight)."""
    dz = dy.double() * (found.inverse * inputs.scaling_factor)
    if inputs.gamma is not None:
        dz *= channels(inputs.gamma)
    return convolution_gradients(problem, inputs.x.double(), inputs.weight.double(), dz)[0]


def _stored(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the magnitude that allows for rounding ``values`` to ``dtype`` on the way; 0 for float32."""
    return 2 * rounding_error(values.abs(), dtype) / (ELEMENT_LIMIT * UNIT)


def _enlarged(tensor: Tensor) -> Tensor:
    return tensor.double().abs() + UNDERFLOW
