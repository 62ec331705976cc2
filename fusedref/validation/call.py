"""Call a candidate once: fresh inputs in the same memory, poisoned allocations, and checks of what it returns."""

from __future__ import annotations

import dataclasses
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from fusedref.parameters import Parameters
from fusedref.problem import Problem

Candidate = Callable[..., Tensor]

COMPARABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # dtypes of y whose errors mean something


def copied_in_place(inputs: Parameters, before: Parameters | None) -> Parameters:
    """Copy ``inputs`` for the candidate, into the memory of the copies ``before`` where the shape is the same.

    So a candidate that keeps something by the address of an input uses a stale value, which shows.
    """

    def copied(new: Any, old: Any) -> Any:
        """Copy a tensor; return any other value as it is."""
        if not isinstance(new, Tensor):
            return new
        if isinstance(old, Tensor) and _kind(old) == _kind(new) and old.is_contiguous() and _has_memory(old):
            with torch.no_grad():
                return old.copy_(new)
        return new.clone()

    return Parameters(*map(copied, inputs, before or [None] * len(inputs)))


@dataclasses.dataclass(frozen=True)
class Needed:
    """What a result must be: its shape, dtype and device, and its name."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    name: str = "y"


def call(
    candidate: Candidate, given: Parameters, inputs: Parameters, problem: Problem, reasons: list[str]
) -> Tensor | None:
    """Call ``candidate`` with ``given``, copies of ``inputs``; return y, or None where it cannot be compared.

    Appends to ``reasons`` what is wrong with the call. KeyboardInterrupt passes: it is the user's, not the candidate's.
    """

    def computed() -> object:
        """Return what the candidate returns."""
        with torch.no_grad():
            return candidate(*given)

    returned = guarded(computed, given.x.device, reasons)
    if returned is None:
        return None
    reasons += changed_inputs(given, inputs)
    (y,) = returned
    return checked(y, Needed(problem.output_shape, problem.dtype, given.x.device), given, reasons)


def guarded(action: Callable[[], object], device: torch.device, reasons: list[str]) -> tuple[object] | None:
    """Return what ``action`` returns, in a tuple; None where it raises, and append that to ``reasons``.

    Memory that it allocates through torch starts as NaN.
    """
    try:
        with poisoned_memory:
            returned = action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the error of a kernel appears only here
    except (Exception, SystemExit, GeneratorExit) as error:
        reasons.append(f"raised {type(error).__name__}: {_message(error)}")
        return None
    return (returned,)


def changed_inputs(given: Parameters, inputs: Parameters, allowed: tuple[str, ...] = ()) -> list[str]:
    """Return a reason for each tensor of ``given`` that is no longer what ``inputs`` has, except those ``allowed``."""
    return [
        f"changes its input {name}"
        for name, tensor in given._asdict().items()
        if isinstance(tensor, Tensor) and name not in allowed and not _same(tensor, getattr(inputs, name))
    ]


def checked(result: object, needed: Needed, given: Parameters, reasons: list[str]) -> Tensor | None:
    """Return a result as a plain tensor, or None where it cannot be compared; append what is wrong to ``reasons``."""
    try:
        with torch._C.DisableTorchFunctionSubclass():  # a subclass may redefine everything that is used here
            return _checked(result, needed, given, reasons)
    except Exception as error:  # from inside torch, about a kind of tensor that is not known here
        reasons.append(f"returned a tensor that cannot be read: {type(error).__name__}: {_message(error)}")
        return None


def _checked(result: object, needed: Needed, given: Parameters, reasons: list[str]) -> Tensor | None:
    prefix = "" if needed.name == "y" else f"{needed.name}: "
    if not isinstance(result, Tensor):
        if inspect.iscoroutine(result):
            result.close()  # or Python warns that nothing awaits it
        reasons.append(f"{prefix}returned {type(result).__name__}, a torch.Tensor is needed")
        return None
    unreadable = _unreadable(result, needed)
    if unreadable is not None:
        reasons.append(prefix + unreadable)
        return None
    if result.dtype != needed.dtype:
        reasons.append(f"{prefix}returned {result.dtype}, {needed.dtype} is needed")
    if tuple(result.shape) != needed.shape:
        swapped = tuple(result.shape) == (*needed.shape[:-2], *needed.shape[:-3:-1]) and len(needed.shape) == 4
        hint = ": height and width are swapped" if swapped else ""
        reasons.append(f"{prefix}returned shape {tuple(result.shape)}, {needed.shape} is needed{hint}")
        return None
    for name, tensor in given._asdict().items():
        if isinstance(tensor, Tensor) and result.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr():
            reasons.append(f"{prefix}returned the memory of its input {name}: {needed.name} must be new memory")
    return result.detach().as_subclass(Tensor)


def _unreadable(y: Tensor, needed: Needed) -> str | None:
    """Return why the numbers of ``y`` cannot be compared, whatever its shape; None if they can."""
    kind = type(y)
    if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:  # it computes, or holds its numbers, by other means
        return f"returned a {kind.__name__}, a plain torch.Tensor is needed"
    if y.is_nested:
        return "returned a nested tensor, a dense one is needed"
    if y.layout != torch.strided:
        return f"returned a {y.layout} tensor, a dense one is needed"
    if y.device != needed.device:
        return f"returned a tensor on {y.device}, one on {needed.device} is needed"
    if y.dtype not in COMPARABLE:
        return f"returned {y.dtype}, {needed.dtype} is needed"
    if not _has_memory(y):
        return "returned a tensor whose memory has been freed"
    return None


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors of the same shape and dtype are equal bit by bit; False if one has lost its memory."""
    if not (_has_memory(a) and _has_memory(b)):
        return False
    one, other = (tensor.resolve_neg().contiguous().view(torch.uint8) for tensor in (a, b))
    return torch.equal(one, other)


def device_is_lost(device: torch.device) -> bool:
    """Return whether the device refuses all further work, as CUDA does after an access outside all memory."""
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except Exception:
            return True
    return False


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _same(tensor: Tensor, original: Tensor) -> bool:
    """Return whether an input is as it was; a candidate may change even its shape, dtype or memory in place."""
    return _kind(tensor) == _kind(original) and same_bits(tensor, original)


def _has_memory(tensor: Tensor) -> bool:
    """Return whether the storage of a strided tensor reaches to its last element; it does not after ``resize_(0)``."""
    if tensor.numel() == 0:
        return True
    last = tensor.storage_offset() + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return (last + 1) * tensor.itemsize <= tensor.untyped_storage().nbytes()


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(its message cannot be printed)"


class _PoisonedMemory:
    """Fill memory that torch allocates inside with NaN; several threads may be inside at a time.

    torch fills it in its deterministic mode, a setting of the whole process: the first thread to enter turns the mode
    on, and the last one to leave restores the setting.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._mode = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._mode.enter_context(_deterministic_mode())
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._mode.close()


@contextmanager
def _deterministic_mode() -> Iterator[None]:
    settings: Any = torch.utils.deterministic  # a module that sets flags of torch, without type hints
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = settings.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic")  # the candidate did not choose this mode
        torch.use_deterministic_algorithms(True, warn_only=True)
        settings.fill_uninitialized_memory = True
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
            settings.fill_uninitialized_memory = filled


poisoned_memory = _PoisonedMemory()
