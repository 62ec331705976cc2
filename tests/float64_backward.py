"""The gradients in float64, and what the passes over x and dy give the kernels that finish them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fusedref import Problem
from fusedref.cuda.launch import InOut, Out, launch
from fusedref.ops.runner import compiled_function
from fusedref.parameters import Parameters
from fusedref.plans import KernelVariant, Launch
from fusedref.plans.gradients import gradients_launch
from fusedref.plans.input_gradient import (
    composites_launch,
    composites_shape,
    constants_shape,
    input_gradient_launch,
)
from fusedref.target import EMULATED
from fusedref.validation import random_inputs

VECTORS = ("gamma", "beta", "bias")
FEW = EMULATED._replace(multiprocessors=1)  # so that a block has several chunks of rows
PARTS = 14  # two for some groups of threads that add them, one for the others


class Given(NamedTuple):
    """A problem's inputs, its gradients in float64, and the sums that lead to them."""

    problem: Problem
    inputs: Parameters
    dy: Tensor
    training: bool  # with the batch's statistics, else the running ones
    mean: Tensor  # float64, as all that follow but parts
    var: Tensor
    parts: Tensor  # float32 [PARTS, 64, columns + 8]
    moments: Tensor  # [columns + columns^2 + 16]
    t: Tensor  # like x: the transposed convolution of dy and the filters that backward.cu rounds
    gradients: dict[str, Tensor]  # of x, weight, gamma, beta and bias


def given(
    problem: Problem, device: torch.device, seed: int = 0, training: bool = True, vectors: torch.dtype | None = None,
    inputs: Parameters | None = None, follow: float = 0.1,
) -> Given:  # fmt: skip
    """Return random inputs (or ``inputs``) and a dy, random plus ``follow`` times y, with all that belongs to them."""
    inputs = inputs or random_inputs(problem, seed, device, vectors)
    doubles = {name: value.double() for name, value in inputs._asdict().items() if isinstance(value, Tensor)}
    wanted = [doubles[name].requires_grad_() for name in ("x", "weight", *VECTORS) if name in doubles]
    z = F.conv2d(_padded(problem, doubles["x"]), doubles["weight"], doubles.get("bias"))
    mean, var = (z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)) if training else (
        doubles["running_mean"], doubles["running_var"]
    )  # fmt: skip
    inverse = _channels((var + inputs.eps).rsqrt())
    zhat = (z - _channels(mean)) * inverse
    y = inputs.scaling_factor * (zhat * _channels(doubles["gamma"]) + _channels(doubles["beta"]))
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed + 1)).to(device)
    dy = (dy + follow * y).to(problem.dtype).detach()
    found = dict(zip([name for name in ("x", "weight", *VECTORS) if name in doubles],
                     torch.autograd.grad(y, wanted, dy.double()), strict=True))  # fmt: skip

    moments, patches = _moments(problem, inputs.x)
    slopes = (inputs.scaling_factor * _channels(inputs.gamma.double()) * inverse).detach()
    (top, _), (left, _) = problem.pads
    t = F.conv_transpose2d(dy.double(), _rounded(problem, slopes[..., None] * inputs.weight.double()))
    t = t[:, :, top : top + problem.height, left : left + problem.width].contiguous()
    return Given(problem, inputs, dy, training, mean.detach(), var.detach(), _parts(problem, dy.double(), patches),
                 moments, t, found)  # fmt: skip


def finish(
    what: Given,
    wanted: tuple[str, ...] = ("weight", *VECTORS, "slopes"),
    planned: Launch | None = None,
) -> dict[str, Tensor]:
    """Return the gradients ``wanted`` by gradients.cu, written over NaN."""
    inputs, device = what.inputs, what.inputs.x.device
    outputs = {"weight": inputs.weight} | dict.fromkeys(VECTORS, inputs.running_mean)
    outputs["slopes"] = torch.empty(2, what.problem.out_channels, dtype=torch.float64, device=device)
    outputs = {name: torch.full_like(tensor, math.nan) for name, tensor in outputs.items() if name in wanted}
    variant = KernelVariant(vectors=inputs.running_mean.dtype)
    planned = planned or gradients_launch(what.problem, len(what.parts), what.training, variant)
    _run(
        planned, device, what.parts, what.moments, inputs.weight, inputs.bias, inputs.gamma, what.mean.float(),
        what.var.float(), np.float32(inputs.scaling_factor), np.float32(inputs.eps), np.int64(what.problem.batch),
        *[Out(outputs.get(name)) for name in ("weight", *VECTORS, "slopes")],
    )  # fmt: skip
    return outputs


