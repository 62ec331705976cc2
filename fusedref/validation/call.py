"""One call of a candidate: what it got, what it returned and what it must not do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fusedref.problem import Problem
from fusedref.validation.inputs import Inputs

Candidate = Callable[..., Tensor]


def in_place(inputs: Inputs, before: Inputs | None) -> Inputs:
    """Copies of ``inputs`` for the candidate, in the memory of those before where the shape is the same.

    So what a candidate keeps by an address is stale, and seen.
    """

    def copied(new: Tensor | float | None, old: Tensor | float | None) -> Tensor | float | None:
        """One of them; what is no tensor stays as it is."""
        if not isinstance(new, Tensor):
            return new
        with torch.no_grad():
            return old.copy_(new) if isinstance(old, Tensor) and old.shape == new.shape else new.clone()

    return Inputs(*map(copied, inputs, before or [None] * len(inputs)))


def call(candidate: Candidate, given: Inputs, inputs: Inputs, problem: Problem, reasons: list[str]) -> Tensor | None:
    """What the candidate returns for ``given``, copies of ``inputs``, if it can be compared at all.

    What is wrong with the call goes to ``reasons``.
    """
    try:
        with _poisoned(), torch.no_grad():
            y = candidate(*given)
        if given.x.is_cuda:
            torch.cuda.synchronize(given.x.device)  # a kernel's error appears only here
    except (Exception, SystemExit) as error:
        reasons.append(f"raised {type(error).__name__}: {error}")
        return None

    tensors = {name: value for name, value in given._asdict().items() if isinstance(value, Tensor)}
    for name, tensor in tensors.items():
        if not torch.equal(tensor, getattr(inputs, name)):
            reasons.append(f"changes its input {name}")
    if not isinstance(y, Tensor):
        reasons.append(f"returned {type(y).__name__}, a torch.Tensor is needed")
        return None
    if y.layout != torch.strided:
        reasons.append(f"returned a {y.layout} tensor, a dense one is needed")
        return None
    if y.device != given.x.device:
        reasons.append(f"returned a tensor on {y.device}, one on {given.x.device} is needed")
        return None
    if y.dtype != problem.dtype:
        reasons.append(f"returned {y.dtype}, {problem.dtype} is needed")
    if tuple(y.shape) != problem.output_shape:
        batch, channels, height, width = problem.output_shape
        swapped = ": height and width are swapped" if tuple(y.shape) == (batch, channels, width, height) else ""
        reasons.append(f"returned shape {tuple(y.shape)}, {problem.output_shape} is needed{swapped}")
        return None
    for name, tensor in tensors.items():
        if y.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr():
            reasons.append(f"returned the memory of its input {name}: y must be new memory")
    return y


@contextmanager
def _poisoned() -> Iterator[None]:
    """Memory that torch allocates inside is filled with NaN (torch does so in its deterministic mode)."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic")  # the candidate did not ask for this mode
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = before[2]


def device_is_lost(device: torch.device) -> bool:
    """Whether the device refuses all further work, as CUDA does after an access to memory that is not there."""
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except Exception:
            return True
    return False


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
