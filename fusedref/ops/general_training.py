"""Training for any problem: convolutions, ours or the library's, and two passes of ours for each of y and dz.

    z = conv2d(x, weight)        y = scale * (gamma * (z + bias - mean) / sqrt(var + eps) + beta)

The bias is added to the mean instead of z, which saves a pass where the library convolves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedref.cuda.backend import backend_of
from fusedref.cuda.kernel import Kernel
from fusedref.cuda.scratch import Scratch
from fusedref.ops.runner import PlanRunner, kernel_of, kind_of, target_of
from fusedref.ops.training import Gradients, Needs, Running
from fusedref.plans import KernelVariant, Launch, own_plan_for
from fusedref.plans.general_training import (
    backward_launches,
    forward_launches,
    input_gradient_problem,
    library_convolves,
    slices_of,
    weight_plan,
)
from fusedref.plans.weight_gradient import WeightPlan
from fusedref.problem import Problem

convolution_backward = torch.ops.aten.convolution_backward

# The values that the kernels choose their arguments from: tensors, then scratch, then numbers.
FORWARD = (
    *("z", "bias", "gamma", "beta", "running_mean", "running_var", "batches", "y", "mean", "var"),
    *("parts", "momentum", "scaling_factor", "eps", "batch", "channels", "plane"),
)
BACKWARD = (
    *("dy", "z", "bias", "gamma", "mean", "var", "dz", "dbias", "dgamma", "dbeta"),
    *("parts", "scaling_factor", "eps", "batch", "channels", "plane"),
)
WEIGHT_GRADIENT = ("dz", "x", "dweight", "parts", "batch", "count")


class GeneralTraining:
    """Runs forward and backward of one problem on one device.

    x, y, dy and dx lie in memory in NCHW order or all with channels last; everything else is contiguous. The vectors
    are float32 or have the dtype ``vectors``.
    """

    saved_elements = 0  # what forward saves is z, which is like y

    def __init__(
        self,
        problem: Problem,
        device: torch.device,
        precision: str = "fp32",
        channels_last: bool = False,
        vectors: torch.dtype | None = None,
    ) -> None:
        """Plan; kernels are compiled when first needed. The batch must not be empty."""
        self.problem, self.device = problem, device
        self.variant = KernelVariant(precision, channels_last, vectors)
        self.vectors = vectors or problem.dtype
        self.backend, self.target = backend_of(device), target_of(device)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        # Whether the library multiplies numbers of 11 bits or fewer. If torch's setting changes, the choices stay.
        self.coarse = problem.dtype != torch.float32 or (precision == "tf32" and library_rounds_to_tf32())
        self.sizes = problem.batch, problem.out_channels, problem.out_height * problem.out_width

    @torch.no_grad()
    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        scaling_factor: float,
        eps: float,
        running: Running | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return y, the mean and biased variance of conv2d + bias over the batch (float32), and z for ``backward``.

        Raise ValueError where a channel has one value, with torch's words.
        """
        if self.sizes[0] * self.sizes[2] == 1:
            size = torch.Size(self.problem.output_shape)
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {size}")
        z = self._convolution(x, weight)
        y = torch.empty_like(z)
        kernels, scratch = self._forward_kernels
        mean, var = self.backend.new([kind_of(self.sizes[1:2], torch.float32)] * 2, self.device.index)
        running_mean = running_var = batches = None
        momentum = 0.0
        if running is not None:
            running_mean, running_var, batches = running.mean, running.var, running.batches
            if running.momentum is not None:
                momentum = running.momentum
            elif batches is not None:
                momentum = -1.0  # for the kernel: 1 / batches
        tensors = (z, bias, gamma, beta, running_mean, running_var, batches, y, mean, var)
        blocks, _memory = self.backend.allocate(scratch, self.device.index)
        self.backend.launch(kernels, tensors, (momentum, scaling_factor, eps, *self.sizes), self.device.index, blocks)
        return y, mean, var, z

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor | None,
        mean: Tensor,
        var: Tensor,
        saved: Tensor | None,
        scaling_factor: float,
        eps: float,
        needs: Needs,
    ) -> Gradients:
        """Return the gradients of x, weight, bias, gamma and beta, None where not needed.

        ``saved`` is z. Where it is None, ``mean`` and ``var`` are constants (evaluation mode), and z is computed again
        if the gradient of gamma needs it.

        The library's products follow torch's settings (``torch.backends.cudnn``), as in torch's own backward pass.
        """
        if dy.data_ptr() % 16:  # a view of the caller's; the kernels load 16 bytes at a time
            dy = dy.clone()
        needs_x, needs_weight, *needs_vectors = needs
        batch_statistics = saved is not None
        if saved is None and needs[3]:
            saved = self._convolution(x, weight)
        kernels, scratch = self._backward_kernels if batch_statistics else self._evaluation_kernels
        dz = dx = dweight = None
        if not (batch_statistics or any(needs_vectors)):
            kernels = kernels[1:]
        if needs_x or needs_weight:
            dz = torch.empty_like(dy)
        dbias, dgamma, dbeta = (
            torch.empty(self.sizes[1], dtype=self.vectors, device=dy.device) if needed else None
            for needed in needs_vectors
        )
        tensors = (dy, saved, bias, gamma, mean.float(), var.float(), dz, dbias, dgamma, dbeta)
        blocks, _memory = self.backend.allocate(scratch, self.device.index)
        self.backend.launch(kernels, tensors, (scaling_factor, eps, *self.sizes), self.device.index, blocks)
        if dz is not None:
            if needs_x and self._computes_input_gradient:
                dx, needs_x = self._input_gradient(dz, weight), False
            if needs_weight and batch_statistics and self._weight_plan is not None:
                dweight, needs_weight = self._weight_gradient(dz, x), False
            if needs_x or needs_weight:
                by_library = self._gradients_by_library(dz, x, weight, needs_x, needs_weight)
                dx, dweight = by_library[0] if needs_x else dx, by_library[1] if needs_weight else dweight
        return dx, dweight, dbias, dgamma, dbeta

    @cached_property
    def _forward_kernels(self) -> tuple[list[Kernel], Scratch]:
        return self._kernels(forward_launches(self.problem, self.target, self.variant), FORWARD)

    @cached_property
    def _backward_kernels(self) -> tuple[list[Kernel], Scratch]:
        return self._kernels(backward_launches(self.problem, self.target, self.variant, True), BACKWARD)

    @cached_property
    def _evaluation_kernels(self) -> tuple[list[Kernel], Scratch]:
        return self._kernels(backward_launches(self.problem, self.target, self.variant, False), BACKWARD)

    def _kernels(self, launches: Sequence[Launch], names: Sequence[str]) -> tuple[list[Kernel], Scratch]:
        """Return the compiled kernels, which choose their arguments by ``names``, and room for their parts."""
        parts = 16 * slices_of(launches[0]) * self.sizes[1]
        return [kernel_of(launch, self.device, names) for launch in launches], Scratch([parts])

    def _convolution(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return conv2d(x, weight) without the bias."""
        exact = self.problem.dtype == torch.float32 and self.variant.precision == "fp32"
        if (exact and library_rounds_to_tf32()) or not self._library_convolves(self.problem):
            return self._by_plan(self._convolution_runner, x, weight)
        with torch.autocast(x.device.type, enabled=False):
            z = F.conv2d(x, weight, None, **self.problem.conv_options)
        return z.contiguous(memory_format=self.memory_format)

    @cached_property
    def _convolution_runner(self) -> PlanRunner:
        return PlanRunner(own_plan_for(self.problem, self.target, self.variant), self.problem, self.device)

    def _by_plan(self, runner: PlanRunner, x: Tensor, weight: Tensor) -> Tensor:
        """Return the convolution by a plan of evaluation mode, with vectors that leave it as it is."""
        zeros, ones = self._neutral
        return runner((x, weight, None, zeros, ones, None, None), 1.0, 0.0)

    @cached_property
    def _neutral(self) -> tuple[Tensor, Tensor]:
        size = max(self.problem.in_channels, self.problem.out_channels)
        zeros, ones = (torch.full((size,), value, dtype=self.vectors, device=self.device) for value in (0.0, 1.0))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # any stream may read them
        return zeros, ones

    def _library_convolves(self, problem: Problem) -> bool:
        return library_convolves(problem, self.target, self.variant, self.coarse)

    @cached_property
    def _computes_input_gradient(self) -> bool:
        """Return whether a plan of evaluation mode computes dx."""
        other = input_gradient_problem(self.problem)
        return other is not None and not self._library_convolves(other)

    @cached_property
    def _input_gradient_runner(self) -> PlanRunner:
        other = input_gradient_problem(self.problem)
        assert other is not None
        return PlanRunner(own_plan_for(other, self.target, self.variant), other, self.device)

    def _input_gradient(self, dz: Tensor, weight: Tensor) -> Tensor:
        """Return dx by the convolution of dz with the filter turned around."""
        problem = self.problem
        turned = weight if problem.kernel == (1, 1) else weight.flip(2, 3)
        turned = turned.view(problem.groups, -1, *weight.shape[1:]).transpose(1, 2)
        turned = turned.reshape(problem.in_channels, problem.out_channels // problem.groups, *problem.kernel)
        return self._by_plan(self._input_gradient_runner, dz, turned.contiguous())

    @cached_property
    def _weight_plan(self) -> WeightPlan | None:
        return weight_plan(self.problem, self.target, self.variant, self.coarse)

    @cached_property
    def _weight_kernels(self) -> tuple[list[Kernel], Scratch]:
        assert self._weight_plan is not None
        launches, shape, dtype = self._weight_plan
        kernels = [kernel_of(launch, self.device, WEIGHT_GRADIENT) for launch in launches]
        return kernels, Scratch([math.prod(shape) * dtype.itemsize])

    def _weight_gradient(self, dz: Tensor, x: Tensor) -> Tensor:
        """Return dweight by our kernels, which need each channel of dz to be all finite, or all NaN and infinities."""
        assert self._weight_plan is not None
        dweight = torch.empty(self.problem.weight_shape, dtype=torch.float32, device=dz.device)
        (kernels, scratch), numbers = self._weight_kernels, (self.sizes[0], self._weight_plan.parts[0])
        blocks, _memory = self.backend.allocate(scratch, self.device.index)
        self.backend.launch(kernels, (dz, x, dweight), numbers, self.device.index, blocks)
        return dweight

    def _gradients_by_library(
        self, dz: Tensor, x: Tensor, weight: Tensor, needs_x: bool, needs_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return dx and dweight by torch's operator, None where not needed."""
        problem = self.problem
        (top, bottom), (left, right) = problem.pads
        uneven = (top, left) != (bottom, right)
        if uneven:  # of 'same': the operator takes as much padding before as behind
            x = F.pad(x, (0, right - left, 0, bottom - top)).contiguous(memory_format=self.memory_format)
        dx, dweight, _ = convolution_backward(
            dz, x, weight, None, problem.strides, (top, left), problem.dilations, False, (0, 0), problem.groups,
            (needs_x, needs_weight, False),
        )  # fmt: skip
        if needs_x:
            dx = dx[:, :, : problem.height, : problem.width].contiguous(memory_format=self.memory_format)
        return dx, dweight.contiguous() if needs_weight else None


def library_rounds_to_tf32() -> bool:
    """Return whether torch lets its convolutions round the factors of float32 products to tf32."""
    return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")  # type: ignore[attr-defined]
