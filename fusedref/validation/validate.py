"""Validate a candidate: call it on random inputs of several shapes and compare what it returns with float64."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

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

KEPT_OUTPUTS = 2**20  # a result up to this size is kept, to see whether the next call changes it


def validate(
    candidate: Candidate,
    problem: Problem | None = None,
    *,
    precision: str = "fp32",
    device: torch.device | str | None = None,
    seed: int = 0,
    on_case: Callable[[Case], object] | None = None,
) -> Report:
    """Say whether ``candidate`` computes convolution, BatchNorm with running statistics and scale, to rounding.

    ``candidate(x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps)`` takes torch tensors
    (bias is None where the problem has none) and two floats, and returns y. It is called once for each shape of
    ``shapes_around``: batches and images of several sizes, with the channels, kernel, stride, padding, dilation and
    groups of the problem. It must leave its inputs alone and return new memory. An exception that it raises becomes a
    reason; KeyboardInterrupt passes. Every input changes from call to call, also where it stays at its address, and
    memory that the candidate allocates through torch starts as NaN. gamma and beta are never None.

    ``problem`` is KERNELBENCH_73 on a GPU and SMALL_73 elsewhere if not given. ``device`` is the GPU if there is one
    and FUSEDREF_DEVICE is not "emulator". The same ``seed``, at least 0 and below 2**63, gives the same inputs.
    ``precision="fp32"`` accepts the rounding of float32 arithmetic and refuses tf32; ``"tf32"`` also accepts x and
    weight rounded to tf32, and refuses bfloat16. All tensors have the problem's dtype; with float16 or bfloat16 the
    arithmetic must be float32's and y rounded once. ``bounds`` has the limits. ``on_case`` is called with each case as
    it ends.

    Raises TypeError or ValueError for an argument that does not fit, or a problem that does not fit into memory; the
    message names the argument.
    """
    if not callable(candidate):
        raise TypeError(
            f"candidate must be a function of the nine arguments that returns y, got {type(candidate).__name__}"
        )
    if on_case is not None and not callable(on_case):
        raise TypeError(f"on_case must be a function of one case, got {type(on_case).__name__}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, got {seed!r}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be at least 0 and below 2**63, got {seed}")
    if device is None:
        device = "cuda" if torch.cuda.is_available() and not forced_to_emulator() else "cpu"
    device = _device(device)
    if problem is None:
        problem = KERNELBENCH_73 if device.type == "cuda" else SMALL_73
    if not isinstance(problem, Problem):
        raise TypeError(f"problem must be a Problem, such as fusedref.KERNELBENCH_73, got {type(problem).__name__}")
    if problem.batch == 0:
        raise ValueError(f"problem must have a batch of at least 1, got {problem}")
    check_precision(precision, problem.dtype)
    _check_memory(problem, device)

    cases: list[Case] = []
    earlier: tuple[Tensor, Tensor] | None = None  # the last result, and a copy made when it was returned
    given: Parameters | None = None  # the copies that the candidate gets
    for number, (name, shape) in enumerate(shapes_around(problem)):
        inputs = random_inputs(shape, seed + number, device)
        reasons: list[str] = []
        given = copied_in_place(inputs, given)
        y = call(candidate, given, inputs, shape, reasons)
        lost = y is None and device_is_lost(device)
        if lost:
            reasons.append("the GPU is lost to this process: restart it")
        elif earlier is not None and not same_bits(*earlier):
            reasons.append("the result of an earlier call changes with the next call: y must be new memory each time")
        earlier = None
        if y is None:
            cases.append(Case(name, shape, math.nan, None, None, tuple(reasons)))
        else:
            cases.append(compare(name, shape, inputs, y, reasons, precision))
            if y.numel() <= KEPT_OUTPUTS:
                earlier = y, y.clone()
        if on_case is not None:
            on_case(cases[-1])
        if lost:
            break
    return Report(problem, precision, str(device), seed, tuple(cases))


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


def _check_memory(problem: Problem, device: torch.device) -> None:
    """Raise ValueError where the tensors of one call and its comparison exceed all memory of the device.

    Where memory is promised before it is there, as on Linux, the process would be killed instead.
    """
    x, weight = math.prod(problem.input_shape), math.prod(problem.weight_shape)
    y = math.prod(problem.output_shape)
    images = min(problem.batch, max(1, OUTPUTS_AT_A_TIME * problem.batch // y))
    float64_elements = weight + images * (x + 5 * y) // problem.batch  # y, its oracle, m, the error and its bound
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
