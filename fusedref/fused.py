"""y = BatchNorm(Conv2d(x)) * scaling_factor, from raw parameters to y in one kernel launch."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from fusedref import folding
from fusedref.cuda.compile import allow_shared, architecture, source_module
from fusedref.cuda.tensors import Out, launch
from fusedref.planning import EMULATED, Plan, check_precision, plan
from fusedref.problem import ELEMENTS, Problem
from fusedref.reference import conv_bn_scale, number

KERNELS = Path(__file__).parent / "kernels"
NAMES = ("x", "weight", "bias", "running_mean", "running_var", "gamma", "beta")
MAY_BE_NONE = ("bias", "gamma", "beta")
FLOAT32_MAX = torch.finfo(torch.float32).max


@torch.compiler.disable  # a launch is nothing that torch.compile could look into
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
    """Convolution, BatchNorm with running statistics and a scale, fused into one kernel.

        y = ((conv2d(x, weight) + bias - running_mean) / sqrt(running_var + eps) * gamma + beta) * scaling_factor

    x             [batch, in_channels, height, width], any strides
    weight        [out_channels, in_channels / groups, kernel_height, kernel_width]
    the vectors   [out_channels]; bias, gamma and beta may be None (zeros, ones and zeros)
    returns       [batch, out_channels, out_height, out_width], contiguous; in channels_last order where x is

    All tensors are on one device. x and weight are float32, float16 or bfloat16, both the same, and y is as they are;
    the vectors have that dtype too or are float32 (then bias may still have that of x). All arithmetic is in float32,
    and y is rounded once. ``precision="tf32"`` allows to round the factors of float32 products to tf32's 11 bits, where
    that is faster; "fp32" does not. stride, padding (zeros; also 'same' and 'valid'), dilation and groups are those of
    ``torch.nn.functional.conv2d``. On a CUDA device the kernel runs in torch's current stream; the first call
    for a shape compiles it, so make one before capturing a CUDA graph. On the CPU torch runs the folded convolution,
    or the emulator the kernel where FUSEDREF_DEVICE=emulator. Where a gradient is needed torch's own operators run, in
    the dtype of x.
    Where gamma is infinite the kernel does as CUDA torch does, not as torch's folded BatchNorm on the CPU.

    Raises TypeError for what is not a dense tensor or a number and for dtypes that are not served or do not fit, and
    ValueError for shapes, devices and sizes that do not fit, another precision and a negative eps; the message names
    the argument.
    """
    tensors = (x, weight, bias, running_mean, running_var, gamma, beta)
    stride, padding = _hashable("stride", stride), _hashable("padding", padding)
    dilation, groups = _hashable("dilation", dilation), _hashable("groups", groups)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    problem, vectors = _problem(tuple([_described(tensor) for tensor in tensors]), **options)
    check_precision(precision, problem.dtype)
    scaling_factor, eps = number("scaling_factor", scaling_factor), number("eps", eps)
    if eps < 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    if bias is not None and bias.dtype != vectors:  # a convolution in half precision before a float32 BatchNorm
        bias = bias.to(vectors)
        tensors = (x, weight, bias, running_mean, running_var, gamma, beta)

    if _needs_gradient(tensors):
        return _by_torch(tensors, scaling_factor, eps, options)
    if not (abs(scaling_factor) <= FLOAT32_MAX and abs(eps) <= FLOAT32_MAX):
        # An infinite factor cannot be folded: inf * (u + v) is not inf * u + inf * v.
        return conv_bn_scale(*_in_float32(tensors), scaling_factor, eps, **options).to(x.dtype)
    if x.is_cuda or forced_to_emulator():
        channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        chosen = plan(problem, *_card(x.device), precision, channels_last, vectors)
        return run(chosen, problem, tensors, scaling_factor, eps)
    return _folded_by_torch(tensors, scaling_factor, eps, options)


def run(
    chosen: Plan, problem: Problem, tensors: tuple[Tensor | None, ...], scaling_factor: float, eps: float
) -> Tensor:
    """y of ``problem``, by the plan ``chosen``. ``tensors`` are x, weight and the five vectors, in order."""
    x, *parameters = tensors
    memory_format = torch.channels_last if chosen.channels_last else torch.contiguous_format
    y = torch.empty(problem.output_shape, dtype=problem.dtype, device=x.device, memory_format=memory_format)
    if y.numel() == 0:
        return y
    x = x.contiguous(memory_format=memory_format)
    memory = (x, y) if not chosen.channels_last else (x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1))
    launch(
        _function(chosen.kernel, chosen.macros, chosen.shared, y.device),
        memory[0],
        *[tensor if tensor is None else tensor.contiguous() for tensor in parameters],
        np.float32(scaling_factor),
        np.float32(eps),
        Out(memory[1]),
        np.int64(problem.batch),
        grid=chosen.grid,
        block=chosen.block,
        shared=chosen.shared,
    )
    return y


@lru_cache(maxsize=1024)
def _function(kernel: str, macros: tuple[tuple[str, int], ...], shared: int, device: torch.device):
    options = tuple(f"-D{name}={value}" for name, value in macros)
    function = source_module(KERNELS / f"{kernel}.cu", options, device).get_function(kernel)
    allow_shared(function, shared, device)
    return function


@lru_cache(maxsize=64)
def _card(device: torch.device) -> tuple[str, int]:
    """The architecture and the number of multiprocessors of a device; the CPU's are the emulator's."""
    if device.type == "cpu":
        return EMULATED
    return architecture(device.index), torch.cuda.get_device_properties(device).multi_processor_count


def _folded_by_torch(tensors: tuple[Tensor | None, ...], scaling_factor: float, eps: float, options: dict) -> Tensor:
    x, weight, *vectors = _in_float32(tensors)
    a, b = folding.affine(*vectors, scaling_factor, eps)
    if a.isfinite().all() and b.isfinite().all():
        y = F.conv2d(x, folding.fold(weight, a), b, **options)
    else:
        # Folded into the filter, an infinite or NaN channel would spread where torch's operators do not spread it.
        y = conv_bn_scale(x, weight, *vectors, scaling_factor, eps, **options)
    return y.to(tensors[0].dtype)


def _by_torch(tensors: tuple[Tensor | None, ...], scaling_factor: float, eps: float, options: dict) -> Tensor:
    """torch's operators in the dtype of x, with a gradient. Its convolution takes no bias of another dtype."""
    x, weight, bias, *rest = tensors
    bias = None if bias is None else bias.to(x.dtype)
    return conv_bn_scale(x, weight, bias, *rest, scaling_factor, eps, **options)


