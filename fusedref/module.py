"""The drop-in module: what ``ConvBnScale`` computes, with its parameters under the same names, in one kernel."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from fusedref.arguments import check_precision, scale
from fusedref.ops import synchronised
from fusedref.ops.inference import fused_conv_bn_scale
from fusedref.ops.tracing import is_traced
from fusedref.ops.training_mode import fused_conv_bn_scale_training
from fusedref.reference import ConvBnScale

# torch.fx.symbolic_trace takes the calls below for one node each.
torch.fx.wrap("fused_conv_bn_scale")
torch.fx.wrap("fused_conv_bn_scale_training")


class FusedConvBnScale(ConvBnScale):
    """``scaling_factor * BatchNorm2d(Conv2d(x))`` in one kernel launch, as a drop-in for the three operators.

    Takes what ``ConvBnScale`` takes and builds ``conv`` and ``bn`` as it does, so seeds give the same parameters and
    state_dicts carry over both ways. x is [batch, in_channels, height, width]. ``precision="tf32"`` allows to round the
    factors of float32 products to tf32; it has no meaning for a module in half precision. With a ``process_group`` of
    torch.distributed, or a ``torch.nn.SyncBatchNorm`` as ``bn``, the processes share the statistics of their batches in
    training.

    ``fused_conv_bn_scale`` serves evaluation mode and ``fused_conv_bn_scale_training`` training mode; both say what
    they refuse. They take float32, float16 and bfloat16 (``.half()``, ``.bfloat16()``, also with ``bn`` kept in
    float32), and float64 by torch's operators. The layers themselves run where one of them is not the plain one: a
    padding_mode other than zeros, a hook (the layer's own or a global one), a subclass, another kind of layer, a
    replaced ``forward``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        scaling_factor: float | Tensor,
        *,
        precision: str = "fp32",
        process_group: Any = None,
        **options: Any,
    ) -> None:
        """Build the layers as ``ConvBnScale`` does; raise ValueError for another precision."""
        super().__init__(in_channels, out_channels, kernel_size, scaling_factor, **options)
        check_precision(precision, torch.float32)
        if process_group is not None:
            convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
            self.bn = convert(self.bn, process_group)
        self.precision = precision

    @classmethod
    def from_modules(
        cls,
        conv: nn.Conv2d,
        bn: nn.BatchNorm2d | nn.SyncBatchNorm,
        scaling_factor: float | Tensor,
        *,
        precision: str = "fp32",
    ) -> FusedConvBnScale:
        """Return a module that shares the given layers, without a copy, and takes its mode from ``bn``.

        Raise TypeError where an argument is something else, ValueError where the channels do not match or for another
        precision.
        """
        check_precision(precision, torch.float32)
        for name, layer, needed in (("conv", conv, nn.Conv2d), ("bn", bn, nn.BatchNorm2d)):
            if not isinstance(layer, (needed, nn.SyncBatchNorm) if name == "bn" else needed):
                got = layer.__name__ + " itself" if isinstance(layer, type) else type(layer).__name__
                raise TypeError(f"{name} must be a torch.nn.{needed.__name__}, got {got}")
        if bn.num_features != conv.out_channels:
            raise ValueError(
                f"bn must have the out_channels of conv, {conv.out_channels}, as num_features, got {bn.num_features}"
            )
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        module.conv, module.bn, module.scaling_factor = conv, cast(nn.BatchNorm2d, bn), scale(scaling_factor)
        module.precision = precision
        module.training = bn.training
        return module

    def forward(self, x: Tensor) -> Tensor:
        """Return y of x: by fused kernels where they serve, else by torch's own operators."""
        conv: Any = self._modules.get("conv")
        bn: Any = self._modules.get("bn")
        if not (is_plain(conv, _CONV) and is_plain(bn, _BN) and fuses(bn)):
            return super().forward(x)
        return run_layers(x, conv, bn, self.scaling_factor, self.precision)

    def extra_repr(self) -> str:
        """Return what ``repr`` adds to the two layers."""
        return f"{super().extra_repr()}, precision={self.precision!r}"


_CONV, _BN = (nn.Conv2d,), (nn.BatchNorm2d, nn.SyncBatchNorm)


def is_plain(layer: object, kinds: tuple[type, ...]) -> bool:
    """Return whether calling ``layer`` does what its kind does on zeros around the image, and nothing else."""
    if type(layer) not in kinds:
        return False
    own = layer.__dict__
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or "_conv_forward" in own
        or own.get("padding_mode", "zeros") != "zeros"
    )


def fuses(bn: Any) -> bool:
    """Return whether ``run_layers`` can take the place of plain layers now.

    It cannot with a hook for the calls of all modules, nor where the statistics of processes would be traced.
    """
    if _has_global_hook():
        return False
    return not (_shares_statistics(bn) and is_traced() and synchronised.group_of(bn) is not None)


def run_layers(x: Tensor, conv: Any, bn: Any, scaling_factor: float | Tensor, precision: str) -> Tensor:
    """Return y of x through plain layers, by the operators in the mode of ``bn``."""
    weight, bias, mean, var, gamma, beta, batches = _tensors(conv, bn)
    if precision != "fp32" and not (isinstance(x, Tensor) and x.dtype == torch.float32):
        precision = "fp32"
    if not bn.training and mean is not None:
        return fused_conv_bn_scale(
            x, weight, bias, mean, var, gamma, beta, scaling_factor, bn.eps,
            stride=conv.stride, padding=conv.padding, dilation=conv.dilation, groups=conv.groups,
            precision=precision,
        )  # fmt: skip
    if _shares_statistics(bn):
        group = synchronised.group_of(bn)
        if group is not None:
            return synchronised.train(nn.Conv2d.forward(conv, x), bn, scaling_factor, group)
    if not bn.training or not bn.track_running_stats:  # the batch's statistics, and nothing to update
        mean = var = None
    return fused_conv_bn_scale_training(
        x, weight, bias, mean, var, gamma, beta, scaling_factor, bn.eps,
        momentum=bn.momentum, num_batches_tracked=batches,
        stride=conv.stride, padding=conv.padding, dilation=conv.dilation, groups=conv.groups,
        precision=precision,
    )  # fmt: skip


def _shares_statistics(bn: object) -> bool:
    """Return whether ``bn`` may take the statistics of several processes together."""
    return isinstance(bn, nn.SyncBatchNorm) and bn.training


def _tensors(conv: nn.Conv2d, bn: nn.SyncBatchNorm) -> tuple[Any, ...]:
    """Return weight, bias, the running statistics, gamma, beta and the counter of batches.

    They are read from dictionaries, because an attribute that nn.Module looks up costs ten times as much.
    """
    try:
        parameters, vectors, statistics = conv._parameters, bn._parameters, bn._buffers
        return (
            parameters["weight"], parameters["bias"], statistics["running_mean"], statistics["running_var"],
            vectors["weight"], vectors["bias"], statistics["num_batches_tracked"],
        )  # fmt: skip
    except KeyError:  # hypernetworks and replicas of DataParallel have plain tensors
        return conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.num_batches_tracked


def _has_global_hook() -> bool:
    """Return whether a hook is registered for the calls of all modules."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )
