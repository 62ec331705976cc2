"""A plan made ready: its kernels compiled, and everything worked out that is the same in every call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusedref.cuda.compile import allow_shared, architecture, source_module
from fusedref.cuda.launch import InOut, Out, launch, launch_on_gpu
from fusedref.parameters import TENSOR_NAMES, Parameters
from fusedref.plans import EMULATED, Launch, Plan, Target
from fusedref.problem import Problem

VALUE_NAMES = (*TENSOR_NAMES, "scaling_factor", "eps", "y", "batch")  # the order of PlanRunner's values
STRUCT_LETTERS = {"in": "P", "out": "P", "inout": "P", "float": "f", "int64": "q"}
EMULATOR_WRAPPERS: dict[str, Any] = {"out": Out, "inout": InOut, "float": np.float32, "int64": np.int64}


class PlanRunner:
    """Runs a plan on tensors of one device."""

    def __init__(self, plan: Plan, problem: Problem, device: torch.device) -> None:
        """Compile the kernels of ``plan`` for ``device``, unless the batch is empty."""
        self.channels_last, self.device, self.batch = plan.variant.channels_last, device, problem.batch
        self.memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        y = torch.empty(problem.output_shape, device="meta", memory_format=self.memory_format)
        self.shape, self.strides = y.shape, y.stride()
        self.launches = [PreparedLaunch(launch, device) for launch in plan.launches] if self.batch else []

    def contiguous(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the tensors as the kernels read them, copied where they lie in memory otherwise."""
        x, *parameters = tensors
        assert x is not None
        x = x.contiguous(memory_format=self.memory_format)
        return [x, *[tensor if tensor is None else tensor.contiguous() for tensor in parameters]]

    def __call__(self, tensors: Sequence[Tensor | None], scaling_factor: float, eps: float) -> Tensor:
        """Return y of x, weight and the five vectors, which must be ``contiguous``."""
        x = tensors[0]
        assert x is not None
        y = x.new_empty_strided(self.shape, self.strides)
        if self.device.type == "cuda":
            values = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
            values += scaling_factor, eps, y.data_ptr(), self.batch
            for prepared in self.launches:
                prepared.on_gpu(values)
        else:
            # The emulator copies tensors that are contiguous; channels_last ones are so in their own order.
            x, out = (t.permute(0, 2, 3, 1) if self.channels_last else t for t in (x, y))
            for prepared in self.launches:
                prepared.on_emulator([x, *tensors[1:], scaling_factor, eps, out, self.batch])
        return y


class PreparedLaunch:
    """A launch with its kernel compiled and loaded."""

    def __init__(self, launch: Launch, device: torch.device) -> None:
        """Compile the kernel for ``device``."""
        self.function = compiled_function(launch, device)
        self.device_index = device.index
        self.select = itemgetter(*[VALUE_NAMES.index(argument.name) for argument in launch.signature])
        self.kinds = [argument.kind for argument in launch.signature]
        self.types = "".join(STRUCT_LETTERS[kind] for kind in self.kinds)
        self.geometry = launch.grid, launch.block, launch.shared

    def on_gpu(self, values: list[Any]) -> None:
        """Launch with ``values`` in the order of VALUE_NAMES, tensors as their addresses."""
        launch_on_gpu(self.function, self.types, self.select(values), self.device_index, *self.geometry)

    def on_emulator(self, values: list[Any]) -> None:
        """Launch with ``values`` in the order of VALUE_NAMES."""
        arguments = [
            EMULATOR_WRAPPERS[kind](value) if kind in EMULATOR_WRAPPERS else value
            for kind, value in zip(self.kinds, self.select(values))
        ]
        grid, block, shared = self.geometry
        launch(self.function, *arguments, grid=grid, block=block, shared=shared)


def run_plan(plan: Plan, problem: Problem, parameters: Parameters) -> Tensor:
    """Return y of ``problem``, computed by ``plan``."""
    x = parameters.x
    runner = PlanRunner(plan, problem, x.device)
    return runner(runner.contiguous(parameters.tensors), parameters.scaling_factor, parameters.eps)


@lru_cache(maxsize=1024)
def compiled_function(launch: Launch, device: torch.device) -> Any:
    """Return the loaded kernel of ``launch``."""
    function = source_module(launch.source, launch.options, device).get_function(launch.symbol)
    allow_shared(function, launch.shared, device)
    return function


@lru_cache(maxsize=64)
def target_of(device: torch.device) -> Target:
    """Return what plans need to know of ``device``; the CPU's is the emulator's."""
    if device.type == "cpu":
        return EMULATED
    return Target(architecture(device.index), torch.cuda.get_device_properties(device).multi_processor_count)
