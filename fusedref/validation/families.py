"""The data on which training is checked: random numbers, and data on which float32 arithmetic is hard or special."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from fusedref.parameters import Parameters
from fusedref.problem import Problem
from fusedref.validation.inputs import random_inputs
from fusedref.validation.training_reference import Forward, pixels_of

EPS = 1e-5  # torch's default: a larger one would hide errors of a small variance


@dataclasses.dataclass(frozen=True)
class Family:
    """Data of one kind: ``change`` takes the problem and random inputs, and returns inputs of that kind."""

    name: str
    change: Callable[[Problem, Parameters], Parameters]
    dy_scale: float = 1.0
    dy_outliers: bool = False
    dy_nan: bool = False


def family_inputs(family: Family, problem: Problem, seed: int, device: torch.device) -> Parameters:
    """Return the inputs of a family; x, weight and bias have the problem's dtype, the other tensors are float32."""
    inputs = random_inputs(problem, seed, device, vectors=torch.float32)
    changed = family.change(problem, inputs._replace(eps=EPS) if family is not NORMAL else inputs)
    return changed._replace(
        x=changed.x.to(problem.dtype),
        weight=changed.weight.to(problem.dtype),
        bias=None if changed.bias is None else changed.bias.to(problem.dtype),
    )


def family_dy(family: Family, problem: Problem, found: Forward, seed: int) -> Tensor:
    """Return a gradient of y that depends on y and has a mean, so that c1 and c2 matter as much as dy itself.

    Its numbers are of the size 4 / sqrt(the numbers in a channel), times the family's scale: so no sum of them exceeds
    float16, as it does not in a network that trains.
    """
    generator = torch.Generator(found.y.device).manual_seed(seed + 2**32)
    noise = torch.randn(found.y.shape, generator=generator, device=found.y.device, dtype=torch.float64)
    scale = 2.0 ** round(math.log2(4 / math.sqrt(pixels_of(problem)))) * family.dy_scale
    dy = (0.5 * noise + 0.5 * found.normalised.nan_to_num(0.0) + 0.3) * scale
    if family.dy_outliers:
        _set(dy, 1000 * scale)
    if family.dy_nan:
        dy[0, -1, 0, 0] = torch.nan
    return dy.to(problem.dtype)


def photograph(problem: Problem, device: torch.device) -> Tensor:
    """Return pictures like photographs, [batch, in_channels, height, width]: smooth light, edges, texture, 256 levels.

    The channels of an image show one scene in slightly different colours, so that they are nearly proportional.
    """
    batch, in_channels, height, width = problem.input_shape

    def count(size: int, *shape: int) -> Tensor:
        """Return 0, 1, ... in float64, in a shape that broadcasts."""
        return torch.arange(size, device=device, dtype=torch.float64).view(shape)

    image, channel = count(batch, -1, 1, 1, 1), count(in_channels, 1, -1, 1, 1)
    down, right = count(height, 1, 1, -1, 1) / max(height, 24), count(width, 1, 1, 1, -1) / max(width, 24)
    light = 0.45 + 0.25 * torch.sin(1.3 * down + 0.9 * right + image) + 0.1 * torch.cos(2.1 * right - 0.7 * image)
    for edge in range(5):  # half planes, each a little darker or lighter
        angle = 2.4 * edge + 0.8 * image
        inside = torch.cos(angle) * (down - 0.5) + torch.sin(angle) * (right - 0.5) > 0.15 * math.sin(3.0 * edge)
        light = light + (0.16 - 0.07 * edge) * inside
    disk = (down - 0.6).square() + (right - 0.4 - 0.05 * torch.sin(image)).square() < 0.06
    texture = 0.05 * torch.sin(91 * down + 17 * image) * torch.sin(73 * right + 5 * down)
    light = light + disk * (texture - 0.2)
    colour = 1 - 0.25 * torch.sin(1.7 * channel).square() + 0.02 * torch.sin(9 * right + channel)
    return ((light * colour).clamp(0, 1) * 255).round() / 255


