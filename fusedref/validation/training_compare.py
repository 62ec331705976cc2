"""Compare the results of a call in training with float64, and with the errors of PyTorch's own operators."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fusedref.parameters import Parameters
from fusedref.problem import Problem
from fusedref.validation.bounds import ELEMENT_LIMIT, UNIT, rounding_error
from fusedref.validation.cases import Border, Compared, Errors, Shape, Worst, border_of_y
from fusedref.validation.training_bounds import (
    NORM_LIMIT,
    first_term_of_dx,
    forward_magnitudes,
    gradient_magnitudes,
    running_magnitudes,
    y_magnitude,
)
from fusedref.validation.training_reference import (
    GRADIENTS,
    Forward,
    convolution_gradients,
    gradients,
    running,
)
from fusedref.validation.training_slips import Slips

AXES = {
    "y": ("image", "channel", "row", "column"),
    "dx": ("image", "channel", "row", "column"),
    "dweight": ("filter", "input channel", "filter row", "filter column"),
}
VECTOR = ("image", "channel", "row", "column")  # only the channel is ever named


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a tensor must be, its magnitude, and what float16 and bfloat16 may add before the last rounding."""

    value: Tensor
    magnitude: Tensor
    first_term: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Call:
    """The data of one call in training; ``dy`` is None where nothing is differentiated."""

    problem: Problem
    inputs: Parameters
    momentum: float
    found: Forward  # in float64
    dy: Tensor | None
    training: bool = True

    def expected(self) -> dict[str, Expected]:
        """Return all that the call may return."""
        problem, inputs, found = self.problem, self.inputs, self.found
        sizes = forward_magnitudes(problem, inputs, found, training=self.training)
        result = {"y": Expected(found.y, y_magnitude(problem, inputs, found, sizes))}
        if self.training:
            values = running(problem, inputs, found, self.momentum)
            magnitudes = running_magnitudes(problem, inputs, sizes, self.momentum)
            for name, value, magnitude in zip(("running_mean", "running_var"), values, magnitudes, strict=True):
                result[name] = Expected(value, magnitude)
        if self.dy is not None:
            right = gradients(problem, inputs, self.dy, found, training=self.training)
            allowed = gradient_magnitudes(problem, inputs, self.dy, found, sizes, training=self.training)
            for name, gradient, size in zip(GRADIENTS, right, allowed, strict=True):
                if gradient is not None and size is not None:
                    result[name] = Expected(gradient, size)
            first = first_term_of_dx(problem, inputs, self.dy, found)
            result["dx"] = dataclasses.replace(result["dx"], first_term=first)
        return result


def eager_results(call: Call) -> dict[str, Tensor]:
    """Compute the results by PyTorch's operators in the dtypes of the inputs, without tf32."""
    inputs, needs_gradients = call.inputs, call.dy is not None
    x, weight, mean, var = (
        value.detach().clone() for value in (inputs.x, inputs.weight, inputs.running_mean, inputs.running_var)
    )
    bias, gamma, beta = (
        None if value is None else value.detach().clone() for value in (inputs.bias, inputs.gamma, inputs.beta)
    )
    leaves = dict(zip(GRADIENTS, (x, weight, bias, gamma, beta), strict=True))
    present = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    for leaf in present.values():
        leaf.requires_grad_(needs_gradients)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), torch.set_grad_enabled(needs_gradients):
        z = F.conv2d(x, weight, bias, **call.problem.conv_options)
        y = F.batch_norm(z, mean, var, gamma, beta, call.training, call.momentum, inputs.eps) * inputs.scaling_factor
        results = {"y": y.detach(), "running_mean": mean, "running_var": var}
        if call.dy is not None:
            results |= dict(zip(present, torch.autograd.grad(y, list(present.values()), call.dy), strict=True))
    return {name: value for name, value in results.items() if value is not None}


def compare_tensor(
    name: str, call: Call, got: Tensor, expected: Expected, eager: Tensor | None, slips: Slips | None
) -> Compared:
    """Compare one tensor with float64, element by element and in the L2 norm."""
    value, magnitude = expected.value, expected.magnitude.nan_to_num(nan=math.inf, posinf=math.inf)
    finite = value.isfinite()
    allowed = ELEMENT_LIMIT * UNIT * magnitude
    rounding = rounding_error(value.abs() + allowed, got.dtype)
    if expected.first_term is not None:
        rounding = rounding + rounding_error(expected.first_term.abs(), got.dtype)
    error = (got.double() - value).abs()
    bounds = torch.where(error == 0, 0.0, error / (allowed + rounding)).nan_to_num(nan=math.inf)
    bounds = torch.where(finite, bounds, torch.where(got.isfinite(), math.inf, 0.0))

    shape: Shape = (1, value.numel(), 1, 1) if value.dim() == 1 else (*value.shape,)
    vector = value.dim() == 1
    errors = Errors(shape, name, AXES.get(name, VECTOR), _border(name, call.problem), vector)
    # Only what is computed can be left unwritten: the running statistics are there before the call.
    unwritten = torch.zeros_like(got) if name.startswith("running") else torch.where(finite, got, 0.0)
    errors.add(0, (bounds > 1).view(shape), unwritten.view(shape))
    index = np.unravel_index(int(bounds.argmax()), tuple(bounds.shape))
    place = tuple(int(i) for i in index)
    worst = Worst(place, got[place].item(), value[place].item(), bounds[place].item(), name)

    scale = _norm(value, finite)
    if scale < 1e-10 * _norm(magnitude, finite):
        scale = _norm(magnitude, finite)
    relative = _ratio(_norm(error, finite), scale)
    reasons: list[str] = []
    limit = NORM_LIMIT * UNIT * _norm(magnitude, finite) + _norm(rounding, finite)
    if errors.wrong:
        reasons += [f"{name}: {words}" for words in errors.in_words()]
    elif not _norm(error, finite) <= limit:
        dtype = str(got.dtype).removeprefix("torch.")
        reasons.append(
            f"{name}: the relative L2 error is {relative:.1e}, {dtype} stays below {_ratio(limit, scale):.1e}"
        )
    if reasons and slips is not None:
        reasons += slips.explain(name, got)
    eager_error = None if eager is None else _ratio(_norm((eager.double() - value).abs(), finite), scale)
    return Compared(name, relative, eager_error, worst, errors, tuple(reasons))


def _border(name: str, problem: Problem) -> Border | None:
    """Return the border of y or dx."""
    if name == "y":
        return border_of_y(problem)
    if name == "dx":  # count the taps that reach each pixel
        one = dataclasses.replace(problem, batch=1, in_channels=1, out_channels=1, groups=1)
        ones = [torch.ones(shape, dtype=torch.float64, device="cpu") for shape in (
            one.input_shape, one.weight_shape, one.output_shape,
        )]  # fmt: skip
        taps = convolution_gradients(one, *ones)[0][0, 0]
        return Border(taps < taps.max(), "pixels that fewer taps reach than the others")
    return None


def _norm(values: Tensor, finite: Tensor) -> float:
    """Return the L2 norm of the numbers where float64 is finite."""
    return float(torch.where(finite, values, 0.0).norm())


def _ratio(norm: float, scale: float) -> float:
    return norm / scale if scale else math.inf if norm else 0.0
