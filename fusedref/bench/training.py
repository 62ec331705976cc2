"""Measure training and gradients: the module, eager PyTorch and torch.compile, with floors and peak memory."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fusedref.bench.peers import DTYPES
from fusedref.bench.problems import TINY, describe
from fusedref.bench.rows import FLOOR, HOST, Row
from fusedref.bench.timing import arithmetic, copy_samples, host_samples, samples, spread
from fusedref.commandline import progress_bar
from fusedref.module import FusedConvBnScale
from fusedref.problem import Problem
from fusedref.reference import ConvBnScale
from fusedref.validation.families import NORMAL, family_dy, family_inputs
from fusedref.validation.training_reference import GRADIENTS, forward, gradients

SCALE = 2.0
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Step:
    """What is timed: a call in training or evaluation mode, and the gradients that are computed after it.

    The floor moves x ``x_passes`` times and y ``y_passes`` times; reads and writes count alike. Forward reads x, twice
    where the statistics must be known before y, and writes y; backward reads dy and x once. With x's gradient in
    training, its first term is written, and then read with x to write dx, because the second term needs sums over all
    of dy. In evaluation mode there is no second term, and dx is written once.
    """

    mode: str
    training: bool
    needs: tuple[str, ...]
    x_passes: int
    y_passes: int
    enabled: bool = True  # whether autograd records the call, so that gradients could follow

    def floor_bytes(self, problem: Problem) -> int:
        """Return the bytes that the floor moves."""
        x, y = math.prod(problem.input_shape), math.prod(problem.output_shape)
        return problem.dtype.itemsize * (self.x_passes * x + self.y_passes * y)


FORWARD = Step("train", True, (), 2, 1, enabled=False)
RECORDED = Step("train, gradients enabled", True, (), 2, 1)
PARAMETERS = Step("train, gradients of parameters", True, GRADIENTS[1:], 3, 2)
WHOLE = Step("train, gradients of x too", True, GRADIENTS, 7, 2)
EVALUATION = Step("eval, gradients of x too", False, GRADIENTS, 3, 2)
EVALUATION_FORWARD = Step("eval, gradients enabled", False, (), 1, 1)
STEPS = (FORWARD, RECORDED, PARAMETERS, WHOLE, EVALUATION_FORWARD, EVALUATION)


def _eager(problem: Problem, precision: str) -> nn.Module:
    return _module(ConvBnScale, problem)


def _compiled(problem: Problem, precision: str) -> nn.Module:
    torch._dynamo.reset()  # forget kernels that were compiled for another precision
    compiled: nn.Module = torch.compile(_module(ConvBnScale, problem), dynamic=False)  # type: ignore[assignment]
    return compiled


def _ours(problem: Problem, precision: str) -> nn.Module:
    return _module(FusedConvBnScale, problem, precision="tf32" if precision == "tf32" else "fp32")


MODULES: dict[str, Callable[[Problem, str], nn.Module]] = {
    "eager PyTorch": _eager,
    "torch.compile": _compiled,
    "fusedref": _ours,
}


def _module(kind: type[ConvBnScale], problem: Problem, **options: Any) -> nn.Module:
    """Return a module of this kind for the problem."""
    options |= {**problem.conv_options, "bias": problem.bias}
    return kind(problem.in_channels, problem.out_channels, problem.kernel, SCALE, **options)


class Work:
    """One step of one problem in one precision: its data, and what float64 says of them."""

    def __init__(self, step: Step, problem: Problem, precision: str, device: str = "cuda") -> None:
        self.step, self.precision, self.device = step, precision, device
        self.problem = problem = dataclasses.replace(problem, dtype=DTYPES[precision])
        inputs = family_inputs(NORMAL, problem, 0, torch.device(device))
        self.inputs = inputs._replace(scaling_factor=SCALE, eps=1e-5)
        found = forward(problem, self.inputs, training=step.training)
        self.expected = {"y": found.y}
        self.dy: Tensor | None = None
        if step.needs:
            self.dy = family_dy(NORMAL, problem, found, 0)
            right = gradients(problem, self.inputs, self.dy, found, training=step.training)
            self.expected |= {
                name: value for name, value in right._asdict().items() if name in step.needs and value is not None
            }
            if step.training:
                del self.expected["dbias"]  # zero: it has no relative error

    def call_of(self, module: nn.Module) -> Callable[[], dict[str, Tensor]]:
        """Give the module the data; return the call to time, which returns y and the gradients by name."""
        module.to(self.device)
        layers: Any = module
        layers.conv.to(self.problem.dtype)  # bn stays in float32
        own = layers.conv.weight, layers.conv.bias, layers.bn.running_mean, layers.bn.running_var, layers.bn.weight
        with torch.no_grad():
            for tensor, value in zip((*own, layers.bn.bias), self.inputs.tensors[1:], strict=True):
                if tensor is not None and value is not None:
                    tensor.copy_(value)
        module.train(self.step.training)
        x, dy = self.inputs.x.detach().requires_grad_("dx" in self.step.needs), self.dy
        if dy is None:

            def only_forward() -> dict[str, Tensor]:
                """Compute y."""
                with torch.set_grad_enabled(self.step.enabled):
                    return {"y": module(x)}

            return only_forward
        leaves = dict(zip(GRADIENTS, (x, own[0], own[1], own[4], layers.bn.bias), strict=True))
        present = {name: leaf for name, leaf in leaves.items() if leaf is not None and leaf.requires_grad}

        def whole() -> dict[str, Tensor]:
            """Compute y and the gradients."""
            for leaf in present.values():
                leaf.grad = None
            y = module(x)
            y.backward(dy)
            return {"y": y, **{name: leaf.grad for name, leaf in present.items()}}

        return whole

    def error(self, results: dict[str, Tensor]) -> float:
        """Return the largest relative L2 error of y and the gradients against float64."""
        return max(
            float((results[name].detach().double() - value).norm() / value.norm())
            for name, value in self.expected.items()
        )


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the most memory that the call has at a time, beyond what there is before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def floor_row(step: Step, problem: Problem, precision: str) -> Row:
    """Time a copy on the device that moves the bytes of the step's floor."""
    problem = dataclasses.replace(problem, dtype=DTYPES[precision])
    times = copy_samples(step.floor_bytes(problem))
    us = statistics.median(times)
    return Row(FLOOR, step.mode, precision, "NCHW", describe(problem), us, spread(times), None, us)


