"""Random inputs, and the shapes at which a candidate is called."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from fusedref.parameters import Parameters
from fusedref.problem import Problem


def random_inputs(
    problem: Problem, seed: int, device: torch.device | str = "cpu", vectors: torch.dtype | None = None
) -> Parameters:
    """Return random inputs in which no parameter is near 0 or its default, so that a forgotten one shows.

    The sums of products have a standard deviation of 2, and the terms added to them have a similar size. All tensors
    have the problem's dtype; bias, running_mean, running_var, gamma and beta have ``vectors`` if it is given. The same
    seed, problem and kind of device give the same inputs, whatever torch's default dtype and device are.
    """
    vectors = vectors or problem.dtype
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        """Return numbers of mean 0 and standard deviation 1."""
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        """Return numbers between ``low`` and ``high``."""
        return low + (high - low) * torch.rand(shape, generator=generator, device=device, dtype=torch.float32)

    def signed(low: float, high: float, *shape: int) -> Tensor:
        """Return numbers of either sign whose magnitudes are between ``low`` and ``high``."""
        sign = torch.randint(0, 2, shape, generator=generator, device=device) * 2.0 - 1.0
        return sign * uniform(low, high, *shape)

    channels = problem.out_channels
    return Parameters(
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
    """Return the problem and smaller ones with its channels, kernel, stride, padding, dilation and groups, by name."""

    def resized(batch: int, out_height: int, out_width: int, rest: int = 0) -> Problem:
        """Return the problem with this many outputs; ``rest`` rows and columns of x stay unused if the stride > 1."""
        height, width = (
            max(1, span - sum(pads) + (out - 1) * stride + min(rest, stride - 1))
            for span, pads, out, stride in zip(
                problem.span, problem.pads, (out_height, out_width), problem.strides, strict=True
            )
        )
        return dataclasses.replace(problem, batch=batch, height=height, width=width)

    return [
        ("the problem", problem),
        ("tall, odd sizes", resized(3, 17, 5)),
        ("the same shape again", resized(3, 17, 5)),
        ("wide, one image", resized(1, 9, 31, rest=1)),
        ("one pixel", resized(1, 1, 1)),
    ]
