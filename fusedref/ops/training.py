"""What runs in training: the running statistics, and what a runner does."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Needs = tuple[bool, bool, bool, bool, bool]  # which gradients: of x, weight, bias, gamma, beta
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class Running(NamedTuple):
    """Hold the running statistics, which a forward pass in training updates in place.

    ``mean`` and ``var`` (unbiased) are [out_channels]. ``batches`` counts the passes, an int64 tensor without
    dimensions, or None. ``momentum`` is the weight of the new statistics; None means 1 / batches, the average of all
    passes.
    """

    mean: Tensor
    var: Tensor
    batches: Tensor | None
    momentum: float | None

    def update(self, mean: Tensor, var: Tensor, count: int | Tensor) -> None:
        """Take in the mean and biased variance of a batch of ``count`` pixels per channel, by torch's operators.

        No number goes to the host, so that a trace can record it.
        """
        with torch.no_grad():
            if self.batches is not None:
                self.batches.add_(1)
            if self.momentum is None and self.batches is None:
                return
            factor = 1.0 / self.batches if self.momentum is None else self.momentum  # type: ignore[operator]
            for old, new in ((self.mean, mean), (self.var, var * (count / (count - 1)))):
                old.copy_(old * (1 - factor) + new.to(old.dtype) * factor)


class TrainingRunner(Protocol):
    """Runs forward and backward of one problem on one device.

    x, y, dy and dx are dense in the order that the runner was made for, NCHW or channels last; everything else is
    contiguous. weight has the dtype of x, the vectors have the vectors' dtype.
    """

    saved_elements: int
    """How many float64 numbers ``forward`` saves for ``backward``; 0 where it saves a tensor like y."""

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
        """Return y, the mean and biased variance of the batch (float32 [out_channels]) and what ``backward`` needs.

        Update ``running`` on the device, without a word to the host.
        """

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
        """Return the gradients of x, weight, bias, gamma and beta, in their dtypes, None where not needed.

        ``saved`` is None in evaluation mode, where ``mean`` and ``var`` are the running statistics, as the vectors are
        stored.
        """
