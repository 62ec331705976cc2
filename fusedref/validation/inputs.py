"""Random inputs, and the shapes at which a candidate is called."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from fusedref.parameters import Parameters as Inputs
from fusedref.problem import Problem


def random_inputs(
    problem: Problem, seed: int, device: torch.device | str = "cpu", vectors: torch.dtype | None = None
) -> Inputs:
    """Random inputs in which no parameter is near 0 or the default, so that none can be left out unseen.

    The sums have a standard deviation of 2, and what is added to them afterwards is of that order. All are rounded to
    the problem's dtype; bias, running_mean, running_var, gamma and beta to ``vectors`` if given.
    """
    vectors = vectors or problem.dtype
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        """Of mean 0 and standard deviation 1."""
        return torch.randn(shape, generator=generator, device=device)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        """Between ``low`` and ``high``."""
        return low + (high - low) * torch.rand(shape, generator=generator, device=device)

    def signed(low: float, high: float, *shape: int) -> Tensor:
        """Magnitudes between ``low`` and ``high``, of either sign."""
        sign = torch.randint(0, 2, shape, generator=generator, device=device) * 2.0 - 1.0
        return sign * uniform(low, high, *shape)

    channels = problem.out_channels
    return Inputs(
        x=normal(*problem.input_shape).to(problem.dtype),
        weight=(normal(*problem.weight_shape) * 2 / math.sqrt(problem.taps)).to(problem.dtype),
        bias=signed(0.25, 1.0, channels).to(vectors) if problem.bias else None,
        running_mean=signed(0.25, 1.0, channels).to(vectors),
        running_var=uniform(0.25, 4.0, channels).to(vectors),
        gamma=signed(0.5, 1.5, channels).to(vectors),
        beta=signed(0.25, 1.0, channels).to(vectors),
        scaling_factor=signed(1.1, 1.9).item(),
        eps=uniform(0.01, 0.1).item(),
    )


def shapes_around(problem: Problem) -> list[tuple[str, Problem]]:
    """The problem, and smaller ones with its channels, kernel, stride, padding, dilation and groups."""

    def resized(batch: int, out_height: int, out_width: int, rest: int = 0) -> Problem:
        """With so many outputs, and ``rest`` more rows and columns of input than they need, if the stride allows."""
        height, width = (
            max(1, span - sum(pads) + (out - 1) * stride + min(rest, stride - 1))
            for span, pads, out, stride in zip(problem.span, problem.pads, (out_height, out_width), problem.strides)
        )
        return dataclasses.replace(problem, batch=batch, height=height, width=width)

    return [
        ("the problem", problem),
        ("tall, odd sizes", resized(3, 17, 5)),
        ("the same shape again", resized(3, 17, 5)),
        ("wide, one image", resized(1, 9, 31, rest=1)),
        ("one pixel", resized(1, 1, 1)),
    ]
