"""A scale that is a tensor, which may need a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fusedref.arguments import scale
from fusedref.cuda.backend import forced_to_emulator


def scaled_by_tensor(
    function: Callable[..., Tensor],
    traced: bool,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    factor: Tensor,
    eps: float,
    **options: Any,
) -> Tensor:
    """Return ``function`` of the arguments, times ``factor``.

    Where a kernel runs, the factor goes into gamma and beta, by torch's operators, which know its gradient: to multiply
    y would take another pass. A factor with dimensions may decide the dtype of y, so it multiplies y in any case.
    """
    scale(factor)
    folds = factor.dim() == 0 and (traced or not isinstance(x, Tensor) or x.is_cuda or forced_to_emulator())
    if folds:
        if gamma is None:
            like = next((vector for vector in (beta, running_mean) if vector is not None), None)
            dtype = torch.promote_types(weight.dtype, torch.float32) if like is None else like.dtype
            gamma = torch.ones(weight.shape[:1], dtype=dtype, device=weight.device)
        gamma, beta = gamma * factor, None if beta is None else beta * factor
    y = function(x, weight, bias, running_mean, running_var, gamma, beta, 1.0, eps, **options)
    return y if folds else y * factor
