"""Time the candidates for convolutions on the GPU at hand, and remember the fastest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from fusedref.arguments import check_precision
from fusedref.commandline import progress_bar
from fusedref.cuda.backend import can_launch
from fusedref.ops import calls
from fusedref.ops.runner import PlanRunner, runner_of, target_of
from fusedref.plans import KernelVariant, plan_for
from fusedref.plans.candidates import Choice, candidate_plans
from fusedref.plans.choices import remember, tuned
from fusedref.problem import Problem
from fusedref.tuning.layers import Layer, layers_of
from fusedref.tuning.timing import graph_microseconds

NOISE = 1.02  # a candidate must be faster by this factor than one that comes before it in the order of preference


class Tuned(NamedTuple):
    """What was measured of a convolution: microseconds by candidate, and the one that is remembered."""

    layer: Layer
    precision: str
    microseconds: dict[Choice, float]
    choice: Choice

    def __str__(self) -> str:
        times = ", ".join(f"{choice.kernel} {us:.1f}" for choice, us in self.microseconds.items())
        return f"{self.layer.problem}: {self.choice} ({times} us)"


def tune(
    what: nn.Module | Problem | Sequence[Problem],
    example: Any = None,
    *,
    precision: str = "fp32",
    channels_last: bool = False,
    device: torch.device | str | int | None = None,
) -> list[Tuned]:
    """Time the candidates for each convolution of ``what`` once, and use the fastest from then on.

    ``what`` is a model, of which ``example``, an input or a tuple of the inputs, shows the convolutions; or a Problem
    or a sequence of them, with x and y in channels_last order if ``channels_last``. ``precision="tf32"`` is for calls
    with that precision. ``device`` is the GPU to time on, the current one if None.

    The choices are kept in fusedref's folder of the user's cache, for this card, this version of torch and these
    kernels. Return what was measured; nothing is, of a convolution that has been tuned before. Kernels are compiled in
    parallel, with a progress bar on a terminal.

    Raise TypeError or ValueError where an argument is something else, RuntimeError without a GPU.
    """
    device = _gpu(device)
    layers = _layers(what, example, channels_last)
    if precision != "fp32":
        check_precision(precision, torch.float32)
    target = target_of(device)
    work = []
    for layer in layers:
        own_precision = precision if layer.problem.dtype == torch.float32 else "fp32"
        variant = KernelVariant(own_precision, layer.channels_last, layer.problem.dtype)
        if layer.problem.batch and tuned(layer.problem, target, variant) is None:
            work.append((layer, variant))
    results = list(measured(work, device))
    for result in results:
        variant = KernelVariant(result.precision, result.layer.channels_last, result.layer.problem.dtype)
        remember(result.choice, result.layer.problem, target, variant)
    plan_for.cache_clear()
    calls.forget()
    return results


def measured(work: Sequence[tuple[Layer, KernelVariant]], device: torch.device) -> Iterable[Tuned]:
    """Yield what is measured of each layer, while further kernels are compiled."""
    target = target_of(device)

    def prepare(layer: Layer, variant: KernelVariant) -> dict[Choice, PlanRunner]:
        """Compile the candidates."""
        plans = dict(candidate_plans(layer.problem, target, variant))
        return {choice: runner_of(plan, layer.problem, device) for choice, plan in plans.items()}

    with progress_bar() as progress, ThreadPoolExecutor() as pool, torch.cuda.device(device):
        jobs = [pool.submit(prepare, *each) for each in work]
        try:
            for (layer, variant), job in progress.track(list(zip(work, jobs, strict=True)), description="tuning"):
                runners = job.result()
                times = dict(zip(runners, _times(layer.problem, list(runners.values()), device), strict=True))
                yield Tuned(layer, variant.precision, times, fastest(times))
                runners.clear()
        finally:
            pool.shutdown(cancel_futures=True)  # so that Ctrl-C or an error does not wait for the rest


def fastest(times: dict[Choice, float]) -> Choice:
    """Return the fastest choice; one that comes later must be faster by NOISE than those before it."""
    best, *others = times
    for choice in others:
        if times[choice] * NOISE < times[best]:
            best = choice
    return best


def _times(problem: Problem, runners: list[PlanRunner], device: torch.device) -> list[float]:
    """Return the microseconds of each runner on random numbers."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        """Return normal random numbers."""
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(problem.dtype)

    memory_format = runners[0].memory_format
    x = random(*problem.input_shape).contiguous(memory_format=memory_format)
    weight = (random(*problem.weight_shape) / problem.taps**0.5).contiguous(memory_format=memory_format)
    mean, gamma, beta = (random(problem.out_channels) for _ in range(3))
    var = torch.ones_like(mean)
    tensors = x, weight, None, mean, var, gamma, beta

    def called(runner: PlanRunner) -> None:
        """Run it as a call does."""
        runner(runner.contiguous(tensors), 1.0, 1e-5)

    with torch.no_grad():
        return graph_microseconds([partial(called, runner) for runner in runners])


def _gpu(device: torch.device | str | int | None) -> torch.device:
    """Return the CUDA device to time on, with its index."""
    found = torch.device("cuda" if device is None else device)
    if found.type != "cuda":
        raise ValueError(f"device must be a CUDA device, got {found}: times are measured on a GPU alone")
    if not can_launch(found):
        raise RuntimeError("tune times kernels on a GPU, and there is no NVIDIA GPU with PyCUDA here")
    return torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)


def _layers(what: object, example: object, channels_last: object) -> list[Layer]:
    """Return the convolutions to tune; raise TypeError for anything else."""
    if not isinstance(channels_last, bool):
        raise TypeError(f"channels_last must be True or False, got {channels_last!r}")
    if isinstance(what, nn.Module):
        if example is None:
            raise TypeError("example must be an input of the model, or a tuple of its inputs, got None")
        return layers_of(what, example)
    if example is not None:
        raise TypeError("example is for a model; a Problem needs none")
    problems = [what] if isinstance(what, Problem) else what
    if not isinstance(problems, Sequence) or not all(isinstance(problem, Problem) for problem in problems):
        raise TypeError(f"what must be a torch.nn.Module, a Problem or a sequence of them, got {what!r}")
    return list(dict.fromkeys(Layer(problem, channels_last) for problem in problems))
