"""A plan made ready: its kernels compiled, and everything worked out that is the same in every call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fusedref.arguments import check_memory
from fusedref.cuda.backend import Kind, backend_of
from fusedref.cuda.compile import source_module
from fusedref.cuda.kernel import Kernel
from fusedref.cuda.scratch import Scratch
from fusedref.parameters import TENSOR_NAMES, Parameters
from fusedref.plans import Launch, Plan
from fusedref.plans.library import LIBRARIES
from fusedref.problem import Problem
from fusedref.target import Target

# The values that a launch chooses its arguments from: tensors, then the plan's scratch, then numbers.
TENSORS, NUMBERS = (*TENSOR_NAMES, "y"), ("scaling_factor", "eps", "batch", "channels", "plane")


class PlanRunner:
    """Runs a plan on tensors of one device."""

    def __init__(self, plan: Plan, problem: Problem, device: torch.device) -> None:
        """Compile the kernels of ``plan`` for ``device``, unless the batch is empty."""
        self.memory_format = torch.channels_last if plan.variant.channels_last else torch.contiguous_format
        self.y = kind_of(problem.output_shape, problem.dtype, self.memory_format)
        self.sizes = problem.batch, problem.out_channels, problem.out_height * problem.out_width
        self.index, self.backend = device.index, backend_of(device)
        self.scratch = Scratch([plan.scratch] if plan.scratch else [])
        names = (*TENSORS, *["scratch" for _ in self.scratch.sizes], *NUMBERS)
        self.kernels = [kernel_of(launch, device, names) for launch in plan.launches] if problem.batch else []

    def contiguous(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the tensors as the kernels read them, copied where they lie in memory otherwise."""
        x, *parameters = tensors
        assert x is not None
        x = x.contiguous(memory_format=self.memory_format)
        return [x, *[tensor if tensor is None else tensor.contiguous() for tensor in parameters]]

    def __call__(self, tensors: Sequence[Tensor | None], scaling_factor: float, eps: float) -> Tensor:
        """Return y of x, weight and the five vectors, which must be ``contiguous``."""
        y = self._new(tensors)
        if self.kernels:
            numbers = scaling_factor, eps, *self.sizes
            blocks, _memory = self.backend.allocate(self.scratch, self.index) if self.scratch.sizes else ((), None)
            try:
                self.backend.launch(self.kernels, (*tensors, y), numbers, self.index, blocks)
            except ValueError:
                check_memory(tensors)  # its error names the argument
                raise
        return y

    def _new(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Return y before the kernels run."""
        (y,) = self.backend.new((self.y,), self.index)
        return y


class LibraryRunner(PlanRunner):
    """Runs a plan whose convolution is torch's, and which changes no setting of torch.

    cuDNN's algorithm is the one that is fastest when it is first timed, among those that give the same result in every
    call; another process may find another one to be the fastest. Whether products are rounded to tf32 depends on the
    plan's precision alone: where torch's setting lets a matrix product in float32 do so, the convolution serves.
    """

    def __init__(self, plan: Plan, problem: Problem, device: torch.device) -> None:
        """Compile as ``PlanRunner`` does."""
        super().__init__(plan, problem, device)
        (top, _), (left, _) = problem.pads
        self.options = problem.strides, (top, left), problem.dilations, False, (0, 0), problem.groups
        self.allow_tf32 = plan.variant.precision == "tf32"
        self.multiplies, self.is_float32 = plan.kernel == "matmul", problem.dtype == torch.float32

    def contiguous(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the tensors as the convolution and the kernels read them, copied where they lie otherwise."""
        x, weight, *vectors = tensors
        assert x is not None
        assert weight is not None
        filters = (tensor.contiguous(memory_format=self.memory_format) for tensor in (x, weight))
        return [*filters, *[tensor if tensor is None else tensor.contiguous() for tensor in vectors]]

    @torch.no_grad()
    def _new(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Return the convolution without its bias."""
        if not self.kernels:
            return super()._new(tensors)
        x, weight, *_ = tensors
        assert x is not None
        assert weight is not None
        if not (x.data_ptr() and weight.data_ptr()):
            check_memory(tensors)  # else the library would read from address 0
        if self.multiplies and not (self.is_float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"):
            return self._product(x, weight)
        # While a graph is captured nothing can be timed: what an earlier call has found is used all the same.
        benchmark = x.is_cuda and not torch.cuda.is_current_stream_capturing()
        enabled = torch.backends.cudnn.enabled
        z = torch._convolution(x, weight, None, *self.options, benchmark, True, enabled, self.allow_tf32)
        return z.contiguous(memory_format=self.memory_format)

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the convolution with a 1x1 kernel as a product of matrices."""
        (down, across), (batch, channels, height, width) = self.options[0], self.y[0]
        if (down, across) != (1, 1):
            x = x[:, :, ::down, ::across].contiguous(memory_format=self.memory_format)
        filters = weight.view(channels, -1)
        if height * width == 1 or self.memory_format == torch.channels_last:
            product = torch.mm(x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]), filters.t())
            return product.view(batch, height, width, channels).permute(0, 3, 1, 2)
        if batch == 1:
            return torch.mm(filters, x.view(x.shape[1], -1)).view(self.y[0])
        return torch.bmm(filters.expand(batch, -1, -1), x.view(batch, x.shape[1], -1)).view(self.y[0])


def runner_of(plan: Plan, problem: Problem, device: torch.device) -> PlanRunner:
    """Return what runs ``plan`` on ``device``."""
    return (LibraryRunner if plan.kernel in LIBRARIES else PlanRunner)(plan, problem, device)


def run_plan(plan: Plan, problem: Problem, parameters: Parameters) -> Tensor:
    """Return y of ``problem``, computed by ``plan``."""
    runner = runner_of(plan, problem, parameters.x.device)
    return runner(runner.contiguous(parameters.tensors), parameters.scaling_factor, parameters.eps)


def kind_of(
    shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format = torch.contiguous_format
) -> Kind:
    """Return the kind of a tensor of this shape, dtype and order."""
    return shape, torch.empty(shape, device="meta", memory_format=memory_format).stride(), dtype


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
