"""Compute with torch's own operators, where no kernel of ours runs or autograd must see each operator."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedref.ops.training import Gradients, Needs, Running
from fusedref.parameters import Parameters
from fusedref.reference import conv_bn_scale


def evaluate(parameters: Parameters, conv_options: dict[str, Any]) -> Tensor:
    """Return y with running statistics, in the dtype of x. The convolution takes a bias of that dtype."""
    return conv_bn_scale(*parameters._replace(bias=_like(parameters.bias, parameters.x)), **conv_options)


def train(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    scaling_factor: float | Tensor,
    eps: float,
    running: Running | None,
    conv_options: dict[str, Any],
) -> Tensor:
    """Return y with the statistics of the batch, in the dtype of x; update ``running`` as ``nn.BatchNorm2d`` does."""
    mean = var = None
    momentum = 0.0
    if running is not None:
        mean, var, batches, given = running
        if batches is not None:
            batches.add_(1)
        momentum = given if given is not None else 0.0 if batches is None else 1.0 / float(batches)
    z = F.conv2d(x, weight, _like(bias, x), **conv_options)
    return F.batch_norm(z, mean, var, gamma, beta, True, momentum, eps) * scaling_factor


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    scaling_factor: float,
    eps: float,
    conv_options: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y, the mean and biased variance of the batch, and the convolution z, which ``backward`` takes.

    The statistics are float64 for a float64 x, else float32. y alone has a gradient.
    """
    z = convolve(x, weight, _like(bias, x), **conv_options)
    kept = z.detach()
    wide = kept if z.dtype == torch.float64 else kept.float()
    if z.numel():
        var, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
    else:
        mean, var = wide.new_zeros(z.shape[1]), wide.new_ones(z.shape[1])
    y = F.batch_norm(z, None, None, gamma, beta, True, 0.0, eps) * scaling_factor
    return y, mean, var, kept


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    mean: Tensor,
    var: Tensor,
    z: Tensor | None,
    scaling_factor: float,
    eps: float,
    conv_options: dict[str, Any],
    needs: Needs,
    training: bool,
) -> Gradients:
    """Return the gradients of x, weight, bias, gamma and beta, None where they are not needed.

    ``mean`` and ``var`` are the batch's in training, else the running ones. ``z`` is the convolution. If it is None, it
    is computed again where needed, and torch can differentiate the gradients.
    """
    needs_dz = any(needs[:3])
    vector = mean if gamma is None else gamma
    if z is None and (training or needs[3]):
        z = convolve(x, weight, _like(bias, x), **conv_options)
    scaled = dy * scaling_factor
    inverse = torch.rsqrt(var + eps)
    if training:
        assert z is not None
        dz, dgamma, dbeta = torch.ops.aten.native_batch_norm_backward(
            scaled, z, _like(gamma, mean), None, None, mean, inverse, True, eps, [needs_dz, needs[3], needs[4]]
        )
    else:
        channels = (1, -1, 1, 1)
        wide = scaled.to(torch.promote_types(scaled.dtype, torch.float32))
        a = inverse if gamma is None else inverse * gamma
        dz = (wide * a.view(channels)).to(x.dtype) if needs_dz else None
        dgamma = dbeta = None
        if needs[3]:
            assert z is not None
            dgamma = (wide * (z - mean.view(channels)) * inverse.view(channels)).sum((0, 2, 3))
        if needs[4]:
            dbeta = wide.sum((0, 2, 3))
    dx = dweight = dbias = None
    if needs_dz:
        dx, dweight, dbias = _convolution_backward(dz, x, weight, needs[:3], **conv_options)
    return (
        dx if needs[0] else None,
        dweight if needs[1] else None,
        _like(dbias, bias) if needs[2] else None,  # type: ignore[arg-type]  # bias is there if it needs a gradient
        _like(dgamma, vector) if needs[3] else None,
        _like(dbeta, vector) if needs[4] else None,
    )


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor:
    """Return the convolution. Unlike conv2d with padding='same', take a weight whose sizes a trace leaves open."""
    (top, bottom), (left, right) = _pads(weight, padding, dilation)
    even = top == bottom and left == right
    if not even:
        x = F.pad(x, (left, right, top, bottom))
    pads = (top, left) if even else (0, 0)
    return torch.convolution(x, weight, bias, _pair(stride), pads, _pair(dilation), False, (0, 0), groups)


def _convolution_backward(
    dz: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool, bool], stride: Any, padding: Any, dilation: Any,
    groups: int,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Return the convolution's gradients. torch's operator pads both sides alike, so other padding is written out."""
    (top, bottom), (left, right) = _pads(weight, padding, dilation)
    even = top == bottom and left == right
    if not even:
        x = F.pad(x, (left, right, top, bottom))
    pads = (top, left) if even else (0, 0)
    dx, dweight, dbias = torch.ops.aten.convolution_backward(
        dz, x, weight, [weight.shape[0]], _pair(stride), pads, _pair(dilation), False, (0, 0), groups, needs
    )  # fmt: skip
    if needs[0] and not even:
        dx = dx[:, :, top : dx.shape[2] - bottom, left : dx.shape[3] - right]
    return dx, dweight, dbias


def _pads(weight: Tensor, padding: Any, dilation: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return ((top, bottom), (left, right)); 'same' puts an odd row or column at the bottom or right."""
    if padding == "same":
        down, across = (d * (k - 1) for d, k in zip(_pair(dilation), weight.shape[2:], strict=True))
        return (down // 2, down - down // 2), (across // 2, across - across // 2)
    vertical, horizontal = (0, 0) if padding == "valid" else _pair(padding)
    return (vertical, vertical), (horizontal, horizontal)


def _pair(value: Any) -> tuple[int, int]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _like(vector: Tensor | None, other: Tensor) -> Tensor | None:
    """Return ``vector`` in the dtype of ``other``."""
    return vector if vector is None else vector.to(other.dtype)
