"""validate(candidate, problem) -> Report: is this function, or this kernel, the operator, to rounding?

The candidate is called on fresh random inputs, in several shapes around the problem, with every parameter of BatchNorm,
eps and the scale drawn anew, so that nothing can be left out unseen. Memory that it allocates through torch starts as
NaN. What it returns is compared, element by element, with float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fusedref.arguments import check_precision
from fusedref.cuda.backend import forced_to_emulator
from fusedref.problem import KERNELBENCH_73, SMALL_73, Problem
from fusedref.validation.call import Candidate, call, device_is_lost, in_place, same_bits
from fusedref.validation.cases import Case
from fusedref.validation.compare import compare
from fusedref.validation.inputs import Inputs, random_inputs, shapes_around
from fusedref.validation.report import Report


def validate(
    candidate: Candidate,
    problem: Problem | None = None,
    *,
    precision: str = "fp32",
    device: torch.device | str | None = None,
    seed: int = 0,
) -> Report:
    """Whether ``candidate`` computes convolution, BatchNorm with running statistics and scale as ``problem`` has them.

    ``candidate(x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps)`` takes torch tensors
    (bias is None where the problem has none) and two floats, and returns y. It is called several times, with batches
    and images of several sizes; channels, kernel, stride, padding, dilation and groups stay the problem's. It must
    leave its inputs alone and return new memory. An exception that it raises becomes a reason. Every input changes from
    call to call, also where it stays at its address. gamma and beta are never None here: whether a candidate takes None
    for them is not tested.

    ``problem`` is KERNELBENCH_73 on a GPU and SMALL_73 elsewhere if not given. ``device`` is the GPU if there is one
    (and FUSEDREF_DEVICE does not say emulator). The same ``seed``, at least 0 and below 2**63, draws the same inputs.
    ``precision="fp32"`` accepts the rounding of float32 arithmetic and refuses tf32; ``"tf32"`` accepts x and weight
    rounded to tf32 besides, and refuses bfloat16. All tensors have the problem's dtype; with float16 or bfloat16 the
    arithmetic must be float32's and y rounded once. The module's text has the bounds.

    Raises TypeError and ValueError where an argument is none of these; the message names it.
    """
    if not callable(candidate):
        raise TypeError(f"candidate must be callable, got {type(candidate).__name__}")
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
        raise TypeError(f"problem must be a Problem, got {type(problem).__name__}")
    if problem.batch == 0:
        raise ValueError(f"problem must have a batch of at least 1, got {problem}")
    check_precision(precision, problem.dtype)

    cases: list[Case] = []
    earlier: tuple[Tensor, Tensor] | None = None  # the result before, and what it was when it was returned
    given: Inputs | None = None  # what the candidate got
    for number, (name, shape) in enumerate(shapes_around(problem)):
        inputs = random_inputs(shape, seed + number, device)
        reasons: list[str] = []
        given = in_place(inputs, given)
        y = call(candidate, given, inputs, shape, reasons)
        if y is None and device_is_lost(device):
            reasons.append("the GPU is lost to this process: restart it")
            cases.append(Case(name, shape, math.nan, None, None, tuple(reasons)))
            break
        if earlier is not None and not same_bits(*earlier):
            reasons.append("the result of an earlier call changes with the next call: y must be new memory each time")
        earlier = None
        if y is None:
            cases.append(Case(name, shape, math.nan, None, None, tuple(reasons)))
        else:
            cases.append(compare(name, shape, inputs, y, reasons, precision))
            if y.numel() <= 2**20:
                earlier = y, y.clone()
    return Report(problem, precision, str(device), seed, tuple(cases))


def _device(given: torch.device | str) -> torch.device:
    """The CPU or a GPU that is here, or the error that ``given`` deserves."""
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
