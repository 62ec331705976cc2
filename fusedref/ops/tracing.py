"""The registered operators in the place of a launch, where torch's operators are traced or transformed.

A trace would not see the launch. It records ``torch.ops.fusedref.conv_bn_scale`` instead, whose fake kernel says what
comes out and whose implementation launches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from fusedref.arguments import PLAIN_TYPES, check_precision
from fusedref.ops import by_torch
from fusedref.ops.training import Running
from fusedref.parameters import Parameters

# Bound here because every call asks.
is_compiling = torch.compiler.is_dynamo_compiling
_dispatch_modes = torch._C._len_torch_dispatch_stack
_functorch_level = torch._C._functorch.peek_interpreter_stack
_jit_state = torch._C._get_tracing_state

_WITHOUT_DATA = (*PLAIN_TYPES, FakeTensor, FunctionalTensor)

Convolution = tuple[Any, Any, Any, Any]  # stride, padding, dilation, groups
_OPTIONS = ("stride", "padding", "dilation", "groups")
SAME: list[int] = []  # padding='same', as an argument of the registered operators


def is_traced() -> bool:
    """Return whether torch.compile, a dispatch mode, functorch or torch.jit.trace records or rewrites operators."""
    return bool(is_compiling() or _dispatch_modes() or _functorch_level() is not None or _jit_state() is not None)


def evaluate(parameters: Parameters, convolution: Convolution, precision: str) -> Tensor:
    """Return y with running statistics, by the registered operator if what traces can take it."""
    if not _takes_operators(parameters.tensors):
        return by_torch.evaluate(parameters, dict(zip(_OPTIONS, convolution, strict=True)))
    check_precision(precision, torch.float32)
    y: Tensor = torch.ops.fusedref.conv_bn_scale(*parameters, *numbers(*convolution), precision)
    return y


def train(given: tuple[Any, ...], running: Running | None, convolution: Convolution, precision: str) -> Tensor:
    """Return y with the statistics of the batch, and let torch's operators update ``running``.

    ``given`` has x, weight, bias, gamma, beta, the scale and eps.
    """
    if not _takes_operators(given[:5]):
        x, weight, bias, gamma, beta, scaling_factor, eps = given
        options = dict(zip(_OPTIONS, convolution, strict=True))
        return by_torch.train(x, weight, bias, gamma, beta, scaling_factor, eps, running, options)
    check_precision(precision, torch.float32)
    y: Tensor
    y, mean, var, _ = torch.ops.fusedref.conv_bn_scale_training(*given, *numbers(*convolution), precision)
    if running is not None:
        running.update(mean, var, y.shape[0] * y.shape[2] * y.shape[3])
    return y


def numbers(stride: Any, padding: Any, dilation: Any, groups: int) -> tuple[list[int], list[int], list[int], int]:
    """Return a convolution's options as the registered operators take them."""
    if isinstance(padding, str):
        padding = SAME if padding == "same" else [0, 0]
    return _pair(stride), padding if padding == SAME else _pair(padding), _pair(dilation), groups


def options(stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int) -> dict[str, Any]:
    """Return the options of which ``numbers`` made these, the same objects every time."""
    return dict(zip(_OPTIONS, _kept(tuple(stride), tuple(padding) or "same", tuple(dilation), groups), strict=True))


@lru_cache(maxsize=1024)
def _kept(*convolution: Any) -> Convolution:
    stride, padding, dilation, groups = convolution
    return stride, padding, dilation, groups


def _pair(value: Any) -> list[int]:
    return list(value) if isinstance(value, (tuple, list)) else [value, value]


def _takes_operators(tensors: Sequence[Any]) -> bool:
    """Return whether what traces takes a registered operator: torch.jit.trace and other subclasses of Tensor do not."""
    known = PLAIN_TYPES if is_compiling() else _WITHOUT_DATA
    return (is_compiling() or _jit_state() is None) and all(
        tensor is None or type(tensor) in known for tensor in tensors
    )
