"""Find the convolutions that a model computes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fusedref.ops.calls import is_channels_last
from fusedref.problem import ELEMENTS, Problem
from fusedref.reference import ConvBnScale


class Layer(NamedTuple):
    """A convolution as a model computes it."""

    problem: Problem
    channels_last: bool


def layers_of(model: nn.Module, example: Any) -> list[Layer]:
    """Return the distinct 2D convolutions that ``model`` computes of ``example``, in the order in which they come.

    ``example`` is an input or a tuple of the inputs. Convolutions in float64, of one image without a batch, and with
    another padding than zeros are left out. The model may be on the meta device. Its mode is left as it is, and the
    forward pass that this takes changes what a forward pass in that mode changes.
    """
    found: dict[Layer, None] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """Add the convolution that ``module`` is called for."""
        x = inputs[0] if inputs else keywords.get("x", keywords.get("input"))
        conv = module.conv if isinstance(module, ConvBnScale) else module
        if isinstance(conv, nn.Conv2d) and isinstance(x, Tensor):
            layer = _layer(conv, x)
            if layer is not None:
                found[layer] = None

    kinds = (nn.Conv2d, ConvBnScale)
    handles = [
        module.register_forward_pre_hook(note, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, kinds)
    ]
    try:
        with torch.no_grad():
            model(*(example if isinstance(example, tuple) else (example,)))
    finally:
        for handle in handles:
            handle.remove()
    return list(found)


def _layer(conv: nn.Conv2d, x: Tensor) -> Layer | None:
    """Return the layer that ``conv`` computes of ``x``, None where fusedref does not serve it."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind) else x.dtype
    if x.dim() != 4 or dtype not in ELEMENTS or conv.padding_mode != "zeros":
        return None
    module: Any = conv  # whose sizes are pairs
    problem = Problem(
        x.shape[0], conv.in_channels, conv.out_channels, x.shape[2], x.shape[3], module.kernel_size,
        stride=module.stride, padding=module.padding, dilation=module.dilation, groups=conv.groups,
        bias=conv.bias is not None, dtype=dtype,
    )  # fmt: skip
    return Layer(problem, is_channels_last(x) or is_channels_last(conv.weight))
