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


@dataclasses.dataclass(frozen=True, eq=False)
class CheckedArguments:
    """The properties of valid arguments that do not depend on the numbers in the tensors."""

    problem: Problem
    vector_dtype: torch.dtype  # of running_mean, running_var, gamma and beta
    bias_differs: bool  # bias has another dtype than the other vectors
    contiguous: bool  # every tensor is contiguous
    plain: bool  # no tensor is of another subclass of torch.Tensor
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
) -> CheckedArguments:
    """Check the described tensors and options together; raise TypeError or ValueError if they do not fit."""
    shapes: dict[str, torch.Size] = {}
    dtypes: dict[str, torch.dtype] = {}
    devices: dict[str, torch.device] = {}
    contiguous = plain = True
    for name, description in zip(TENSOR_NAMES, descriptions, strict=True):
        if description is None:
            if name in OPTIONAL_NAMES:
                continue
            raise TypeError(f"{name} must be a torch.Tensor, got NoneType")
        shapes[name], dtypes[name], devices[name], layout, is_contiguous, type_ = description
        contiguous, plain = contiguous and is_contiguous, plain and type_ in PLAIN_TYPES
        if layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got a {layout} one")
        if dtypes[name] not in ELEMENTS:
            raise TypeError(f"{name} must be float32, float16 or bfloat16, got {dtypes[name]}")
        if devices[name] != devices["x"]:
            raise ValueError(f"{name} must be on the device of x, {devices['x']}, got {devices[name]}")
    vector_dtype = _dtype_of_vectors(dtypes)
    if devices["x"].type not in ("cpu", "cuda"):
        raise ValueError(f"x must be on a CPU or CUDA device, got {devices['x']}")

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
        stride=stride, padding=padding, dilation=dilation, groups=groups, bias="bias" in shapes, dtype=dtypes["x"],
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
    check_precision(precision, problem.dtype)
    bias_differs = dtypes.get("bias", vector_dtype) != vector_dtype
    return CheckedArguments(problem, vector_dtype, bias_differs, contiguous, plain, devices["x"], precision)


def _dtype_of_vectors(dtypes: dict[str, torch.dtype]) -> torch.dtype:
    """Return the dtype of BatchNorm's vectors; raise TypeError on a mismatch."""
    if dtypes["weight"] != dtypes["x"]:
        raise TypeError(f"weight must have the dtype of x, {dtypes['x']}, got {dtypes['weight']}")
    vectors = {name: dtype for name, dtype in dtypes.items() if name not in ("x", "weight")}
    for name, dtype in vectors.items():
        if dtype not in (dtypes["x"], torch.float32):
            raise TypeError(f"{name} must have the dtype of x, {dtypes['x']}, or float32, got {dtype}")
    common = vectors["running_mean"]
    for name, dtype in vectors.items():
        if dtype != common and (name != "bias" or common != torch.float32):
            raise TypeError(f"{name} must have the dtype of running_mean, {common}, got {dtype}")
    return common
