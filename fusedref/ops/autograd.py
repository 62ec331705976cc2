"""Gradients of eager calls: forward and backward by a runner, a second backward by torch's own operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fusedref.ops import by_torch
from fusedref.ops.calls import Case, Tensors
from fusedref.ops.training import Gradients, Needs, Running, TrainingRunner

Trained = tuple[Tensor, Tensor, Tensor, Tensor]  # y, mean, variance, and what backward needs


# Both functions get y from a call that has launched its kernels, so that the device works while autograd records.
class Evaluation(torch.autograd.Function):
    """y with running statistics."""

    @staticmethod
    def forward(
        ctx: Any, case: Case, y: tuple[Tensor], scaling_factor: float, eps: float, *tensors: Tensor | None
    ) -> Tensor:
        """Return y of x, weight and the five vectors; keep what backward reads."""
        x, weight, bias, mean, var, gamma, _ = tensors
        ctx.save_for_backward(x, weight, bias, gamma, mean, var)
        ctx.case, ctx.numbers = case, (scaling_factor, eps)
        return y[0]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        """Return the gradients."""
        needs = ctx.needs_input_grad[4:]
        x, weight, bias, gamma, mean, var = ctx.saved_tensors
        scaling_factor, eps = ctx.numbers
        needs = (*needs[:3], *needs[5:])
        dx, dweight, dbias, dgamma, dbeta = gradients(
            ctx.case, dy, x, weight, bias, gamma, mean, var, None, scaling_factor, eps, needs, training=False
        )
        return None, None, None, None, dx, dweight, dbias, None, None, dgamma, dbeta


class Training(torch.autograd.Function):
    """y with the statistics of the batch."""

    @staticmethod
    def forward(
        ctx: Any, case: Case, results: Trained, scaling_factor: float, eps: float, *tensors: Tensor | None
    ) -> Tensor:
        """Return y of x, weight, bias, gamma and beta; keep what backward reads."""
        x, weight, bias, gamma, _ = tensors
        y, mean, var, saved = results
        ctx.save_for_backward(x, weight, bias, gamma, mean, var, saved)
        ctx.case, ctx.numbers = case, (scaling_factor, eps)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        """Return the gradients."""
        x, weight, bias, gamma, mean, var, saved = ctx.saved_tensors
        needs = ctx.needs_input_grad[4:]
        scaling_factor, eps = ctx.numbers
        found = gradients(
            ctx.case, dy, x, weight, bias, gamma, mean, var, saved, scaling_factor, eps, needs, training=True
        )
        return None, None, None, None, *found


# Function.apply adds only what functorch needs to its base class's, and that costs more than a launch.
apply_evaluation: Any = super(torch.autograd.Function, Evaluation).apply
apply_training: Any = super(torch.autograd.Function, Training).apply


def train(
    runner: TrainingRunner,
    case: Case,
    tensors: Sequence[Any],
    scaling_factor: float,
    eps: float,
    running: Running | None,
    ready: bool,
) -> Trained:
    """Return what the case's runner returns of x, weight, bias, gamma and beta; autograd does not see how."""
    x, weight, bias, gamma, beta = tensors
    if not ready:
        x = x.detach().contiguous(memory_format=case.memory_format)
        weight, bias, gamma, beta = (None if t is None else t.detach().contiguous() for t in tensors[1:])
    result = runner.forward(x, weight, bias, gamma, beta, scaling_factor, eps, running)
    if running is not None:  # a kernel wrote them, which autograd does not see
        torch.autograd.graph.increment_version([tensor for tensor in running[:3] if tensor is not None])
    return result


def gradients(
    case: Case,
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
    training: bool,
) -> Gradients:
    """Return the gradients, by the case's runner.

    torch's operators compute them where there is no runner or they must be differentiable themselves.
    """
    runner = case.training_runner
    again = torch.is_grad_enabled()  # create_graph=True
    if runner is None or again:
        z = None if again or (runner is not None and runner.saved_elements) else saved
        return by_torch.backward(
            dy, x, weight, bias, gamma, mean, var, z, scaling_factor, eps, case.problem.conv_options, needs, training
        )
    dy, x = (tensor.contiguous(memory_format=case.memory_format) for tensor in (dy, x))
    weight, mean, var = weight.contiguous(), mean.contiguous(), var.contiguous()
    bias, gamma = (None if vector is None else vector.contiguous() for vector in (bias, gamma))
    return runner.backward(dy, x, weight, bias, gamma, mean, var, saved, scaling_factor, eps, needs)


def has_tangent(tensors: Tensors) -> bool:
    """Return whether forward-mode differentiation must see a call with these tensors."""
    return forward_ad._current_level >= 0 and any(
        [tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors]  # type: ignore[no-untyped-call]
    )