def _smooth(problem: Problem, inputs: Parameters) -> Parameters:
    """Return smooth waves and filters that take their second differences."""
    batch, in_channels, height, width = problem.input_shape
    device = inputs.x.device
    rows, columns = (torch.linspace(0, 6.28 * n / 64, n, device=device, dtype=torch.float64) for n in (height, width))
    channel = torch.arange(in_channels, device=device, dtype=torch.float64).view(1, -1, 1, 1)
    image = torch.arange(batch, device=device, dtype=torch.float64).view(-1, 1, 1, 1)
    x = torch.sin(rows.view(-1, 1) * (channel + 1) / 3) * torch.cos(columns * (channel + 2) / 4) + torch.sin(image)
    weight = inputs.weight - inputs.weight.mean((2, 3), keepdim=True)
    if min(problem.kernel) >= 3:
        laplacian = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]], device=device)
        weight = torch.zeros_like(weight)
        filters = torch.arange(len(weight), device=device)
        weight[filters, filters % weight.shape[1], :3, :3] = laplacian.to(weight.dtype)
    return inputs._replace(x=x.float(), weight=weight)


def _scaled_channels(problem: Problem, inputs: Parameters) -> Parameters:
    """Scale the channels of x by powers of ten over eight decades."""
    scales = torch.logspace(-4, 4, problem.in_channels, device=inputs.x.device).view(-1, 1, 1)
    return inputs._replace(x=inputs.x * scales)


def _outliers(problem: Problem, inputs: Parameters) -> Parameters:
    """Make about one number of x in a thousand a thousand times as large."""
    x = inputs.x.clone()
    _set(x, 1000.0)
    return inputs._replace(x=x)


def _set(tensor: Tensor, value: float) -> None:
    """Set the first of every 1021 numbers to ``value`` or minus it, in turn."""
    few = tensor.view(-1)[::1021]
    few.copy_(torch.where(torch.arange(len(few), device=few.device) % 2 == 0, value, -value))


def _nan(problem: Problem, inputs: Parameters) -> Parameters:
    """Make one number of x NaN."""
    x = inputs.x.clone()
    x[-1, -1, problem.height // 2, problem.width // 2] = torch.nan
    return inputs._replace(x=x)


def _infinity(problem: Problem, inputs: Parameters) -> Parameters:
    """Make one weight of the first filter infinite."""
    weight = inputs.weight.clone()
    weight[0, 0, 0, 0] = torch.inf
    return inputs._replace(weight=weight)


def _same(problem: Problem, inputs: Parameters) -> Parameters:
    return inputs


NORMAL = Family("normal", _same)
FAMILIES = (
    Family("uniform", lambda problem, inputs: inputs._replace(x=uniform(inputs.x))),
    Family("mean 100", lambda problem, inputs: inputs._replace(x=inputs.x + 100)),
    Family("scales of 8 decades", _scaled_channels),
    Family("photograph", lambda problem, inputs: inputs._replace(x=photograph(problem, inputs.x.device).float())),
    Family("smooth, Laplacian", _smooth),
    Family("constant", lambda problem, inputs: inputs._replace(x=torch.full_like(inputs.x, 3.0))),
    Family("outliers", _outliers, dy_outliers=True),
    Family("subnormal", lambda problem, inputs: inputs._replace(x=inputs.x * 2.0**-126)),
    Family("small dy", _same, dy_scale=2.0**-20),
    Family("NaN in x", _nan),
    Family("infinite weight", _infinity),
    Family("NaN in dy", _same, dy_nan=True),
)


def uniform(x: Tensor) -> Tensor:
    """Return the normal numbers of ``x`` as numbers that are uniform in [0, 1)."""
    return (torch.erf(x.double() / math.sqrt(2)) / 2 + 0.5).clamp(max=1 - 2.0**-24).float()
