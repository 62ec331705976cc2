"""Check a call's arguments, and remember what was found for later calls with the same properties."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedref.arguments import CheckedArguments, check_arguments, check_precision, check_size_option, describe
from fusedref.cuda.backend import forced_to_emulator
from fusedref.ops.runner import PlanRunner, runner_of, target_of
from fusedref.ops.training import TrainingRunner
from fusedref.ops.training_runner import training_runner
from fusedref.parameters import TENSOR_NAMES
from fusedref.plans import KernelVariant, plan_for

Tensors = Sequence[Tensor | None]

MOST_REMEMBERED = 1024
# Stand-ins for None in a guard, which takes only tensors, each once. No vector is that short.
_ABSENT = [torch.empty(0) for _ in TENSOR_NAMES]


class Case:
    """Checked arguments, and the runners that serve them, each made when first needed."""

    def __init__(self, checked: CheckedArguments, channels_last: bool) -> None:
        self.checked, self.channels_last = checked, channels_last
        self.problem, self.vector_dtype = checked.problem, checked.vector_dtype
        self.bias_differs, self.by_torch = checked.bias_differs, checked.by_torch
        self.on_gpu = checked.device.type == "cuda"
        self._training_runners: dict[bool, TrainingRunner | None] = {}  # by whether the emulator stands for a GPU

    @cached_property
    def runner(self) -> PlanRunner:
        """Return the runner of evaluation mode."""
        device = self.checked.device
        variant = KernelVariant(self.checked.precision, self.channels_last, self.vector_dtype)
        return runner_of(plan_for(self.problem, target_of(device), variant), self.problem, device)

    @property
    def training_runner(self) -> TrainingRunner | None:
        """Return the runner of training and of gradients, None where torch's operators serve."""
        if self.by_torch or not self.problem.batch:
            return None
        emulated = not self.on_gpu and forced_to_emulator()
        if emulated not in self._training_runners:
            checked = self.checked
            self._training_runners[emulated] = training_runner(
                self.problem, checked.device, checked.precision, self.channels_last, self.vector_dtype
            )
        return self._training_runners[emulated]

    @property
    def memory_format(self) -> torch.memory_format:
        """Return the order of x and y in memory."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


class Call(NamedTuple):
    """A case, and what else is the same in calls whose arguments have the same properties."""

    case: Case
    ready: bool  # the tensors lie in memory as kernels read them
    requires_grad: bool  # one of the tensors does
    options: tuple[Any, ...]  # stride, padding, dilation, groups, precision, as they were given
    check: Callable[..., bool]  # returns whether tensors have these properties
    complete: bool  # no tensor is None


_recent: dict[Any, Call] = {}


def recall(
    tensors: tuple[Tensor | None, ...],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    precision: str,
    training: bool = False,
    owner: Tensor | None = None,
) -> Call | None:
    """Return the call that ``find`` returned for arguments with the same properties, None if there was none.

    A call that is found is not traced, and autocast is in the state of that time: both change the dispatch keys.
    """
    try:
        call = _recent.get((id(tensors[1] if owner is None else owner), getattr(tensors[0], "shape", None), training))
    except TypeError:  # a size that is open in a trace has no hash
        return None
    if call is not None:
        a, b, c, d, e = call.options
        # By identity: 1, 1.0 and True are equal.
        if (
            a is stride and b is padding and c is dilation and d is groups and e is precision
            and call.check(*(tensors if call.complete else _guarded(tensors)))
        ):  # fmt: skip
            return call
    return None


def find(
    tensors: tuple[Tensor | None, ...],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    precision: str,
    training: bool = False,
    owner: Tensor | None = None,
) -> Call:
    """Return the call with x, weight and the five vectors; raise TypeError or ValueError as ``check_arguments``.

    The call is looked up by ``owner``, the weight as the caller keeps it, which autocast casts anew in every call.
    """
    call = recall(tensors, stride, padding, dilation, groups, precision, training, owner)
    if call is not None:
        return call
    if precision != "fp32":  # it may be anything, even what has no hash
        check_precision(precision, torch.float32)
    descriptions = describe(tensors)
    case = _case(
        descriptions,
        check_size_option("stride", stride),
        check_size_option("padding", padding),
        check_size_option("dilation", dilation),
        check_size_option("groups", groups),
        precision,
        any(t is not None and is_channels_last(t) for t in tensors[:2]),
        training,
    )
    options = (stride, padding, dilation, groups, precision)
    x, *others = given = _guarded(tensors)
    ready = x.is_contiguous(memory_format=case.memory_format) and all(t.is_contiguous() for t in others)
    requires_grad = any(t.requires_grad for t in given)
    complete = all(t is not None for t in tensors)
    call = Call(case, ready, requires_grad, options, _guard(given), complete)
    if len(_recent) >= MOST_REMEMBERED:
        _recent.clear()
    if all(type(option) in (int, str) or type(option) is tuple for option in options):  # nothing that can change
        key = id(tensors[1] if owner is None else owner), getattr(tensors[0], "shape", None), training
        _recent[key] = call
    return call


@lru_cache(maxsize=MOST_REMEMBERED)
def _case(
    descriptions: Any, stride: Any, padding: Any, dilation: Any, groups: Any, precision: str, channels_last: bool,
    training: bool,
) -> Case:  # fmt: skip
    """Return the case of these arguments, from the cache if it was checked before; raise as ``check_arguments``."""
    return Case(check_arguments(descriptions, stride, padding, dilation, groups, precision, training), channels_last)


def forget() -> None:
    """Forget every case, as tests need that change what a plan chooses."""
    _recent.clear()
    _case.cache_clear()


def is_channels_last(tensor: Tensor) -> bool:
    """Return whether torch's convolutions consider the tensor to be in channels_last order.

    After ``c10::is_channels_last_strides_2d``. Sizes of 1 make some orders ambiguous; they count as NCHW.
    """
    if tensor.layout != torch.strided or tensor.dim() != 4:
        return False
    shape, strides, least = tensor.shape, tensor.stride(), 0
    if strides[1] == 0:
        return False
    for axis in (1, 3, 2, 0):
        if shape[axis] == 0 or strides[axis] < least or (axis == 0 and least == strides[1]):
            return False
        least = strides[axis] * (shape[axis] if shape[axis] > 1 else 1)
    return True


def _guarded(tensors: Tensors) -> list[Tensor]:
    return [absent if tensor is None else tensor for tensor, absent in zip(tensors, _ABSENT, strict=True)]


def _guard(tensors: list[Tensor]) -> Callable[..., bool]:
    """Return a function that tells whether tensors are like these.

    torch's guards compare type, dtype, device, sizes, strides, requires_grad and dispatch keys (which know autocast,
    inference mode and functorch) in under a microsecond. Where they have changed, every call is checked anew.
    """
    try:
        from torch._C._dynamo.guards import TensorGuards

        check: Callable[..., bool] = TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
        return check
    except (ImportError, TypeError):
        return lambda *tensors: False
