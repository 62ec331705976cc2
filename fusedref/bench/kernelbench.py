"""Measure as KernelBench's harness does, on its level 2, problem 73.

The harness makes the model and ours from the same seed, with the problem's sizes as arguments; it leaves them in
training mode and gradients enabled. Inputs are uniform random numbers from 0 to 1. Ours must be within an absolute and
a relative tolerance of 1e-4 of the model's y on several inputs. Then each call is timed alone between two CUDA events,
after three warm-up calls. The harness reports the model's time divided by ours. It does not time evaluation mode; our
rows for that are measured in the same way.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from fusedref.bench.problems import describe
from fusedref.bench.rows import Row
from fusedref.bench.timing import arithmetic, copy_samples, spread
from fusedref.bench.training import EVALUATION_FORWARD, FORWARD
from fusedref.commandline import progress_bar
from fusedref.module import FusedConvBnScale
from fusedref.problem import KERNELBENCH_73, Problem
from fusedref.reference import ConvBnScale

SEED = 42
TOLERANCE = 1e-4
CHECKS, WARM_UPS, TRIALS = 5, 3, 100
MODES = ("KernelBench, train", "KernelBench, eval")


def made(kind: Callable[..., nn.Module], problem: Problem, training: bool, device: torch.device) -> nn.Module:
    """Return a model as the harness makes it: from the seed and the problem's four arguments."""
    torch.manual_seed(SEED)
    model = kind(problem.in_channels, problem.out_channels, problem.kernel[0], 2.0)
    return model.to(device).train(training)


def made_input(problem: Problem, seed: int, device: torch.device) -> Tensor:
    """Return the input of one trial."""
    torch.manual_seed(seed)
    return torch.rand(problem.input_shape).to(device)


def agrees(model: nn.Module, ours: nn.Module, problem: Problem, device: torch.device) -> bool:
    """Return whether ``ours`` agrees with ``model`` within the tolerances on every input."""
    for trial in range(CHECKS):
        x = made_input(problem, SEED + trial, device)
        with torch.no_grad():
            if not torch.allclose(model(x), ours(x), atol=TOLERANCE, rtol=TOLERANCE):
                return False
    return True


def trial_times(call: Callable[[], object]) -> list[float]:
    """Return the times of calls in microseconds; each call ends before the next begins."""
    for _ in range(WARM_UPS):
        call()
    torch.cuda.synchronize()
    times = []
    for _ in range(TRIALS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(1000 * start.elapsed_time(end))
    return times


def kernelbench_rows(problem: Problem = KERNELBENCH_73) -> list[Row]:
    """Measure eager PyTorch and ours in both modes; eager's convolutions in fp32, and in tf32, torch's default."""
    device = torch.device("cuda")
    kinds: dict[str, Callable[..., nn.Module]] = {"eager PyTorch": ConvBnScale, "fusedref": FusedConvBnScale}
    rows = []
    work = [(mode, precision) for mode in MODES for precision in ("fp32", "tf32")]
    with progress_bar() as progress:
        for mode, precision in progress.track(work, description="KernelBench's protocol"):
            training = mode.endswith("train")
            with arithmetic(precision):
                model = made(ConvBnScale, problem, training, device)
                floor = FORWARD if training else EVALUATION_FORWARD
                floor_us = statistics.median(copy_samples(floor.floor_bytes(problem)))
                x = made_input(problem, SEED, device)
                for name, kind in kinds.items():
                    ours = made(kind, problem, training, device)
                    passed = agrees(model, ours, problem, device)
                    times = trial_times(partial(made(kind, problem, training, device), x))
                    us = statistics.median(times)
                    row = Row(name, mode, precision, "NCHW", describe(problem), us, spread(times), None, floor_us)
                    rows.append(dataclasses.replace(row, passed=passed))
    return rows
