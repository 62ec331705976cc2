"""Copy a user's model."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def copied(model: Model, *, shares_parameters: bool = False) -> Model:
    """Return a deep copy of ``model``; raise TypeError where copy.deepcopy cannot make one."""
    memo: dict[int, Any] = {}
    for module in model.modules():  # deepcopy refuses what autograd computed, such as the weight of weight_norm
        computed = [value for value in vars(module).values() if isinstance(value, Tensor) and not value.is_leaf]
        memo |= {id(value): value.detach().clone() for value in computed}
    if shares_parameters:
        memo |= {id(parameter): parameter for parameter in model.parameters()}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever a part of the model raises
        message = f"model must be one that copy.deepcopy can copy: {type(error).__name__}: {error}"
        raise TypeError(message) from error
