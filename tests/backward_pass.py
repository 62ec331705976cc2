"""What the tests of backward.cu share: its inputs, its results in float64, and a run."""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from fusedref.cuda.launch import Out, launch
from fusedref.ops.runner import compiled_function, target_of
from fusedref.plans.backward import backward_launch, parts_shape
from fusedref.plans.variant import KernelVariant


class Results(NamedTuple):
    """What one pass over dy gives: A' [64, taps * 8], q [64] and T, the shape of x; None where it was not computed."""

    a: torch.Tensor | None
    q: torch.Tensor | None
    t: torch.Tensor | None


class Inputs(NamedTuple):
    """What the kernel reads."""

    dy: torch.Tensor
    x: torch.Tensor
    weight: torch.Tensor
    var: torch.Tensor
    gamma: torch.Tensor | None
    scaling_factor: float = 2.0
    eps: float = 1e-5


def random_inputs(problem, device="cpu", seed=0, vectors=None):
    """Return normally distributed numbers, gamma in the dtype ``vectors``."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape, dtype=problem.dtype):
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    dy, x, weight = (normal(*shape) for shape in (problem.output_shape, problem.input_shape, problem.weight_shape))
    var = normal(problem.out_channels, dtype=torch.float32).square() + 0.5
    return Inputs(dy, x, weight * 0.1, var, normal(problem.out_channels, dtype=vectors or problem.dtype))


def padded(problem, x):
    """Return x with its padding, in float64."""
    (top, bottom), (left, right) = problem.pads
    return F.pad(x.double(), (left, right, top, bottom))


def moments_of(problem, x):
    """Return the tensor ``moments`` with all that backward.cu reads of it, the pivots and scales: the rest is NaN."""
    columns = math.prod(problem.kernel) * 8
    pivot, scale = (make(8, dtype=torch.float64, device=x.device) for make in (torch.zeros, torch.ones))
    pivot[: problem.in_channels] = x.double().mean((0, 2, 3)).float()
    shifted = padded(problem, x) - pivot[: problem.in_channels, None, None]
    rms = shifted.square().mean((0, 2, 3)).sqrt()
    pixels = problem.batch * problem.out_height * problem.out_width
    exponent = 14 - math.ceil(math.log2(math.sqrt(pixels))) - rms.log2().ceil()
    scale[: problem.in_channels] = torch.where(rms > 0, 2.0**exponent, 1.0)
    rest = torch.full((columns + columns * columns,), math.nan, dtype=torch.float64, device=x.device)
    return torch.cat([rest, pivot, scale])


def slopes(inputs):
    """Return a = scale * gamma / sqrt(var + eps) in float64."""
    gamma = 1.0 if inputs.gamma is None else inputs.gamma.double()
    return inputs.scaling_factor * gamma / (inputs.var.double() + inputs.eps).sqrt()


def expected(problem, inputs):
    """Return the results in float64."""
    pivot = moments_of(problem, inputs.x)[-16:-8][: problem.in_channels]
    shifted, dy = padded(problem, inputs.x) - pivot[:, None, None], inputs.dy.double()
    a = torch.zeros(64, math.prod(problem.kernel), 8, dtype=torch.float64, device=dy.device)
    height, width = problem.output_shape[2:]
    for tap in range(math.prod(problem.kernel)):
        kh, kw = divmod(tap, problem.kernel[1])
        window = shifted[:, :, kh : kh + height, kw : kw + width]
        a[: problem.out_channels, tap, : problem.in_channels] = torch.einsum("nohw,nchw->oc", dy, window)
    q = torch.zeros(64, dtype=torch.float64, device=dy.device)
    q[: problem.out_channels] = dy.sum((0, 2, 3))
    weight = inputs.weight.double() * slopes(inputs)[:, None, None, None]
    t = F.conv_transpose2d(dy, weight)
    (top, _), (left, _) = problem.pads
    t = t[:, :, top : top + problem.height, left : left + problem.width]
    return Results(a.flatten(1), q, t)


class Pass:
    """The kernel for one problem, ready to be launched; ``multiprocessors`` limits the blocks."""

    def __init__(self, problem, device, *, multiprocessors=None, variant=KernelVariant(), with_a=True, with_t=True):
        target = target_of(device)
        if multiprocessors:
            target = target._replace(multiprocessors=multiprocessors)
        self.problem, self.device = problem, device
        self.backward = backward_launch(problem, target, variant, with_a=with_a, with_t=with_t)
        self.parts = torch.full(parts_shape(problem, target), math.nan, device=device) if with_a else None
        self.dx = torch.full(problem.input_shape, math.nan, device=device, dtype=problem.dtype) if with_t else None

    def run(self, inputs, moments=None):
        """Return the results."""
        values = inputs._asdict() | {"parts": self.parts, "dx": self.dx, "batch": self.problem.batch}
        values["moments"] = moments_of(self.problem, inputs.x) if moments is None else moments
        arguments = []
        for name, kind in self.backward.signature:
            value = values[name]
            if kind == "out":
                arguments.append(None if value is None else Out(value))
            else:
                arguments.append(value if kind == "in" else np.dtype(kind).type(value))
        planned = self.backward
        function = compiled_function(planned, self.device)
        launch(function, *arguments, grid=planned.grid, block=planned.block, shared=planned.shared)
        if self.parts is None:
            return Results(None, None, self.dx)
        total = self.parts.double().sum(0)
        assert not total[:, -7:].any()
        return Results(total[:, :-8], total[:, -8], self.dx)
