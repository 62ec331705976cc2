"""Evaluation mode on the CPU: torch's convolution with a filter into which BatchNorm and the scale are folded."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedref import folding
from fusedref.parameters import Parameters
from fusedref.problem import Problem
from fusedref.reference import conv_bn_scale


class _Folded(NamedTuple):
    weight: Tensor
    bias: Tensor
    owner: weakref.ref[Tensor]  # the weight that this was made of
    state: tuple[Any, ...]  # of the other arguments at that time
    statistics: tuple[Tensor, Tensor]


_kept: dict[int, _Folded] = {}  # by the weight's id


def evaluate(parameters: Parameters, problem: Problem) -> Tensor:
    """Return y, computed in float32 and rounded once.

    The folded filter is kept as long as the weight lives and no parameter's version, memory, dtype or identity changes.
    As for autograd, a change through ``.data`` is none that shows; one of the running statistics always shows.
    """
    x, weight = parameters[:2]
    state = _state(parameters)
    kept = _kept.get(id(weight))
    if (
        kept is None
        or state is None
        or kept.owner() is not weight
        or kept.state != state
        or not all(torch.equal(*pair) for pair in zip(kept.statistics, parameters[3:5], strict=True))
    ):
        in_float32 = in_dtype(parameters, torch.float32)
        a, b = folding.affine(*in_float32[2:])
        if (a - a + (b - b)).any():  # not finite: infinity and NaN leave NaN, faster than isfinite()
            # Folded into the filter, an infinite or NaN channel would spread where torch's operators do not spread it.
            _kept.pop(id(weight), None)
            return conv_bn_scale(*in_float32, **problem.conv_options).to(x.dtype)
        kept = _keep(parameters, state, folding.fold(in_float32.weight, a), b)
    return F.conv2d(x.float(), kept.weight, kept.bias, **problem.conv_options).to(x.dtype)


def in_dtype(parameters: Parameters, dtype: torch.dtype) -> Parameters:
    """Return the parameters with every tensor in ``dtype``."""
    return Parameters._make(value.to(dtype) if isinstance(value, Tensor) else value for value in parameters)


def _state(parameters: Parameters) -> tuple[Any, ...] | None:
    """Return what changes when a parameter does, None where that cannot be told: inference tensors have no version."""
    try:
        return (
            *[None if t is None else (id(t), t._version, t.data_ptr(), t.dtype) for t in parameters[1:7]],
            parameters.scaling_factor,
            parameters.eps,
        )
    except RuntimeError:
        return None


def _keep(parameters: Parameters, state: tuple[Any, ...] | None, weight: Tensor, bias: Tensor) -> _Folded:
    key = id(parameters.weight)

    def forget(owner: weakref.ref[Tensor]) -> None:
        """Drop what was kept for a weight that is gone, unless another weight has its place."""
        held = _kept.get(key)
        if held is not None and held.owner is owner:
            _kept.pop(key, None)

    owner = weakref.ref(parameters.weight, forget)
    statistics = parameters.running_mean.clone(), parameters.running_var.clone()
    folded = _Folded(weight, bias, owner, state or (), statistics)
    if state is not None:
        _kept[key] = folded
    return folded
