"""Checks of the operator's arguments: tensors, sizes and numbers. Every error names the argument."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusedref.parameters import OPTIONAL_NAMES, TENSOR_NAMES
from fusedref.problem import ELEMENTS, Problem

# (shape, dtype, device, layout, is_contiguous, type) of a tensor, None of None
Description = tuple[torch.Size, torch.dtype, torch.device, torch.layout, bool, type]
PLAIN_TYPES = (Tensor, nn.Parameter, nn.Buffer)  # only torch's operators know what other subclasses mean
STATISTICS = ("running_mean", "running_var")


@dataclasses.dataclass(frozen=True, eq=False)
class CheckedArguments:
    """The properties of valid arguments that do not depend on the numbers in the tensors."""

    problem: Problem
    vector_dtype: torch.dtype  # of running_mean, running_var, gamma and beta
    bias_differs: bool  # bias has another dtype than the other vectors
    contiguous: bool  # every tensor is contiguous
    by_torch: bool  # torch's operators serve it: float64, other subclasses of torch.Tensor, other devices
    device: torch.device
    precision: str


def number(name: str, value: object) -> float:
    """Return ``value`` as a float.

    Raise TypeError if it is not a real number, ValueError if it is an integer too large for a float.
    """
    if type(value) is float:  # first, because every launch comes through here
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must fit into a float, got a number above 1e308 in size") from None


def scale(value: object) -> float | Tensor:
    """Return ``scaling_factor`` as a float, or as the tensor of one element that it is; raise as ``number``."""
    if not isinstance(value, Tensor):
        return number("scaling_factor", value)
    if value.numel() != 1 or value.dim() > 4:
        raise ValueError(f"scaling_factor must be a number or a tensor of one, got shape {tuple(value.shape)}")
    return value


def check_precision(precision: object, dtype: torch.dtype) -> None:
    """Raise ValueError unless ``precision`` is ``"fp32"``, or ``"tf32"`` for float32 tensors."""
    if precision not in ("fp32", "tf32"):
        raise ValueError(f"precision must be 'fp32' or 'tf32', got {precision!r}")
    if precision == "tf32" and dtype != torch.float32:
        raise ValueError(f"precision='tf32' is for float32 tensors, got {dtype}: their products are exact as they are")


def check_size_option(name: str, value: Any) -> Any:
    """Return ``value`` (stride, padding, dilation or groups), a list as a tuple.

    Raise TypeError unless it is a string or consists of integers. 1.0 and True are refused too: they equal an integer,
    so a cache of results would take them for it.
    """
    if type(value) is tuple and all([type(part) is int for part in value]):  # first, for speed: what a module has
        return value
    value = tuple(value) if isinstance(value, list) else value
    for part in value if isinstance(value, tuple) else (value,):
        if isinstance(part, bool) or not isinstance(part, (int, str)):
            needed = "an integer" if name == "groups" else "an integer or a pair of them"
            raise TypeError(f"{name} must be {needed}, got {value!r}")
    return value


def describe(tensors: tuple[Any, ...]) -> tuple[Description | None, ...]:
    """Return a hashable description of each of the seven tensors; raise TypeError for anything but dense tensors."""
    try:
        return tuple([
            t if t is None else (t.shape, t.dtype, t.device, t.layout, t.is_contiguous(), type(t)) for t in tensors
        ])  # fmt: skip
    except Exception:  # some sparse tensors cannot say whether they are contiguous
        for name, tensor in zip(TENSOR_NAMES, tensors, strict=True):
            if not isinstance(tensor, Tensor) and (tensor is not None or name not in OPTIONAL_NAMES):
                or_none = " or None" if name in OPTIONAL_NAMES else ""
                raise TypeError(f"{name} must be a torch.Tensor{or_none}, got {type(tensor).__name__}") from None
            if tensor is not None and tensor.layout != torch.strided:
                raise TypeError(f"{name} must be a dense tensor, got a {tensor.layout} one") from None
        raise


def check_memory(tensors: Sequence[Tensor | None]) -> None:
    """Raise ValueError if a tensor's storage was freed, as ``x.untyped_storage().resize_(0)`` does."""
    for name, tensor in zip(TENSOR_NAMES, tensors, strict=True):
        if tensor is not None and not tensor.untyped_storage().nbytes() and tensor.numel():
            raise ValueError(f"{name} must have memory, got a tensor of {tuple(tensor.shape)} whose storage was freed")


