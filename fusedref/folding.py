"""Fold BatchNorm in evaluation mode and the scale after it into one affine map per channel.

scale * (gamma * (conv + bias - mean) / sqrt(var + eps) + beta) = a * conv + b, with
a = scale * gamma / sqrt(var + eps) and b = scale * beta + a * (bias - mean).
"""

from __future__ import annotations

import torch
from torch import Tensor


def affine(
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    scaling_factor: float,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Return a and b, [channels] in the dtype of ``running_var``, computed in float64 and rounded once.

    Every tensor is [channels]; ``bias`` and ``beta`` may be None (zeros), ``gamma`` None (ones).
    """
    a = scaling_factor / torch.sqrt(running_var.double() + eps)
    if gamma is not None:
        a = a * gamma.double()
    b = a * ((0.0 if bias is None else bias.double()) - running_mean.double())
    if beta is not None:
        b = b + scaling_factor * beta.double()
    return a.to(running_var.dtype), b.to(running_var.dtype)


def fold(weight: Tensor, a: Tensor) -> Tensor:
    """Return ``weight`` [out_channels, ...] times ``a``, so that convolving with it gives a * conv(x, weight)."""
    return weight * a.view(-1, *[1] * (weight.dim() - 1))
