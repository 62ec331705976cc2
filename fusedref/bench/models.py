"""Time every distinct convolution of well-known models: ours, and the best that a user gets by hand.

By hand, BatchNorm and the scale are folded into the weights once, and torch's convolution runs with the algorithm that
it finds to be the fastest (``torch.backends.cudnn.benchmark``). The three operators one after the other are that
convolution and two passes more.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from fusedref.bench.layers import MODELS, model_problems
from fusedref.bench.peers import DTYPES, LAYOUTS, folded, ours
from fusedref.bench.problems import describe
from fusedref.bench.rows import Row
from fusedref.bench.timing import arithmetic, spread
from fusedref.commandline import progress_bar
from fusedref.ops.inference import compile_inference
from fusedref.ops.runner import target_of
from fusedref.parameters import Parameters
from fusedref.plans import KernelVariant, plan_for
from fusedref.problem import Problem
from fusedref.tuning.timing import graph_samples

MODE = "models"  # of the rows
BY_HAND, OURS = "folded library", "fusedref"
BATCHES = 1, 32
SCALE = 2.0


def model_rows(
    models: tuple[str, ...] = MODELS,
    batches: Sequence[int] = BATCHES,
    precisions: Iterable[str] = DTYPES,
    layouts: Iterable[str] = LAYOUTS,
) -> Iterator[Row]:
    """Yield two rows for each convolution, precision and layout; show progress on a terminal."""
    work = [
        (problem, precision, layout)
        for precision in precisions
        for layout in layouts
        for batch in batches
        for problem in model_problems(models, batch, DTYPES[precision])
    ]
    device = torch.device("cuda", torch.cuda.current_device())
    with progress_bar() as progress, ThreadPoolExecutor() as pool:
        compilations = [
            pool.submit(compile_inference, problem, device, precision_of(precision), layout == "channels_last")
            for problem, precision, layout in work
        ]
        task = progress.add_task("timing", total=len(work))
        try:
            for (problem, precision, layout), compilation in zip(work, compilations, strict=True):
                progress.update(task, description=f"{describe(problem)}, {precision}, {layout}")
                compilation.result()
                yield from timed_rows(problem, MODE, precision, layout, (BY_HAND, OURS))
                progress.advance(task)
        finally:
            pool.shutdown(cancel_futures=True)  # so that Ctrl-C or an error does not wait for the rest


def timed_rows(problem: Problem, mode: str, precision: str, layout: str, names: tuple[str, ...]) -> list[Row]:
    """Time a copy of the least bytes and what ``names`` (OURS, BY_HAND) say on the same random numbers, in one run."""
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    generator = torch.Generator("cuda").manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        """Return normal random numbers."""
        return torch.randn(shape, generator=generator, device="cuda").to(problem.dtype)

    x, weight = random(*problem.input_shape), random(*problem.weight_shape) / problem.taps**0.5
    mean, gamma, beta = (random(problem.out_channels) for _ in range(3))
    x, weight = (tensor.contiguous(memory_format=memory_format) for tensor in (x, weight))
    inputs = Parameters(x, weight, None, mean, torch.ones_like(mean), gamma, beta, SCALE, 1e-5)
    source = torch.empty(problem.least_bytes // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    with arithmetic(precision), torch.no_grad():
        calls: dict[str, Callable[[], object]] = {
            BY_HAND: folded(inputs, problem.conv_options),
            OURS: ours(inputs, problem.conv_options, precision_of(precision)),
        }
        floor, *times = graph_samples([lambda: target.copy_(source), *[calls[name] for name in names]])
    device = torch.device("cuda", torch.cuda.current_device())
    variant = KernelVariant(precision_of(precision), layout == "channels_last", problem.dtype)
    kernels = {OURS: plan_for(dataclasses.replace(problem, bias=False), target_of(device), variant).kernel}
    return [
        Row(
            name, mode, precision, layout, describe(problem), statistics.median(own), spread(own), None,
            statistics.median(floor), kernel=kernels.get(name),
        )
        for name, own in zip(names, times, strict=True)
    ]  # fmt: skip


def precision_of(precision: str) -> str:
    """Return the precision that a call is given."""
    return "tf32" if precision == "tf32" else "fp32"
