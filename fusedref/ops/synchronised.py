"""Training with the statistics of the batches of all processes, as ``nn.SyncBatchNorm`` has it.

Every process has a part of the batch. Forward gathers (count, mean, sum of squared deviations) per channel from each,
backward sums dbeta and dgamma over all, and each process computes its part of dx. The gradients of the parameters are
those of the part: DistributedDataParallel takes their mean.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fusedref.ops.training import Running

PIXELS = (0, 2, 3)  # the axes that statistics are over


def group_of(bn: nn.SyncBatchNorm) -> Any:
    """Return the process group whose batches ``bn`` takes together, None where there is one process alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = bn.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def train(z: Tensor, bn: nn.SyncBatchNorm, scaling_factor: float | Tensor, group: Any) -> Tensor:
    """Return y of the convolution z, by torch's operators around one collective.

    Update the running statistics, alike in all processes.
    """
    number = 1.0 if isinstance(scaling_factor, Tensor) else scaling_factor
    y: Tensor
    y, mean, var, count = _Normalised.apply(z, bn.weight, bn.bias, number, bn.eps, group)  # type: ignore[no-untyped-call]
    if bn.track_running_stats:
        running_mean, running_var = bn.running_mean, bn.running_var
        assert running_mean is not None
        assert running_var is not None
        Running(running_mean, running_var, bn.num_batches_tracked, bn.momentum).update(mean, var, count)
    return y * scaling_factor if isinstance(scaling_factor, Tensor) else y


class _Normalised(torch.autograd.Function):
    """BatchNorm over all processes and the scale, of the convolution z."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, gamma: Tensor | None, beta: Tensor | None, scaling_factor: float, eps: float, group: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return y, and of all processes the mean, the biased variance and the number of pixels per channel."""
        mean, var, count = _statistics(z, group)
        weight, bias = (None if vector is None else vector.to(mean.dtype) for vector in (gamma, beta))
        y = F.batch_norm(z, mean, var, weight, bias, eps=eps) * scaling_factor
        ctx.save_for_backward(z, gamma, beta, mean, torch.rsqrt(var + eps), count)
        ctx.mark_non_differentiable(mean, var, count)
        ctx.scaling_factor, ctx.group = scaling_factor, group
        return y, mean, var, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Any) -> Any:
        """Return the gradients of z, gamma and beta."""
        z, gamma, beta, mean, inverse, count = ctx.saved_tensors
        needs_dz, needs_gamma, needs_beta = ctx.needs_input_grad[:3]
        dy = (dy * ctx.scaling_factor).to(mean.dtype)
        normalised = (z - _channels(mean)) * _channels(inverse)
        sums = torch.stack([dy.sum(PIXELS), (dy * normalised).sum(PIXELS)])
        dbeta, dgamma = sums.unbind()
        dz = None
        if needs_dz:  # in all processes or in none, as the parameters are the same
            total = sums.clone()
            dist.all_reduce(total, group=ctx.group)
            mean_dy, mean_product = (_channels(part / count) for part in total)
            a = inverse if gamma is None else inverse * gamma
            dz = (_channels(a) * (dy - mean_dy - normalised * mean_product)).to(z.dtype)
        return (
            dz,
            dgamma.to(gamma.dtype) if needs_gamma else None,
            dbeta.to(beta.dtype) if needs_beta else None,
            *(None, None, None),
        )


def _statistics(z: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, biased variance and number of pixels over all processes, the same bits in each.

    One process may have no pixels. The parts are merged in float64, after Chan, Golub and LeVeque, "Algorithms for
    computing the sample variance", The American Statistician 37 (1983).
    """
    dtype = torch.promote_types(z.dtype, torch.float32)
    pixels = z[:, 0].numel()
    if pixels:
        var, mean = torch.var_mean(z.to(dtype), PIXELS, correction=0)
    else:
        mean = var = torch.zeros(z.shape[1], dtype=dtype, device=z.device)
    count = torch.full((1,), pixels, dtype=torch.float64, device=z.device)
    own = torch.cat([count, mean.double(), var.double() * pixels])
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, own, group=group)
    counts, means, squares = torch.split(torch.stack(everyone), [1, z.shape[1], z.shape[1]], 1)
    total = counts.sum()
    merged = (counts * means).sum(0) / total
    deviations = squares.sum(0) + (counts * (means - merged).square()).sum(0)
    return merged.to(dtype), (deviations / total).to(dtype), total.to(dtype)


def _channels(vector: Tensor) -> Tensor:
    """Return a vector [channels] as [channels, 1, 1]."""
    return vector.view(-1, 1, 1)
