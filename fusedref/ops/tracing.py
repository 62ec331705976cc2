"""The registered operators in the place of a launch, where torch's operators are traced or transformed.

A trace would not see the launch. It records ``torch.ops.fusedref.conv_bn_scale`` instead, whose fake kernel says what
comes out and whose implementation launches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from fusedref.arguments import PLAIN_TYPES, check_precision
from fusedref.ops import by_torch
from fusedref.ops.training import Running
from fusedref.parameters import Parameters

_dispatch_modes = torch._C._len_torch_dispatch_stack
_functorch_level = torch._C._functorch.peek_interpreter_stack
_jit_state = torch._C._get_tracing_state

SAME: list[int] = []  # padding='same', as an argument of the registered operators


def is_traced() -> bool:
    """Return whether something records or rewrites torch's operators: a dispatch mode, functorch, torch.jit.trace."""
    return bool(_dispatch_modes()) or _functorch_level() is not None or _jit_state() is not None


def evaluate(parameters: Parameters, conv_options: dict[str, Any], precision: str) -> Tensor:
    """Return y with running statistics, by the registered operator if what traces can take it."""
    if not torch.compiler.is_dynamo_compiling() and not _takes_operators(parameters.tensors):
        return by_torch.evaluate(parameters, conv_options)
    check_precision(precision, torch.float32)
    y: Tensor = torch.ops.fusedref.conv_bn_scale(*parameters, *numbers(**conv_options), precision)
    return y


def train(parameters: Parameters, running: Running | None, conv_options: dict[str, Any], precision: str) -> Tensor:
    """Return y with the statistics of the batch, and let torch's operators update ``running``."""
    x, weight, bias, _, _, gamma, beta, scaling_factor, eps = parameters
    given = x, weight, bias, gamma, beta
    if not torch.compiler.is_dynamo_compiling() and not _takes_operators(given):
        return by_torch.train(*given, scaling_factor, eps, running, conv_options)
    check_precision(precision, torch.float32)
    y: Tensor
    y, mean, var, _ = torch.ops.fusedref.conv_bn_scale_training(
        *given, scaling_factor, eps, *numbers(**conv_options), precision
    )
    if running is not None:
        running.update(mean, var, y.shape[0] * y.shape[2] * y.shape[3])
    return y


def numbers(stride: Any, padding: Any, dilation: Any, groups: int) -> tuple[list[int], list[int], list[int], int]:
    """Return a convolution's options as the registered operators take them."""
    if isinstance(padding, str):
        padding = SAME if padding == "same" else [0, 0]
    return _pair(stride), padding if padding == SAME else _pair(padding), _pair(dilation), groups


def options(stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int) -> dict[str, Any]:
    """Return the options of which ``numbers`` made these."""
    return {
        "stride": tuple(stride),
        "padding": tuple(padding) if padding else "same",
        "dilation": tuple(dilation),
        "groups": groups,
    }


def _pair(value: Any) -> list[int]:
    return list(value) if isinstance(value, (tuple, list)) else [value, value]


def _takes_operators(tensors: Sequence[Any]) -> bool:
    """Return whether what traces can take a registered operator.

    torch.jit.trace, the gradients of functorch and other subclasses of Tensor know torch's own operators alone.
    """
    if _jit_state() is not None:
        return False
    if _functorch_level() is not None and any(
        level.key() != torch._C._functorch.TransformType.Vmap
        for level in torch._C._functorch.get_interpreter_stack() or ()
    ):
        return False
    return all(tensor is None or type(tensor) in (*PLAIN_TYPES, FakeTensor, FunctionalTensor) for tensor in tensors)