def composites(what: Given, slopes: Tensor, planned: Launch | None = None) -> tuple[Tensor, Tensor]:
    """Return the composite kernels and constants by input_gradient_composites.cu, written over NaN and -1."""
    device, variant = slopes.device, KernelVariant(vectors=what.inputs.running_mean.dtype)
    fragments = torch.full(composites_shape(what.problem), -1, dtype=torch.int32, device=device)
    constants = torch.full(constants_shape(what.problem), math.nan, device=device)
    planned = planned or composites_launch(what.problem, variant)
    inputs = what.inputs
    _run(
        planned, device, slopes, what.moments, inputs.weight, what.var.float(), inputs.gamma,
        np.float32(inputs.scaling_factor), np.float32(inputs.eps), Out(fragments), Out(constants),
    )  # fmt: skip
    return fragments, constants


def input_gradient(
    what: Given, fragments: Tensor, constants: Tensor, precision: str = "fp32", planned: Launch | None = None
) -> Tensor:
    """Return the gradient of x by input_gradient.cu."""
    planned = planned or input_gradient_launch(what.problem, FEW, KernelVariant(precision))
    dx = what.t.to(what.problem.dtype)
    _run(planned, dx.device, what.inputs.x, what.moments, fragments, constants, InOut(dx))
    return dx


def error(gradient: Tensor, truth: Tensor, size: Tensor | None = None) -> float:
    """Return the L2 norm of the error, relative to that of the truth, or of ``size``."""
    return ((gradient.double() - truth).norm() / (truth if size is None else size).norm()).item()


def _run(planned: Launch, device: torch.device, *arguments: object) -> None:
    function = compiled_function(planned, device)
    launch(function, *arguments, grid=planned.grid, block=planned.block, shared=planned.shared)


def _channels(vector: Tensor) -> Tensor:
    return vector[:, None, None]


def _padded(problem: Problem, x: Tensor) -> Tensor:
    (top, bottom), (left, right) = problem.pads
    return F.pad(x, (left, right, top, bottom))


def _rounded(problem: Problem, filters: Tensor) -> Tensor:
    """Return the filters as the products of backward.cu take them: see backward_filters.cuh."""
    scale = 2.0 ** (15 - filters.abs().amax((0, 2, 3), keepdim=True).frexp().exponent)
    shortfall = (0.39 + 0.48 * (2 * problem.kernel[1] + 1) / 2) / 2**24
    scaled = filters.float() * scale
    hi = scaled.half()
    lo = (scaled.double() - hi + shortfall * scaled).half()
    two_pieces = (hi.double() + lo) * (1 - shortfall)
    return (two_pieces if problem.dtype == torch.float32 else hi.double()) / scale


def _moments(problem: Problem, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the moments of x, and the patches of x - pivot: [output pixels, columns]."""
    taps = math.prod(problem.kernel)
    x = F.pad(x.double(), (0, 0, 0, 0, 0, 8 - problem.in_channels))
    pivot = x.mean((0, 2, 3)).float().double()
    patches = F.unfold(_padded(problem, x), problem.kernel).unflatten(1, (8, taps))  # [batch, 8, taps, pixels]
    patches = patches.permute(0, 3, 2, 1).reshape(-1, taps * 8)
    shifted = patches - pivot.repeat(taps)
    rms = shifted.square().view(-1, 8).mean(0).sqrt()
    bits = math.ceil(math.log2(len(patches) * taps) / 2)  # the largest magnitude is at most 2^bits rms
    scale = torch.exp2(torch.floor(14 - bits - torch.log2(torch.where(rms > 0, rms, 1.0))))
    return torch.cat([patches.sum(0), (patches.T @ patches).flatten(), pivot, scale]), shifted


def _parts(problem: Problem, dy: Tensor, patches: Tensor) -> Tensor:
    """Return the sums of dy P' and dy in float32, in PARTS parts; what no kernel may read is NaN."""
    columns, outputs = patches.shape[1], problem.out_channels
    parts = torch.full((PARTS, 64, columns + 8), math.nan, device=dy.device)
    dy = dy.permute(0, 2, 3, 1).reshape(-1, outputs)
    for part, (some, theirs) in enumerate(zip(dy.tensor_split(PARTS), patches.tensor_split(PARTS), strict=True)):
        parts[part, :outputs, :columns] = (some.T @ theirs).float()
        parts[part, :outputs, columns] = some.sum(0).float()
    return parts