def check_arguments(
    descriptions: tuple[Description | None, ...],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    precision: str,
    training: bool = False,
) -> CheckedArguments:
    """Check the described tensors and options together; raise TypeError or ValueError if they do not fit.

    In ``training`` both running statistics may be None, and one pixel per channel is refused.
    """
    optional: tuple[str, ...] = OPTIONAL_NAMES
    if training and descriptions[3] is None and descriptions[4] is None:
        optional += STATISTICS
    shapes: dict[str, torch.Size] = {}
    dtypes: dict[str, torch.dtype] = {}
    devices: dict[str, torch.device] = {}
    contiguous, by_torch = True, False
    for name, description in zip(TENSOR_NAMES, descriptions, strict=True):
        if description is None:
            if name in optional:
                continue
            raise TypeError(f"{name} must be a torch.Tensor, got NoneType")
        shapes[name], dtypes[name], devices[name], layout, is_contiguous, type_ = description
        contiguous, by_torch = contiguous and is_contiguous, by_torch or type_ not in PLAIN_TYPES
        if layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got a {layout} one")
        if dtypes[name] not in (*ELEMENTS, torch.float64):
            raise TypeError(f"{name} must be float32, float16, bfloat16 or float64, got {dtypes[name]}")
        if devices[name] != devices["x"]:
            raise ValueError(f"{name} must be on the device of x, {devices['x']}, got {devices[name]}")
    vector_dtype = _dtype_of_vectors(dtypes)
    by_torch = by_torch or dtypes["x"] == torch.float64 or devices["x"].type not in ("cpu", "cuda")

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
        x[0], x[1], weight[0], x[2], x[3], (weight[2], weight[3]),
        stride=stride, padding=padding, dilation=dilation, groups=groups, bias="bias" in shapes,
        dtype=torch.float32 if dtypes["x"] == torch.float64 else dtypes["x"],
    )  # fmt: skip
    if tuple(weight) != problem.weight_shape:
        raise ValueError(
            f"weight must be {problem.weight_shape} for x with {x[1]} channels and groups={groups}, "
            f"got shape {tuple(weight)}"
        )
    for name in TENSOR_NAMES[2:]:
        if name in shapes and tuple(shapes[name]) != (problem.out_channels,):
            raise ValueError(
                f"{name} must be [out_channels] = ({problem.out_channels},), got shape {tuple(shapes[name])}"
            )
    check_precision(precision, dtypes["x"])
    if training and x[0] * problem.out_height * problem.out_width == 1:  # torch's words
        size = torch.Size(problem.output_shape)
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {size}")
    bias_differs = dtypes.get("bias", vector_dtype) != vector_dtype
    return CheckedArguments(problem, vector_dtype, bias_differs, contiguous, by_torch, devices["x"], precision)


def _dtype_of_vectors(dtypes: dict[str, torch.dtype]) -> torch.dtype:
    """Return the dtype of BatchNorm's vectors, that of x where there are none; raise TypeError on a mismatch."""
    if dtypes["weight"] != dtypes["x"]:
        raise TypeError(f"weight must have the dtype of x, {dtypes['x']}, got {dtypes['weight']}")
    vectors = {name: dtype for name, dtype in dtypes.items() if name not in ("x", "weight")}
    allowed = (dtypes["x"], dtypes["x"] if dtypes["x"] == torch.float64 else torch.float32)
    for name, dtype in vectors.items():
        if dtype not in allowed:
            or_float32 = "" if allowed[1] == torch.float64 else ", or float32"
            raise TypeError(f"{name} must have the dtype of x, {dtypes['x']}{or_float32}, got {dtype}")
    first = next((name for name in vectors if name != "bias"), "bias" if "bias" in vectors else "x")
    common = dtypes[first]
    for name, dtype in vectors.items():
        if dtype != common and (name != "bias" or common != torch.float32):
            raise TypeError(f"{name} must have the dtype of {first}, {common}, got {dtype}")
    return common
