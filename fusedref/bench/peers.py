"""The ways to compute the operator that are timed beside each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from fusedref import folding
from fusedref.ops.inference import fused_conv_bn_scale
from fusedref.reference import conv_bn_scale

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LAYOUTS = "NCHW", "channels_last"


@dataclasses.dataclass(frozen=True)
class Peer:
    """A way to compute the operator: ``prepare(inputs, options)`` does what is done once and returns what is timed.

    ``options`` are the convolution's: stride, padding, dilation and groups.
    """

    name: str
    precision: str
    layout: str
    prepare: Callable[[tuple, dict], Callable[[], torch.Tensor]]


def eager(inputs: tuple, options: dict) -> Callable[[], torch.Tensor]:
    """PyTorch's three operators."""
    return lambda: conv_bn_scale(*inputs, **options)


def compiled(mode: str) -> Callable[[tuple, dict], Callable[[], torch.Tensor]]:
    """The three operators through ``torch.compile`` in this mode."""

    def prepare(inputs: tuple, options: dict) -> Callable[[], torch.Tensor]:
        """The compiled call of these inputs."""
        torch._dynamo.reset()  # or a kernel compiled for another precision would be found again
        function = torch.compile(conv_bn_scale, mode=mode, dynamic=False)
        return lambda: function(*inputs, **options)

    return prepare


def folded(inputs: tuple, options: dict) -> Callable[[], torch.Tensor]:
    """One library convolution whose filters BatchNorm and scale were folded into beforehand."""
    x, weight, *vectors, scaling_factor, eps = inputs
    a, b = folding.affine(*vectors, scaling_factor, eps)
    filters = folding.fold(weight, a)  # keeps the layout of weight
    return lambda: F.conv2d(x, filters, b, **options)


def ours(inputs: tuple, options: dict, precision: str = "fp32") -> Callable[[], torch.Tensor]:
    """This package, from raw parameters at every call."""
    return lambda: fused_conv_bn_scale(*inputs, **options, precision=precision)


PEERS = [
    *[Peer("eager PyTorch", precision, "NCHW", eager) for precision in DTYPES],
    *[Peer("torch.compile", precision, "NCHW", compiled("default")) for precision in DTYPES],
    # Without CUDA graphs, which would copy every input into place before each call.
    *[
        Peer("torch.compile max-autotune", precision, "NCHW", compiled("max-autotune-no-cudagraphs"))
        for precision in DTYPES
    ],
    *[Peer("folded cuDNN", precision, layout, folded) for precision in DTYPES for layout in LAYOUTS],
]
OURS = [
    Peer("fusedref", precision, layout, partial(ours, precision="tf32" if precision == "tf32" else "fp32"))
    for precision in DTYPES
    for layout in LAYOUTS
]
# At the other problems: whom fp32 is compared with, and the best that there is in less.
PEERS_OF_OTHERS = [
    peer
    for peer in PEERS
    if peer.name == "folded cuDNN" or (peer.precision == "fp32" and peer.name in ("eager PyTorch", "torch.compile"))
]
