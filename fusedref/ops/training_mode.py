"""y = BatchNorm(Conv2d(x)) * scaling_factor in training mode: with the statistics of the batch, and with gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from fusedref.arguments import check_memory, number
from fusedref.ops import autocast, by_torch, tracing
from fusedref.ops.autocast import is_any_autocast_enabled
from fusedref.ops.autograd import apply_training, has_tangent, train
from fusedref.ops.calls import find, recall
from fusedref.ops.scaling import scaled_by_tensor
from fusedref.ops.tracing import is_compiling, is_traced
from fusedref.ops.training import Running


def fused_conv_bn_scale_training(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    scaling_factor: float | Tensor,
    eps: float = 1e-5,
    *,
    momentum: float | None = 0.1,
    num_batches_tracked: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    precision: str = "fp32",
) -> Tensor:
    """Compute convolution, BatchNorm with the statistics of the batch and a scale, and update the running statistics.

        z = conv2d(x, weight) + bias;  y = ((z - mean(z)) / sqrt(var(z) + eps) * gamma + beta) * scaling_factor

    mean and var are over batch, height and width, and var is biased. Tensors and options are those of
    ``fused_conv_bn_scale``. Both running statistics may be None. Else they are updated in place as ``nn.BatchNorm2d``
    does: running = (1 - momentum) * running + momentum * new, with the unbiased variance. ``num_batches_tracked``
    (int64, without dimensions), if given, is increased by one; ``momentum=None`` then means 1 / num_batches_tracked.

    Raises what ``fused_conv_bn_scale`` raises, and ValueError where a channel has one pixel alone, as torch does.
    """
    if type(scaling_factor) is not float and isinstance(scaling_factor, Tensor):
        return scaled_by_tensor(
            fused_conv_bn_scale_training, is_traced(), x, weight, bias, running_mean, running_var, gamma, beta,
            scaling_factor, eps, momentum=momentum, num_batches_tracked=num_batches_tracked, stride=stride,
            padding=padding, dilation=dilation, groups=groups, precision=precision,
        )  # fmt: skip
    running = None
    if running_mean is not None and running_var is not None:
        running = Running(running_mean, running_var, num_batches_tracked, momentum)
    everything = (x, weight, bias, running_mean, running_var, gamma, beta)
    call = None if is_compiling() else recall(everything, stride, padding, dilation, groups, precision, True)
    if call is None:
        if is_traced():
            given = (x, weight, bias, gamma, beta, scaling_factor, eps)
            return tracing.train(given, running, (stride, padding, dilation, groups), precision)
        owner = weight
        if is_any_autocast_enabled():
            x, weight, bias, precision = autocast.cast(x, weight, bias, precision)
        everything = (x, weight, bias, running_mean, running_var, gamma, beta)
        call = find(everything, stride, padding, dilation, groups, precision, True, owner)
    if type(scaling_factor) is not float or type(eps) is not float:
        scaling_factor, eps = number("scaling_factor", scaling_factor), number("eps", eps)
    if eps < 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    case = call.case
    if case.bias_differs:
        assert bias is not None
        bias = bias.to(case.vector_dtype)
    tensors = (x, weight, bias, gamma, beta)
    runner = case.training_runner
    if runner is None or has_tangent(tensors):
        if case.checked.device.type == "meta":
            given = (*tensors, scaling_factor, eps)
            return tracing.train(given, running, (stride, padding, dilation, groups), precision)
        if not case.by_torch:
            check_memory(everything)
        return by_torch.train(*tensors, scaling_factor, eps, running, case.problem.conv_options)
    if not case.on_gpu:  # on a GPU the launch notices
        check_memory(everything)
    results = train(runner, case, tensors, scaling_factor, eps, running, call.ready)
    if call.requires_grad and torch.is_grad_enabled():
        y: Tensor = apply_training(case, results, scaling_factor, eps, *tensors)
        return y
    return results[0]
