"""Validate a candidate: call it on inputs of several shapes and kinds and compare what it returns with float64."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusedref.arguments import check_precision
from fusedref.cuda.backend import forced_to_emulator
from fusedref.parameters import Parameters
from fusedref.problem import KERNELBENCH_73, SMALL_73, Problem
from fusedref.validation.call import Candidate, call, copied_in_place, device_is_lost, same_bits
from fusedref.validation.cases import Case
from fusedref.validation.compare import OUTPUTS_AT_A_TIME, compare
from fusedref.validation.inputs import random_inputs, shapes_around
from fusedref.validation.report import Report
from fusedref.validation.subjects import ModuleSubject, Subject, has_layers, subject_of
from fusedref.validation.training import settings, training_cases

MODES = ("eval", "train", "backward")
TRAINING_TENSORS = 16  # of y's size and in float64, that a comparison in training has at a time, at the least
KEPT_OUTPUTS = 2**20  # a result up to this size is kept, to see whether the next call changes it


def validate(
    candidate: Callable[..., Any],
    problem: Problem | None = None,
    *,
    mode: str = "eval",
    precision: str = "fp32",
    device: torch.device | str | None = None,
    seed: int = 0,
    on_case: Callable[[Case], object] | None = None,
) -> Report:
    """Say whether ``candidate`` computes convolution, BatchNorm and scale, or their gradients, to rounding.

    ``mode`` says what the candidate is:

    - ``"eval"``: ``candidate(x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps) -> y``, with
      BatchNorm by the running statistics.
    - ``"train"``: ``candidate(*the same nine, momentum) -> y``, with BatchNorm by the statistics of the batch.
      running_mean and running_var are updated in place, by ``momentum`` of the way to the batch's mean and unbiased
      variance.
    - ``"backward"``: ``candidate(dy, x, weight, bias, gamma, beta, scaling_factor, eps) -> (dx, dweight, dbias, dgamma,
      dbeta)``, the gradients of training for a given gradient dy of y; dbias is None where bias is. ``by_autograd``
      makes one of a function for ``"train"`` that autograd can differentiate.

    All take torch tensors (bias is None where the problem has none) and floats; gamma and beta are never None. In every
    mode the candidate may be a module with ``conv``, ``bn`` and ``scaling_factor``, such as ``FusedConvBnScale`` or
    KernelBench's ModelNew: it is called with x in that mode, with its own scaling factor, eps and momentum, and with
    parameters and statistics that are set for each call and restored at the end. In ``"backward"`` y and the statistics
    are checked as well, and gradients in evaluation mode, of x alone and of the parameters alone.

    The candidate is called for each shape of ``shapes_around``: batches and images of several sizes, with the channels,
    kernel, stride, padding, dilation and groups of the problem. In the modes of training it is called twice for each
    and for each of ``families``, data on which float32 is hard or special, and must give the same bits both times; for
    a single value per channel it must raise ValueError, as torch does. It must leave its inputs alone and return new
    memory. An exception that it raises becomes a reason; KeyboardInterrupt passes. Every input changes from call to
    call, also where it stays at its address, and memory that the candidate allocates through torch starts as NaN.

    ``problem`` is KERNELBENCH_73 on a GPU and SMALL_73 elsewhere if not given. ``device`` is a module's own, else the
    GPU if there is one and FUSEDREF_DEVICE is not "emulator". The same ``seed``, at least 0 and below 2**63, gives the
    same inputs. ``precision="fp32"`` accepts the rounding of float32 arithmetic and refuses tf32; ``"tf32"``, in mode
    "eval" alone, also accepts x and weight rounded to tf32, and refuses bfloat16. All tensors have the problem's dtype,
    in training gamma, beta and the statistics are float32 except in a module that has them otherwise. With float16 or
    bfloat16 the arithmetic must be float32's and y rounded once; in training, what torch's operators round may be
    rounded as well. ``bounds`` and ``training_bounds`` have the limits. ``on_case`` gets each case as it ends.

    Raises TypeError or ValueError for an argument that does not fit, or a problem that does not fit into memory; the
    message names the argument.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be 'eval', 'train' or 'backward', got {mode!r}")
    if mode == "eval" and not callable(candidate):
        raise TypeError(
            f"candidate must be a function of the nine arguments that returns y, got {type(candidate).__name__}"
        )
    subject = subject_of(candidate) if mode != "eval" or has_layers(candidate) else None
    if on_case is not None and not callable(on_case):
        raise TypeError(f"on_case must be a function of one case, got {type(on_case).__name__}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, got {seed!r}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be at least 0 and below 2**63, got {seed}")
    if device is None and isinstance(subject, ModuleSubject):
        device = subject.device
    if device is None:
        device = "cuda" if torch.cuda.is_available() and not forced_to_emulator() else "cpu"
    device = _device(device)
    if isinstance(subject, ModuleSubject):
        if device.type != subject.device.type or device.index not in (None, subject.device.index):
            raise ValueError(f"device must be the module's, {subject.device}, got {device}")
        device = subject.device
    if problem is None:
        problem = KERNELBENCH_73 if device.type == "cuda" else SMALL_73
    if not isinstance(problem, Problem):
        raise TypeError(f"problem must be a Problem, such as fusedref.KERNELBENCH_73, got {type(problem).__name__}")
    if problem.batch == 0:
        raise ValueError(f"problem must have a batch of at least 1, got {problem}")
    check_precision(precision, problem.dtype)
    if precision != "fp32" and mode != "eval":
        raise ValueError(f"precision={precision!r} is for mode='eval', got mode={mode!r}")
    _check_memory(problem, device, mode)

    with subject.kept() if isinstance(subject, ModuleSubject) else nullcontext():
        if mode == "eval":
            if isinstance(subject, ModuleSubject):
                candidate = subject.evaluated
            found = _evaluation_cases(candidate, subject, problem, precision, device, seed)
        else:
            assert subject is not None
            found = training_cases(subject, problem, mode, device, seed)
        cases = []
        for case in found:
            cases.append(case)
            if on_case is not None:
                on_case(case)
    return Report(problem, precision, str(device), seed, tuple(cases), mode)


