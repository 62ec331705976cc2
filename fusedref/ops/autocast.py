"""What autocast does to a convolution's arguments, done to the operator's: BatchNorm's vectors stay as they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Bound here because every call asks.
is_any_autocast_enabled = torch._C._is_any_autocast_enabled


def cast(x: Any, weight: Any, bias: Any, precision: str) -> tuple[Any, Any, Any, str]:
    """Return x, weight and bias in autocast's dtype, as a convolution takes them, and a precision that goes with it."""
    if not isinstance(x, Tensor) or not torch.is_autocast_enabled(x.device.type):
        return x, weight, bias, precision
    x, weight, bias = cast_to(torch.get_autocast_dtype(x.device.type), x.device.type, x, weight, bias)
    return x, weight, bias, precision if x.dtype == torch.float32 else "fp32"


def cast_to(dtype: torch.dtype, device_type: str, *tensors: Any) -> tuple[Any, ...]:
    """Return the floating tensors below float64 on the device in ``dtype``, everything else as it is."""
    return tuple([
        tensor.to(dtype)
        if isinstance(tensor, Tensor)
        and tensor.is_floating_point()
        and tensor.dtype != torch.float64
        and tensor.device.type == device_type
        else tensor
        for tensor in tensors
    ])  # fmt: skip
