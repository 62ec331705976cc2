"""y = BatchNorm(Conv2d(x)) * scaling_factor in evaluation mode, from raw parameters to y in one kernel launch."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from fusedref import folding
from fusedref.arguments import (
    CheckedArguments,
    check_arguments,
    check_memory,
    check_precision,
    check_size_option,
    describe,
    number,
)
from fusedref.cuda.backend import forced_to_emulator
from fusedref.ops.runner import PlanRunner, compiled_function, target_of
from fusedref.parameters import Parameters
from fusedref.plans import KernelVariant, plan_for
from fusedref.problem import Problem
from fusedref.reference import conv_bn_scale

FLOAT32_MAX = torch.finfo(torch.float32).max

# What records or rewrites torch's operators (make_fx, FakeTensor, vmap) would not see a launch: torch's operators must
# run there. Bound here because every call looks.
_dispatch_modes = torch._C._len_torch_dispatch_stack
_functorch_level = torch._C._functorch.peek_interpreter_stack


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch.compile cannot trace a launch
def fused_conv_bn_scale(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    scaling_factor: float,
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
    returns       [batch, out_channels, out_height, out_width], contiguous; in channels_last order where x is

    All tensors are on one device. x, weight and y have the same dtype: float32, float16 or bfloat16. The vectors have
    that dtype or float32; beside float32 vectors, bias may still have the dtype of x. The arithmetic is float32's, and
    y is rounded once. ``precision="tf32"`` lets the kernel round the factors of float32 products to tf32's 11 bits
    where that is faster; "fp32" does not. stride, padding (zeros; also 'same' and 'valid'), dilation and groups mean
    what they mean in ``torch.nn.functional.conv2d``.

    On a CUDA device the kernel runs in torch's current stream; the first call for a shape compiles it, so make one
    before capturing a CUDA graph. On the CPU torch runs the folded convolution, or the emulator runs the kernel if
    FUSEDREF_DEVICE=emulator. Torch's own operators run, in the dtype of x, where a gradient is needed, while
    torch's operators are being traced or transformed (make_fx, vmap, a dispatch mode), and for subclasses of Tensor.
    Where gamma is infinite the kernel does as CUDA torch does, not as torch's folded BatchNorm on the CPU.

    Raises TypeError for what is not a dense tensor or a number and for dtypes that are not served or do not fit, and
    ValueError for shapes, devices and sizes that do not fit, freed memory, another precision and a negative eps; the
    message names the argument.
    """
    tensors = (x, weight, bias, running_mean, running_var, gamma, beta)
    if _dispatch_modes() or _functorch_level() is not None:
        return _by_torch(Parameters(*tensors, scaling_factor, eps), _conv_options(stride, padding, dilation, groups))
    if precision != "fp32":  # it may be anything, even what has no hash
        check_precision(precision, torch.float32)
    try:
        case = _case(
            describe(tensors),
            stride if type(stride) is int else check_size_option("stride", stride),
            padding if type(padding) is int else check_size_option("padding", padding),
            dilation if type(dilation) is int else check_size_option("dilation", dilation),
            groups if type(groups) is int else check_size_option("groups", groups),
            precision,
        )
    except _JitTraced:
        return _by_torch(Parameters(*tensors, scaling_factor, eps), _conv_options(stride, padding, dilation, groups))
    if type(scaling_factor) is not float or type(eps) is not float:
        scaling_factor, eps = number("scaling_factor", scaling_factor), number("eps", eps)
    if eps < 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    if case.bias_differs:
        assert bias is not None
        tensors = (x, weight, bias.to(case.vector_dtype), running_mean, running_var, gamma, beta)

    if not case.plain or _needs_gradient(tensors):
        return _by_torch(Parameters(*tensors, scaling_factor, eps), case.problem.conv_options)
    if not (abs(scaling_factor) <= FLOAT32_MAX and eps <= FLOAT32_MAX):
        # An infinite factor cannot be folded: inf * (u + v) is not inf * u + inf * v.
        parameters = _in_float32(Parameters(*tensors, scaling_factor, eps))
        return conv_bn_scale(*parameters, **case.problem.conv_options).to(x.dtype)
    on_gpu = x.is_cuda
    if not on_gpu:  # on a GPU the launch notices
        check_memory(tensors)
    if on_gpu or forced_to_emulator():
        if case.contiguous:
            return case.nchw_runner(tensors, scaling_factor, eps)
        channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        runner = case.channels_last_runner if channels_last else case.nchw_runner
        return runner(runner.contiguous(tensors), scaling_factor, eps)
    return _folded_by_torch(Parameters(*tensors, scaling_factor, eps), case.problem)