def cases_of(problem: Problem, mode: str, candidate: Callable[..., Any]) -> list[str]:
    """Return the names of the cases of a validation; raise TypeError where ``validate`` does for the candidate."""
    if mode == "eval":
        return [name for name, _ in shapes_around(problem)]
    return [setting.name for setting in settings(problem, mode, subject_of(candidate))]


def _evaluation_cases(
    candidate: Candidate, subject: Subject | None, problem: Problem, precision: str, device: torch.device, seed: int
) -> Iterator[Case]:
    """Check the candidate with the running statistics at each shape; stop where the device is lost."""
    earlier: tuple[Tensor, Tensor] | None = None  # the last result, and a copy made when it was returned
    given: Parameters | None = None  # the copies that the candidate gets
    for number, (name, shape) in enumerate(shapes_around(problem)):
        inputs = random_inputs(shape, seed + number, device)
        if subject is not None:
            inputs = subject.fitted(inputs)
        reasons: list[str] = []
        given = copied_in_place(inputs, given) if subject is None else subject.given(inputs, given)
        y = call(candidate, given, inputs, shape, reasons)
        lost = y is None and device_is_lost(device)
        if lost:
            reasons.append("the GPU is lost to this process: restart it")
        elif earlier is not None and not same_bits(*earlier):
            reasons.append("the result of an earlier call changes with the next call: y must be new memory each time")
        earlier = None
        if y is None:
            yield Case(name, shape, math.nan, None, None, tuple(reasons))
        else:
            yield compare(name, shape, inputs, y, reasons, precision)
            if y.numel() <= KEPT_OUTPUTS:
                earlier = y, y.clone()
        if lost:
            return


def _device(given: torch.device | str) -> torch.device:
    """Return the CPU or a GPU that is here; raise ValueError otherwise."""
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {given!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device must be here, got {str(device)!r} where torch finds {torch.cuda.device_count()} GPUs; "
            "on 'cpu' a kernel runs on the emulator"
        )
    return device


def _check_memory(problem: Problem, device: torch.device, mode: str) -> None:
    """Raise ValueError where the tensors of one call and its comparison exceed all memory of the device.

    Where memory is promised before it is there, as on Linux, the process would be killed instead.
    """
    x, weight = math.prod(problem.input_shape), math.prod(problem.weight_shape)
    y = math.prod(problem.output_shape)
    images = min(problem.batch, max(1, OUTPUTS_AT_A_TIME * problem.batch // y))
    float64_elements = weight + images * (x + 5 * y) // problem.batch  # y, its oracle, m, the error and its bound
    if mode != "eval":  # all at once, because the statistics are of all images
        float64_elements = weight + 3 * x + TRAINING_TENSORS * y
    needed = problem.dtype.itemsize * (2 * (x + weight) + y) + 8 * float64_elements
    present = _memory_bytes(device)
    if present is not None and needed > present:
        raise ValueError(
            f"problem must fit into memory: it needs at least {needed / 2**30:,.1f} GiB, "
            f"{device} has {present / 2**30:,.1f} GiB"
        )


def _memory_bytes(device: torch.device) -> int | None:
    """Return the size of the device's memory; for the CPU, what this process may use; None where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    sizes = []
    try:
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (AttributeError, ValueError, OSError):  # not a POSIX system; no limit ("max"); no control groups
        pass
    return min(sizes, default=None)