def _in_float32(tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    return [tensor if tensor is None else tensor.float() for tensor in tensors]


def forced_to_emulator() -> bool:
    """Whether tensors on the CPU are to go through the CUDA kernel on the emulator."""
    return os.environ.get("FUSEDREF_DEVICE") == "emulator"


def _needs_gradient(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether autograd is to see this call, backward or forward."""
    given = [tensor for tensor in tensors if tensor is not None]
    return (torch.is_grad_enabled() and any([tensor.requires_grad for tensor in given])) or any(
        [unpack_dual(tensor).tangent is not None for tensor in given]
    )


def _described(tensor: object) -> object:
    """What a check needs to know about an argument, hashable."""
    if isinstance(tensor, Tensor):
        return tensor.shape, tensor.dtype, tensor.device, tensor.layout
    return type(tensor)


@lru_cache(maxsize=1024)
def _problem(
    described: tuple, stride: object, padding: object, dilation: object, groups: int
) -> tuple[Problem, torch.dtype]:
    """The problem that the arguments pose and the dtype of its vectors, or the error that the arguments deserve.

    Remembered, so that it costs little.
    """
    shapes, dtypes = {}, {}
    for name, argument in zip(NAMES, described):
        if argument is type(None) and name in MAY_BE_NONE:
            continue
        if not isinstance(argument, tuple):
            raise TypeError(
                f"{name} must be a torch.Tensor{' or None' if name in MAY_BE_NONE else ''}, got {argument.__name__}"
            )
        shapes[name], dtypes[name], device, layout = argument
        if layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got a {layout} one")
        if dtypes[name] not in ELEMENTS:
            raise TypeError(f"{name} must be float32, float16 or bfloat16, got {dtypes[name]}")
        if device != described[0][2]:
            raise ValueError(f"{name} must be on the device of x, {described[0][2]}, got {device}")
    vectors = _dtype_of_vectors(dtypes)
    if described[0][2].type not in ("cpu", "cuda"):
        raise ValueError(f"x must be on a CPU or CUDA device, got {described[0][2]}")

    x, weight = shapes["x"], shapes["weight"]
    if len(x) != 4:
        raise ValueError(f"x must be [batch, in_channels, height, width], got shape {tuple(x)}")
    if len(weight) != 4:
        raise ValueError(
            "weight must be [out_channels, in_channels / groups, kernel_height, kernel_width], "
            f"got shape {tuple(weight)}"
        )
    if 0 in weight:
        raise ValueError(f"weight must have no size of 0, got shape {tuple(weight)}")
    problem = Problem(
        x[0], x[1], weight[0], x[2], x[3], tuple(weight[2:]),
        stride=stride, padding=padding, dilation=dilation, groups=groups, bias="bias" in shapes, dtype=dtypes["x"],
    )  # fmt: skip
    if tuple(weight) != problem.weight_shape:
        raise ValueError(
            f"weight must be {problem.weight_shape} for x with {x[1]} channels and groups={groups}, "
            f"got shape {tuple(weight)}"
        )
    for name in NAMES[2:]:
        if name in shapes and tuple(shapes[name]) != (problem.out_channels,):
            raise ValueError(
                f"{name} must be [out_channels] = ({problem.out_channels},), got shape {tuple(shapes[name])}"
            )
    return problem, vectors


def _dtype_of_vectors(dtypes: dict[str, torch.dtype]) -> torch.dtype:
    """That of BatchNorm's vectors; the TypeError that dtypes deserve which do not go together."""
    if dtypes["weight"] != dtypes["x"]:
        raise TypeError(f"weight must have the dtype of x, {dtypes['x']}, got {dtypes['weight']}")
    given = {name: dtype for name, dtype in dtypes.items() if name not in ("x", "weight")}
    for name, dtype in given.items():
        if dtype not in (dtypes["x"], torch.float32):
            raise TypeError(f"{name} must have the dtype of x, {dtypes['x']}, or float32, got {dtype}")
    vectors = given["running_mean"]
    for name, dtype in given.items():
        if dtype != vectors and (name != "bias" or vectors != torch.float32):
            raise TypeError(f"{name} must have the dtype of running_mean, {vectors}, got {dtype}")
    return vectors


def _hashable(name: str, value: object) -> object:
    """``value``, a list as a tuple, for ``_problem`` remembers by it."""
    value = tuple(value) if isinstance(value, list) else value
    try:
        hash(value)
    except TypeError:
        needed = "an integer" if name == "groups" else "an integer or a pair of them"
        raise TypeError(f"{name} must be {needed}, got {value!r}") from None
    return value