def compile_inference(
    problem: Problem, device: torch.device, precision: str = "fp32", channels_last: bool = False
) -> None:
    """Compile what a call at ``problem`` on ``device`` launches. Several threads may do so at a time."""
    chosen = plan_for(problem, target_of(device), KernelVariant(precision, channels_last, problem.dtype))
    for launch in chosen.launches:
        compiled_function(launch, device)


class _JitTraced(Exception):
    """torch.jit.trace records torch's operators; it would not see a launch."""


class _Case:
    """Checked arguments, and the runners that serve them, each made when first needed."""

    def __init__(self, checked: CheckedArguments) -> None:
        self.checked = checked
        self.problem, self.vector_dtype = checked.problem, checked.vector_dtype
        self.bias_differs, self.contiguous, self.plain = checked.bias_differs, checked.contiguous, checked.plain

    @cached_property
    def nchw_runner(self) -> PlanRunner:
        """Return the runner for tensors in NCHW order."""
        return self._runner(channels_last=False)

    @cached_property
    def channels_last_runner(self) -> PlanRunner:
        """Return the runner for x and y with their channels last."""
        return self._runner(channels_last=True)

    def _runner(self, channels_last: bool) -> PlanRunner:
        device = self.checked.device
        variant = KernelVariant(self.checked.precision, channels_last, self.vector_dtype)
        chosen = plan_for(self.problem, target_of(device), variant)
        return PlanRunner(chosen, self.problem, device)


@lru_cache(maxsize=1024)
def _case(descriptions: Any, stride: Any, padding: Any, dilation: Any, groups: Any, precision: str) -> _Case:
    """Return the case of these arguments, from the cache if it was checked before; raise as ``check_arguments``.

    Raise _JitTraced under torch.jit.trace, where sizes are tensors, new ones in every call: the cache never has them.
    """
    if torch._C._get_tracing_state() is not None:
        raise _JitTraced
    return _Case(check_arguments(descriptions, stride, padding, dilation, groups, precision))


def _conv_options(stride: Any, padding: Any, dilation: Any, groups: Any) -> dict[str, Any]:
    return {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


def _folded_by_torch(parameters: Parameters, problem: Problem) -> Tensor:
    in_float32 = _in_float32(parameters)
    x, weight = in_float32[:2]
    a, b = folding.affine(*in_float32[2:])
    if not (a - a + (b - b)).any():  # finite: infinity and NaN leave NaN, faster than isfinite()
        y = F.conv2d(x, folding.fold(weight, a), b, **problem.conv_options)
    else:
        # Folded into the filter, an infinite or NaN channel would spread where torch's operators do not spread it.
        y = conv_bn_scale(*in_float32, **problem.conv_options)
    return y.to(parameters.x.dtype)


def _by_torch(parameters: Parameters, conv_options: dict[str, Any]) -> Tensor:
    """Return y by torch's operators in the dtype of x, with a gradient. The convolution takes a bias of that dtype."""
    if parameters.bias is not None:
        parameters = parameters._replace(bias=parameters.bias.to(parameters.x.dtype))
    return conv_bn_scale(*parameters, **conv_options)


def _in_float32(parameters: Parameters) -> Parameters:
    return Parameters._make(value.float() if isinstance(value, Tensor) else value for value in parameters)


def _needs_gradient(tensors: tuple[Tensor | None, ...]) -> bool:
    """Return whether autograd must see this call, in backward or forward mode."""
    if torch.is_grad_enabled() and any([tensor is not None and tensor.requires_grad for tensor in tensors]):
        return True
    return forward_ad._current_level >= 0 and any(
        [tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors]  # type: ignore[no-untyped-call]
    )
