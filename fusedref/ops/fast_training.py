"""Training with few channels on sm_90a: batch statistics from the moments of x, and gradients from one pass over dy."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from fusedref.cuda.backend import backend_of
from fusedref.cuda.kernel import Kernel
from fusedref.ops.runner import kernel_of, target_of
from fusedref.ops.training import Gradients, Needs, Running
from fusedref.plans import KernelVariant
from fusedref.plans.training import backward_launches, forward_launches, workspaces
from fusedref.problem import Problem

# The values that the kernels choose their arguments from: tensors, then numbers.
FORWARD_TENSORS = (
    *("x", "weight", "bias", "running_mean", "running_var", "batches", "y", "mean", "var", "moments"),
    *("centre", "moment_parts", "squares", "finished", "float32_bias", "gamma", "beta"),
)
BACKWARD_TENSORS = (
    *("dy", "x", "weight", "bias", "gamma", "mean", "var", "moments", "filters", "parts", "slopes", "composites"),
    *("constants", "dx", "dweight", "dbias", "dgamma", "dbeta"),
)
# In evaluation mode backward computes the moments of x itself, and batch statistics that nobody reads.
EVALUATION_TENSORS = ("moment_parts", "squares", "finished", "unread_mean", "unread_var", "unread_centre", "nothing")
NUMBERS = ("momentum", "scaling_factor", "eps", "batch")


class FastTraining:
    """Runs forward and backward of one problem on one device. All tensors are contiguous."""

    def __init__(self, problem: Problem, device: torch.device, precision: str, vectors: torch.dtype) -> None:
        """Plan; kernels are compiled when first needed."""
        self.problem, self.device, self.vectors = problem, device, vectors
        self.target, self.variant = target_of(device), KernelVariant(precision, False, vectors)
        self.backend = backend_of(device)
        self.workspaces = workspaces(problem, self.target, self.variant)
        self.saved_elements: int = self.workspaces["moments"][0][0]
        self.output_shape = problem.output_shape
        self._backward: dict[tuple[bool, bool, bool], list[Kernel]] = {}

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
        vectors = [bias, gamma, beta]
        if self.vectors != torch.float32:  # those of the evaluation kernel are float32, as mean and var are
            vectors = [vector if vector is None else vector.float() for vector in vectors]
        y = x.new_empty(self.output_shape)
        mean, var, moments, *rest = self._new("mean", "var", "moments", *FORWARD_TENSORS[10:14])
        tensors = (x, weight, bias, running_mean, running_var, batches, y, mean, var, moments, *rest, *vectors)
        numbers = (momentum, scaling_factor, eps, self.problem.batch)
        self.backend.launch(self._forward_kernels, tensors, numbers, self.device.index)
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
        of_x, of_parameters, training = needs[0], any(needs[1:]), saved is not None
        filters, parts, slopes, composites, constants = self._new(*BACKWARD_TENSORS[8:13])
        dx = torch.empty_like(x) if of_x else None
        dweight = torch.empty_like(weight) if needs[1] else None
        dbias, dgamma, dbeta = (
            torch.empty(self.problem.out_channels, dtype=self.vectors, device=x.device) if needed else None
            for needed in needs[2:]
        )
        moments, rest = saved, []
        if not training:
            moments, *rest = self._new("moments", *EVALUATION_TENSORS[:3], "mean", "var", "centre")
        tensors = (
            *(dy, x, weight, bias, gamma, mean.float(), var.float(), moments, filters, parts, slopes, composites),
            *(constants, dx, dweight, dbias, dgamma, dbeta, *rest, None),
        )
        numbers = (0.0, scaling_factor, eps, self.problem.batch)
        kernels = self._backward_kernels(training, of_x, of_parameters)
        self.backend.launch(kernels, tensors, numbers, self.device.index)
        return dx, dweight, dbias, dgamma, dbeta

    def _new(self, *names: str) -> list[Tensor]:
        """Return new tensors for workspaces."""
        sizes = [self.workspaces[name] for name in names]
        return [torch.empty(shape, dtype=dtype, device=self.device) for shape, dtype in sizes]

    @cached_property
    def _forward_kernels(self) -> list[Kernel]:
        launches = forward_launches(self.problem, self.target, self.variant)
        return [kernel_of(launch, self.device, FORWARD_TENSORS + NUMBERS) for launch in launches]

    def _backward_kernels(self, training: bool, of_x: bool, of_parameters: bool) -> list[Kernel]:
        key = training, of_x, of_parameters
        kernels = self._backward.get(key)
        if kernels is None:
            launches = backward_launches(self.problem, self.target, self.variant, *key)
            names = (*BACKWARD_TENSORS, *(() if training else EVALUATION_TENSORS[:-1]), "nothing", *NUMBERS)
            kernels = self._backward[key] = [kernel_of(launch, self.device, names) for launch in launches]
        return kernels
