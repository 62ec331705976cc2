"""y = BatchNorm(Conv2d(x)) * scaling_factor, from raw parameters to y in one kernel launch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from fusedref import folding
from fusedref.cuda.compile import allow_shared, architecture, source_module
from fusedref.cuda.launch import Out, launch, launch_on_gpu
from fusedref.planning import EMULATED, Plan, check_precision, plan
from fusedref.problem import ELEMENTS, Problem
from fusedref.reference import conv_bn_scale, number

KERNELS = Path(__file__).parent / "csrc"
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
    if precision != "fp32":  # which may be anything, even what has no hash
        check_precision(precision, torch.float32)
    call = _call(
        _described(tensors),
        stride if type(stride) is int else _plain("stride", stride),
        padding if type(padding) is int else _plain("padding", padding),
        dilation if type(dilation) is int else _plain("dilation", dilation),
        groups if type(groups) is int else _plain("groups", groups),
        precision,
    )
    if type(scaling_factor) is not float or type(eps) is not float:
        scaling_factor, eps = number("scaling_factor", scaling_factor), number("eps", eps)
    if eps < 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    if call.bias_differs:
        tensors = (x, weight, bias.to(call.vectors), running_mean, running_var, gamma, beta)

    if _needs_gradient(tensors):
        return _by_torch(tensors, scaling_factor, eps, call.options)
    if not (abs(scaling_factor) <= FLOAT32_MAX and eps <= FLOAT32_MAX):
        # An infinite factor cannot be folded: inf * (u + v) is not inf * u + inf * v.
        return conv_bn_scale(*_in_float32(tensors), scaling_factor, eps, **call.options).to(x.dtype)
    if x.is_cuda or forced_to_emulator():
        if call.contiguous:
            return call.runner(tensors, scaling_factor, eps)
        channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        runner = call.channels_last_runner if channels_last else call.runner
        return runner(runner.contiguous(tensors), scaling_factor, eps)
    return _folded_by_torch(tensors, scaling_factor, eps, call.options)


def run(
    chosen: Plan, problem: Problem, tensors: tuple[Tensor | None, ...], scaling_factor: float, eps: float
) -> Tensor:
    """y of ``problem``, by the plan ``chosen``. ``tensors`` are x, weight and the five vectors, in order."""
    runner = _Runner(chosen, problem, tensors[0].device)
    return runner(runner.contiguous(tensors), scaling_factor, eps)


class _Runner:
    """A plan with its kernel compiled, and whatever else does not change from call to call worked out."""

    types = "P" * len(NAMES) + "ffPq"  # of the kernel's arguments: pointers, scaling_factor and eps, y, batch

    def __init__(self, chosen: Plan, problem: Problem, device: torch.device) -> None:
        self.memory_format = torch.channels_last if chosen.channels_last else torch.contiguous_format
        y = torch.empty(problem.output_shape, device="meta", memory_format=self.memory_format)
        self.shape, self.strides, self.batch = y.shape, y.stride(), problem.batch
        self.channels_last, self.device = chosen.channels_last, device
        self.grid, self.block, self.shared = chosen.grid, chosen.block, chosen.shared
        if self.batch:
            self.function = _function(chosen.kernel, chosen.macros, chosen.shared, device)

    def contiguous(self, tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """The tensors as the kernel reads them, copied where they lie in memory otherwise."""
        x, *parameters = tensors
        x = x.contiguous(memory_format=self.memory_format)
        return [x, *[tensor if tensor is None else tensor.contiguous() for tensor in parameters]]

    def __call__(self, tensors: Sequence[Tensor | None], scaling_factor: float, eps: float) -> Tensor:
        """y of tensors that are ``contiguous``."""
        y = tensors[0].new_empty_strided(self.shape, self.strides)
        if self.batch == 0:
            return y
        if self.device.type == "cuda":
            values = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
            values += scaling_factor, eps, y.data_ptr(), self.batch
            launch_on_gpu(self.function, self.types, values, self.device.index, self.grid, self.block, self.shared)
            return y
        x, out = (t.permute(0, 2, 3, 1) if self.channels_last else t for t in (tensors[0], y))
        launch(
            self.function,
            *(x, *tensors[1:]),
            *(np.float32(scaling_factor), np.float32(eps)),
            Out(out),
            np.int64(self.batch),
            grid=self.grid,
            block=self.block,
            shared=self.shared,
        )
        return y


def prepare(problem: Problem, device: torch.device, precision: str = "fp32", channels_last: bool = False) -> None:
    """Compiles what a call at ``problem`` on ``device`` runs. Several threads may do so at a time."""
    chosen = plan(problem, *_card(device), precision, channels_last, problem.dtype)
    _function(chosen.kernel, chosen.macros, chosen.shared, device)


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
    if torch.is_grad_enabled() and any([tensor is not None and tensor.requires_grad for tensor in tensors]):
        return True
    return forward_ad._current_level >= 0 and any(
        [tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors]
    )


def _described(tensors: tuple[object, ...]) -> tuple[tuple | None, ...]:
    """(shape, dtype, device, layout, whether contiguous) of each tensor, None of None; a TypeError for all else."""
    try:
        return tuple([t if t is None else (t.shape, t.dtype, t.device, t.layout, t.is_contiguous()) for t in tensors])
    except Exception:  # some sparse tensors cannot say whether they are contiguous
        for name, tensor in zip(NAMES, tensors):
            if not isinstance(tensor, Tensor) and (tensor is not None or name not in MAY_BE_NONE):
                or_none = " or None" if name in MAY_BE_NONE else ""
                raise TypeError(f"{name} must be a torch.Tensor{or_none}, got {type(tensor).__name__}") from None
            if tensor is not None and tensor.layout != torch.strided:
                raise TypeError(f"{name} must be a dense tensor, got a {tensor.layout} one") from None
        raise


@dataclasses.dataclass(eq=False)
class _Call:
    """What the arguments pose, but for the numbers in them; and how it is run, once that is asked for."""

    problem: Problem
    vectors: torch.dtype
    bias_differs: bool  # has a dtype that is not the other vectors'
    contiguous: bool  # are all tensors
    device: torch.device
    precision: str

    @cached_property
    def options(self) -> dict:
        """stride, padding, dilation and groups, as torch's convolution takes them."""
        return {name: getattr(self.problem, name) for name in ("stride", "padding", "dilation", "groups")}

    @cached_property
    def runner(self) -> _Runner:
        """Runs the kernel on tensors in NCHW order."""
        return self._runner(channels_last=False)

    @cached_property
    def channels_last_runner(self) -> _Runner:
        """Runs the kernel where x and y have their channels last."""
        return self._runner(channels_last=True)

    def _runner(self, channels_last: bool) -> _Runner:
        chosen = plan(self.problem, *_card(self.device), self.precision, channels_last, self.vectors)
        return _Runner(chosen, self.problem, self.device)