def measure_step(name: str, work: Work, floor_us: float) -> Row:
    """Time one module at one step."""
    with arithmetic(work.precision):
        call = work.call_of(MODULES[name](work.problem, work.precision))
        error = work.error(call())
        peak = peak_bytes(call)
        times = samples(call)
    us, problem = statistics.median(times), describe(work.problem)
    return Row(
        name, work.step.mode, work.precision, "NCHW", problem, us, spread(times), error, floor_us, peak / MIB
    )  # fmt: skip


def training_rows(
    problems: list[Problem],
    steps: tuple[Step, ...] = STEPS,
    precisions: tuple[str, ...] = ("fp32",),
    names: tuple[str, ...] = tuple(MODULES),
) -> Iterator[Row]:
    """Measure the steps of each problem, in each precision, of each module; show progress on a terminal."""
    with progress_bar() as progress:
        task = progress.add_task("measuring", total=len(problems) * len(precisions) * len(steps) * len(names))
        for problem in problems:
            for precision in precisions:
                for step in steps:
                    floor = floor_row(step, problem, precision)
                    yield floor
                    work = Work(step, problem, precision)
                    for name in names:
                        progress.update(task, description=f"{describe(problem)}: {step.mode}, {name}, {precision}")
                        yield measure_step(name, work, floor.us)
                        progress.advance(task)


def training_host_rows() -> list[Row]:
    """Measure the host's time for a step on a tiny input; the floor is its time for a copy on the device."""
    source = torch.zeros(TINY.input_shape, device="cuda")
    target = torch.empty_like(source)
    floor_us = statistics.median(host_samples(lambda: target.copy_(source)))
    rows = []
    for step in STEPS:
        work = Work(step, TINY, "fp32")
        for name in ("eager PyTorch", "fusedref"):
            times = host_samples(work.call_of(MODULES[name](TINY, "fp32")))
            us = statistics.median(times)
            row = Row(
                f"{HOST}{name}, module", step.mode, "fp32", "NCHW", describe(TINY), us, spread(times), None, floor_us
            )
            rows.append(row)
    return rows
