"""Training with few channels on sm_90a: batch statistics from the moments of x, and gradients from one pass over dy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from fusedref.cuda.backend import backend_of
from fusedref.cuda.kernel import Kernel
from fusedref.cuda.scratch import Scratch
from fusedref.ops.runner import kernel_of, kind_of, target_of
from fusedref.ops.training import Gradients, Needs, Running
from fusedref.plans import KernelVariant
from fusedref.plans.training import backward_launches, forward_launches, workspaces
from fusedref.problem import Problem

# The values that the kernels choose their arguments from: tensors, then scratch, then numbers.
FORWARD_TENSORS = (
    *("x", "weight", "bias", "running_mean", "running_var", "batches", "y", "mean", "var", "moments"),
    *("float32_bias", "gamma", "beta"),
)
STATISTICS_SCRATCH = ("centre", "moment_parts", "squares", "finished")
BACKWARD_TENSORS = (
    *("dy", "x", "weight", "bias", "gamma", "mean", "var", "dx", "dweight", "dbias", "dgamma", "dbeta"),
)
BACKWARD_SCRATCH = ("parts", "slopes", "composites", "constants")
# In evaluation mode backward computes the moments of x itself, and batch statistics that nobody reads.
UNREAD = {"unread_mean": "mean", "unread_var": "var"}
NUMBERS = ("momentum", "scaling_factor", "eps", "batch")


class FastTraining:
    """Runs forward and backward of one problem on one device. All tensors are contiguous."""

    def __init__(self, problem: Problem, device: torch.device, precision: str, vectors: torch.dtype) -> None:
        """Plan; kernels are compiled when first needed."""
        self.problem, self.device, self.vectors = problem, device, vectors
        self.target, self.variant = target_of(device), KernelVariant(precision, False, vectors)
        self.backend = backend_of(device)
        self.workspaces = workspaces(problem, self.target, self.variant)
        self.saved_elements: int = self.workspaces["moments"] // 8
        channels = kind_of((problem.out_channels,), torch.float32)
        moments = kind_of((self.saved_elements,), torch.float64)
        parameters = kind_of(problem.weight_shape, problem.dtype), *[kind_of((problem.out_channels,), vectors)] * 3
        self.gradients = kind_of(problem.input_shape, problem.dtype), *parameters
        self.results = kind_of(problem.output_shape, problem.dtype), channels, channels, moments
        self._forward_scratch = self._scratch(STATISTICS_SCRATCH)
        self._backward: dict[tuple[bool, bool, bool], tuple[list[Kernel], Scratch]] = {}

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
        """Return y, the mean and biased variance of conv2d + bias over the batch, and the moments of x."""
        running_mean = running_var = batches = None
        momentum = 0.0
        if running is not None:
            running_mean, running_var, batches, given = running
            # For the kernel, a negative momentum means 1 / batches.
            momentum = given if given is not None else 0.0 if batches is None else -1.0
        statistics, others = self._forward_kernels
        backend, problem, index = self.backend, self.problem, self.device.index
        blocks, _memory = backend.allocate(self._forward_scratch, index)
        backend.launch(statistics, (x,), (problem.batch,), index, blocks)  # before the rest, so that the device begins
        vectors = [bias, gamma, beta]
        if self.vectors != torch.float32:  # those of the evaluation kernel are float32, as mean and var are
            vectors = [vector if vector is None else vector.float() for vector in vectors]
        y, mean, var, moments = backend.new(self.results, index)
        tensors = (x, weight, bias, running_mean, running_var, batches, y, mean, var, moments, *vectors)
        backend.launch(others, tensors, (momentum, scaling_factor, eps, problem.batch), index, blocks)
        return y, mean, var, moments

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

        ``saved`` is the moments of x. Where it is None, ``mean`` and ``var`` are constants (evaluation mode).
        """
        kinds = [kind for kind, needed in zip(self.gradients, needs, strict=True) if needed]
        new = iter(self.backend.new(kinds, self.device.index))
        dx, dweight, dbias, dgamma, dbeta = (next(new) if needed else None for needed in needs)
        tensors = (dy, x, weight, bias, gamma, mean.float(), var.float(), dx, dweight, dbias, dgamma, dbeta, saved)
        kernels, scratch = self._backward_kernels(saved is not None, needs[0], any(needs[1:]))
        numbers = (0.0, scaling_factor, eps, self.problem.batch)
        blocks, _memory = self.backend.allocate(scratch, self.device.index)
        self.backend.launch(kernels, tensors, numbers, self.device.index, blocks)
        return dx, dweight, dbias, dgamma, dbeta

    @cached_property
    def _forward_kernels(self) -> tuple[list[Kernel], list[Kernel]]:
        """Return the first kernel, which reads x alone, and the others."""
        first, *others = forward_launches(self.problem, self.target, self.variant)
        names = (*FORWARD_TENSORS, *STATISTICS_SCRATCH, *NUMBERS)
        return (
            [kernel_of(first, self.device, ("x", *STATISTICS_SCRATCH, "batch"))],
            [kernel_of(launch, self.device, names) for launch in others],
        )

    def _backward_kernels(self, training: bool, of_x: bool, of_parameters: bool) -> tuple[list[Kernel], Scratch]:
        key = training, of_x, of_parameters
        if key not in self._backward:
            launches = backward_launches(self.problem, self.target, self.variant, *key)
            scratch = BACKWARD_SCRATCH if training else (*BACKWARD_SCRATCH, *STATISTICS_SCRATCH, "moments", *UNREAD)
            names = (*BACKWARD_TENSORS, "moments" if training else "nothing")
            kernels = [kernel_of(launch, self.device, (*names, *scratch, *NUMBERS)) for launch in launches]
            self._backward[key] = kernels, self._scratch(scratch)
        return self._backward[key]

    def _scratch(self, names: Sequence[str]) -> Scratch:
        return Scratch([self.workspaces[UNREAD.get(name, name)] for name in names])
