"""The ways to compute the operator that the bench compares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedref import folding
from fusedref.ops.inference import fused_conv_bn_scale
from fusedref.parameters import Parameters
from fusedref.reference import conv_bn_scale

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LAYOUTS = "NCHW", "channels_last"

Call = Callable[[], Tensor]
Prepare = Callable[[Parameters, dict[str, Any]], Call]


@dataclasses.dataclass(frozen=True)
class Peer:
    """A way to compute the operator.

    ``prepare(inputs, options)`` does the work that is done once and returns the call to time. ``options`` are the
    convolution's: stride, padding, dilation and groups.
    """

    name: str
    precision: str
    layout: str
    prepare: Prepare


def eager(inputs: Parameters, options: dict[str, Any]) -> Call:
    """Prepare PyTorch's three operators."""
    return lambda: conv_bn_scale(*inputs, **options)


def compiled(mode: str) -> Prepare:
    """Return how to prepare the three operators through ``torch.compile`` in this mode."""

    def prepare(inputs: Parameters, options: dict[str, Any]) -> Call:
        """Prepare the compiled call of these inputs."""
        torch._dynamo.reset()  # forget kernels that were compiled for another precision
        function = torch.compile(conv_bn_scale, mode=mode, dynamic=False)
        return lambda: function(*inputs, **options)

    return prepare


def folded(inputs: Parameters, options: dict[str, Any]) -> Call:
    """Prepare one library convolution: BatchNorm and scale are folded into its filters beforehand."""
    a, b = folding.affine(*inputs[2:])
    filters = folding.fold(inputs.weight, a)  # keeps the layout of weight
    return lambda: F.conv2d(inputs.x, filters, b, **options)


def ours(inputs: Parameters, options: dict[str, Any], precision: str = "fp32") -> Call:
    """Prepare this package, which computes from raw parameters in every call."""
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
# At the other problems: the peers in fp32, and the fastest peer in each other precision.
PEERS_AT_OTHER_PROBLEMS = [
    peer
    for peer in PEERS
    if peer.name == "folded cuDNN" or (peer.precision == "fp32" and peer.name in ("eager PyTorch", "torch.compile"))
]