@lru_cache(maxsize=1024)
def _call(described: tuple, stride: object, padding: object, dilation: object, groups: object, precision: str) -> _Call:
    """The call that the arguments pose, or the error that they deserve; remembered, so that it costs little."""
    shapes, dtypes, contiguous = {}, {}, {}
    for name, argument in zip(NAMES, described):
        if argument is None and name in MAY_BE_NONE:
            continue
        if argument is None:
            raise TypeError(f"{name} must be a torch.Tensor, got NoneType")
        shapes[name], dtypes[name], device, layout, contiguous[name] = argument
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
    check_precision(precision, problem.dtype)
    bias_differs = dtypes.get("bias", vectors) != vectors
    return _Call(problem, vectors, bias_differs, all(contiguous.values()), described[0][2], precision)


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


def _plain(name: str, value: object) -> object:
    """``value``, a list as a tuple, if it holds nothing but integers or is a word.

    What is equal to an integer but none, as 1.0 and True are, must not pass for one that is remembered.
    """
    if type(value) is tuple and all([type(part) is int for part in value]):  # what a module has
        return value
    value = tuple(value) if isinstance(value, list) else value
    for part in value if isinstance(value, tuple) else (value,):
        if isinstance(part, bool) or not isinstance(part, (int, str)):
            needed = "an integer" if name == "groups" else "an integer or a pair of them"
            raise TypeError(f"{name} must be {needed}, got {value!r}")
    return value
