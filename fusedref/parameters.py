"""The nine arguments of the operator, in the order in which every implementation takes them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Parameters(NamedTuple):
    """x, the parameters of Conv2d and BatchNorm2d, the scale and eps.

    x is [batch, in_channels, height, width]; weight is [out_channels, in_channels / groups, kernel_height,
    kernel_width]; the five vectors are [out_channels]. ``bias``, ``gamma`` and ``beta`` may be None, which means
    zeros, ones and zeros.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    scaling_factor: float
    eps: float = 1e-5

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return the first seven arguments, which are tensors or None."""
        return self[:7]


TENSOR_NAMES = Parameters._fields[:7]
OPTIONAL_NAMES = ("bias", "gamma", "beta")  # None means the neutral vector
