"""A plan made ready: its kernels compiled, and everything worked out that is the same in every call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fusedref.arguments import check_memory
from fusedref.cuda.backend import backend_of
from fusedref.cuda.compile import source_module
from fusedref.cuda.kernel import Kernel
from fusedref.parameters import TENSOR_NAMES, Parameters
from fusedref.plans import Launch, Plan
from fusedref.problem import Problem
from fusedref.target import Target

# The values that a launch chooses its arguments from: tensors first, then numbers.
VALUE_NAMES = (*TENSOR_NAMES, "y", "scaling_factor", "eps", "batch")


class PlanRunner:
    """Runs a plan on tensors of one device."""

    def __init__(self, plan: Plan, problem: Problem, device: torch.device) -> None:
        """Compile the kernels of ``plan`` for ``device``, unless the batch is empty."""
        self.memory_format = torch.channels_last if plan.variant.channels_last else torch.contiguous_format
        self.shape, self.dtype = problem.output_shape, problem.dtype
        self.strides = strides_of(self.shape, self.memory_format)
        self.batch, self.index, self.backend = problem.batch, device.index, backend_of(device)
        self.kernels = [kernel_of(launch, device, VALUE_NAMES) for launch in plan.launches] if self.batch else []

    def contiguous(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the tensors as the kernels read them, copied where they lie in memory otherwise."""
        x, *parameters = tensors
        assert x is not None
        x = x.contiguous(memory_format=self.memory_format)
        return [x, *[tensor if tensor is None else tensor.contiguous() for tensor in parameters]]

    def __call__(self, tensors: Sequence[Tensor | None], scaling_factor: float, eps: float) -> Tensor:
        """Return y of x, weight and the five vectors, which must be ``contiguous``."""
        y = self.backend.empty(self.shape, self.strides, self.dtype, self.index)
        if self.kernels:
            try:
                self.backend.launch(self.kernels, (*tensors, y), (scaling_factor, eps, self.batch), self.index)
            except ValueError:
                check_memory(tensors)  # its error names the argument
                raise
        return y


def run_plan(plan: Plan, problem: Problem, parameters: Parameters) -> Tensor:
    """Return y of ``problem``, computed by ``plan``."""
    runner = PlanRunner(plan, problem, parameters.x.device)
    return runner(runner.contiguous(parameters.tensors), parameters.scaling_factor, parameters.eps)


def strides_of(shape: tuple[int, ...], memory_format: torch.memory_format = torch.contiguous_format) -> tuple[int, ...]:
    """Return the strides of a tensor of this shape and order."""
    return torch.empty(shape, device="meta", memory_format=memory_format).stride()


def target_of(device: torch.device) -> Target:
    """Return the GPU that plans for ``device`` are made for; the CPU's is the one that the emulator stands for."""
    return backend_of(device).target(device.index)


@lru_cache(maxsize=1024)
def compiled_function(launch: Launch, device: torch.device) -> Any:
    """Return the loaded function of ``launch``, which may be launched with the shared memory that it needs."""
    function = source_module(launch.source, launch.options, device).get_function(launch.symbol)
    backend_of(device).allow_shared(function, launch.shared, device.index)
    return function


def kernel_of(launch: Launch, device: torch.device, names: Sequence[str]) -> Kernel:
    """Return the compiled kernel of ``launch``, which chooses its arguments from values with these names."""
    kinds = [argument.kind for argument in launch.signature]
    places = [names.index(argument.name) for argument in launch.signature]
    return Kernel(compiled_function(launch, device), kinds, places, launch.grid, launch.block, launch.shared)
