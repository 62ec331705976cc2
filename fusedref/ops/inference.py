"""y = BatchNorm(Conv2d(x)) * scaling_factor in evaluation mode, from raw parameters to y in one kernel launch."""

from __future__ import annotations

import torch
from torch import Tensor

from fusedref.arguments import check_memory, number
from fusedref.cuda.backend import forced_to_emulator
from fusedref.ops import autocast, by_torch, folded, tracing
from fusedref.ops.autocast import is_any_autocast_enabled
from fusedref.ops.autograd import apply_evaluation, has_tangent
from fusedref.ops.calls import Case, Tensors, find, recall
from fusedref.ops.runner import compiled_function, target_of
from fusedref.ops.scaling import scaled_by_tensor
from fusedref.ops.tracing import is_compiling, is_traced
from fusedref.parameters import Parameters
from fusedref.plans import KernelVariant, plan_for
from fusedref.problem import Problem
from fusedref.reference import conv_bn_scale

FLOAT32_MAX = torch.finfo(torch.float32).max


def fused_conv_bn_scale(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    scaling_factor: float | Tensor,
    eps: float = 1e-5,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    precision: str = "fp32",
) -> Tensor:
    """Compute convolution, BatchNorm with running statistics and a scale in one kernel.

        y = ((conv2d(x, weight) + bias - running_mean) / sqrt(running_var + eps) * gamma + beta) * scaling_factor

    x             [batch, in_channels, height, width], any strides
    weight        [out_channels, in_channels / groups, kernel_height, kernel_width]
    the vectors   [out_channels]; bias, gamma and beta may be None (zeros, ones and zeros)
    returns       [batch, out_channels, out_height, out_width], contiguous; in channels_last order where x or weight is

    All tensors are on one device. x, weight and y have the same dtype: float32, float16, bfloat16 or float64. The
    vectors have that dtype or float32; beside float32 vectors, bias may still have the dtype of x. The arithmetic is
    float32's, and y is rounded once; where torch's convolution is the faster plan (see ``fusedref.plan``), it rounds
    the convolution of halves too, as in torch's three operators. Torch's own operators serve float64.
    ``precision="tf32"`` lets the kernel round the factors of float32 products to tf32's 11 bits where that is faster;
    "fp32" does not. stride, padding (zeros; also 'same' and 'valid'), dilation and groups mean what they mean in
    ``torch.nn.functional.conv2d``. ``scaling_factor`` is a number or a tensor of one element, which may need a
    gradient. Under autocast x, weight and bias are cast as a convolution casts them.

    On a CUDA device the kernel runs in torch's current stream; the first call for a shape compiles it, so make one
    before capturing a CUDA graph. On the CPU torch runs the folded convolution, or the emulator runs the kernel if
    FUSEDREF_DEVICE=emulator. Where torch's operators are traced (torch.compile, torch.export, make_fx), the trace
    records ``torch.ops.fusedref.conv_bn_scale``. Torch's own operators run, in the dtype of x, where a gradient is
    needed that no kernel computes, under functorch's gradients and torch.jit.trace, and for subclasses of Tensor.
    Where gamma is infinite the kernel does as CUDA torch does, not as torch's folded BatchNorm on the CPU.

    Raises TypeError for what is not a dense tensor or a number and for dtypes that are not served or do not fit, and
    ValueError for shapes, devices and sizes that do not fit, freed memory, another precision and a negative eps; the
    message names the argument.
    """
    if type(scaling_factor) is not float and isinstance(scaling_factor, Tensor):
        return scaled_by_tensor(
            fused_conv_bn_scale, is_traced(), x, weight, bias, running_mean, running_var, gamma, beta,
            scaling_factor, eps,
            stride=stride, padding=padding, dilation=dilation, groups=groups, precision=precision,
        )  # fmt: skip
    tensors: tuple[Tensor | None, ...] = (x, weight, bias, running_mean, running_var, gamma, beta)
    call = None if is_compiling() else recall(tensors, stride, padding, dilation, groups, precision)
    if call is None:
        if is_traced():
            given = Parameters(x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps)
            return tracing.evaluate(given, (stride, padding, dilation, groups), precision)
        owner = weight
        if is_any_autocast_enabled():
            x, weight, bias, precision = autocast.cast(x, weight, bias, precision)
        tensors = (x, weight, bias, running_mean, running_var, gamma, beta)
        call = find(tensors, stride, padding, dilation, groups, precision, False, owner)
    if type(scaling_factor) is not float or type(eps) is not float:
        scaling_factor, eps = number("scaling_factor", scaling_factor), number("eps", eps)
    if eps < 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    case = call.case
    if case.bias_differs:
        assert bias is not None
        tensors = (x, weight, bias.to(case.vector_dtype), running_mean, running_var, gamma, beta)
    tangent = has_tangent(tensors)
    if not (case.by_torch or tangent):
        if not (call.requires_grad and torch.is_grad_enabled()):
            return evaluate(case, tensors, scaling_factor, eps, call.ready)
        if case.training_runner is not None and _folds(scaling_factor, eps):
            if not case.on_gpu:
                check_memory(tensors)
            runner = case.runner
            y = runner(tensors if call.ready else runner.contiguous(tensors), scaling_factor, eps)
            recorded: Tensor = apply_evaluation(case, (y,), scaling_factor, eps, *tensors)
            return recorded
    parameters = Parameters._make((*tensors, scaling_factor, eps))
    if case.checked.device.type == "meta":
        return tracing.evaluate(parameters, (stride, padding, dilation, groups), precision)
    return by_torch.evaluate(parameters, case.problem.conv_options)


def evaluate(case: Case, tensors: Tensors, scaling_factor: float, eps: float, ready: bool) -> Tensor:
    """Return y of checked arguments without a gradient: by a kernel, on the CPU by torch's folded convolution.

    ``ready`` says that the tensors lie in memory as a kernel reads them.
    """
    if not _folds(scaling_factor, eps):
        parameters = folded.in_dtype(Parameters._make((*tensors, scaling_factor, eps)), torch.float32)
        y = conv_bn_scale(*parameters, **case.problem.conv_options)
        return y.to(case.problem.dtype)
    if not case.on_gpu:  # on a GPU the launch notices
        check_memory(tensors)
        if not forced_to_emulator():
            parameters = Parameters._make((*tensors, scaling_factor, eps))
            if is_any_autocast_enabled():  # a weight that was cast is new in every call, so folding it would not pay
                return by_torch.evaluate(parameters, case.problem.conv_options)
            return folded.evaluate(parameters, case.problem)
    runner = case.runner
    return runner(tensors if ready else runner.contiguous(tensors), scaling_factor, eps)


def compile_inference(
    problem: Problem, device: torch.device, precision: str = "fp32", channels_last: bool = False
) -> None:
    """Compile what a call at ``problem`` on ``device`` launches. Several threads may do so at a time."""
    chosen = plan_for(problem, target_of(device), KernelVariant(precision, channels_last, problem.dtype))
    for launch in chosen.launches:
        compiled_function(launch, device)


def _folds(scaling_factor: float, eps: float) -> bool:
    """Return whether the numbers can be folded: inf * (u + v) is not inf * u + inf * v."""
    return abs(scaling_factor) <= FLOAT32_MAX and eps <= FLOAT32_MAX
