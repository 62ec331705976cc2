"""The three operators in torch: the model that fusedref replaces, and the float64 oracle."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedref.arguments import scale


class ConvBnScale(nn.Module):
    """Conv2d, BatchNorm2d and a multiplication by ``scaling_factor``, one after the other.

    x [batch, in_channels, height, width] -> y [batch, out_channels, out_height, out_width]. ``nn.Conv2d`` takes
    the keyword arguments from stride to padding_mode, ``nn.BatchNorm2d`` takes eps to track_running_stats, and both
    take device and dtype. ``scaling_factor`` is a number or a tensor of one element; a Parameter is trained.

    Raises TypeError where ``scaling_factor`` is neither, ValueError where it is too large for a float or has another
    shape.
    """

    scaling_factor: float | Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        scaling_factor: float | Tensor,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.scaling_factor = scale(scaling_factor)
        # In this order, a seed gives both layers the same parameters as the model that KernelBench defines.
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation=dilation, groups=groups, bias=bias,
            padding_mode=padding_mode, device=device, dtype=dtype,
        )  # fmt: skip
        self.bn = nn.BatchNorm2d(out_channels, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return y [batch, out_channels, out_height, out_width] of x [batch, in_channels, height, width]."""
        y: Tensor = self.bn(self.conv(x)) * self.scaling_factor
        return y

    def extra_repr(self) -> str:
        """Return what ``repr`` adds to the two layers."""
        factor = self.scaling_factor
        return f"scaling_factor={factor.detach() if isinstance(factor, Tensor) else factor}"


def conv_bn_scale(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    scaling_factor: float | Tensor,
    eps: float = 1e-5,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """Compute the model in evaluation mode as a function of its parameters, by three of torch's operators."""
    convolved = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return F.batch_norm(convolved, running_mean, running_var, gamma, beta, eps=eps) * scaling_factor


def oracle(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    scaling_factor: float,
    eps: float = 1e-5,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """Return ((conv + bias - mean) / sqrt(var + eps) * gamma + beta) * scaling_factor in float64."""

    def channels(vector: Tensor) -> Tensor:
        """Return the vector in float64 as [channels, 1, 1]."""
        return vector.double().view(-1, 1, 1)

    with torch.no_grad():
        y = F.conv2d(x.double(), weight.double(), None, stride, padding, dilation, groups)
        if bias is not None:
            y += channels(bias)
        y = (y - channels(running_mean)) / torch.sqrt(channels(running_var) + eps)
        if gamma is not None:
            y *= channels(gamma)
        if beta is not None:
            y += channels(beta)
        return y * scaling_factor
