"""The rounding bound: how far y may be from float64.

Let u = 2**-24 be the largest relative error of one float32 rounding, K the number of products in an output, and m the
output with every term made positive:

    m = (conv(|x|, |weight|) + |bias| + |running_mean|) / sqrt(running_var + eps) * |gamma| + |beta|, times |scale|

**Each element** must be within 32 u m of float64. At most eight roundings follow the sum, and each is at most u m. In
the sum, the terms have random signs, because the inputs are drawn so: partial sums grow as sqrt(K) while m grows as K.
The error of a sequential float32 sum therefore has a standard deviation of 0.5 u m, whatever K is, and three times that
if the sum starts from a folded bias instead of zero. The bound is three times the largest of many such errors. With
inputs rounded to tf32 the largest errors are about 3000 u m at K = 72 and 500 u m at K = 4608.

**All elements together**: the L2 norm of the error must be within (8 + sqrt(K)) u times the norm of the result. A
sequential sum gives 0.3 sqrt(K) u; tf32 gives 2000 u and more. Where the terms of a result happen to cancel, its norm
counts as |m| / sqrt(K + 3) at least, which is no more than terms of random signs would give.

**At precision tf32** the factors of the products may be rounded to tf32 as well, and nothing else may. Let t = 2**-11
be the largest relative error of that rounding, and

    q = sqrt(conv(x**2, weight**2)) / sqrt(running_var + eps) * |gamma|, times |scale|

The errors of the products are independent, so the error of an element has a standard deviation of 0.6 t q, whatever K
is. Where the low bits are cut off instead of rounded, as tensor cores do with operands that nobody has rounded, it is
1.6 t q; with bfloat16 factors it is 4.8 t q. Each element may be 10 t q farther off than in float32, six times the
deviation of cut factors. All together, in the L2 norm, may be 2.5 t |q| farther off: a single product of rounded
factors is off by 2 t q at most. So bfloat16 is refused, by the norm if not by an element.

**Where the tensors are float16 or bfloat16**, float64 gets them as they are: the arithmetic must be float32's, with one
rounding at the end. Each element may be farther off by half the distance between two neighbouring numbers of y's
dtype, and all together by the norm of these distances. A second rounding (of the sum, of folded weights, or through
another dtype) exceeds that unless the first rounding happens to leave room for it, which is rare.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fusedref.parameters import Parameters
from fusedref.problem import Problem
from fusedref.reference import oracle

UNIT = 2.0**-24  # half the distance from 1 to the next float32: the largest relative error of one rounding
ELEMENT_LIMIT = 32  # in units of UNIT * m
TF32_UNIT = 2.0**-11  # the same for tf32
TF32_ELEMENT_LIMIT = 10  # in units of TF32_UNIT * q
TF32_NORM_LIMIT = 2.5  # in units of TF32_UNIT * |q|


def expected_y(problem: Problem, inputs: Parameters) -> Tensor:
    """Compute y in float64."""
    return oracle(*inputs, **problem.conv_options)


def magnitude_of(problem: Problem, inputs: Parameters) -> Tensor:
    """Compute m of the module's text: the output with every term made positive."""
    positive = Parameters(
        x=inputs.x.abs(),
        weight=inputs.weight.abs(),
        bias=None if inputs.bias is None else inputs.bias.abs(),
        running_mean=-inputs.running_mean.abs(),
        running_var=inputs.running_var,
        gamma=None if inputs.gamma is None else inputs.gamma.abs(),
        beta=None if inputs.beta is None else inputs.beta.abs(),
        scaling_factor=abs(inputs.scaling_factor),
        eps=inputs.eps,
    )
    return expected_y(problem, positive)


def spread_of(problem: Problem, inputs: Parameters, precision: str) -> Tensor:
    """Compute q of the module's text; zero at precision fp32, which allows no rounding of the factors."""
    if precision == "fp32":
        return torch.zeros((), dtype=torch.float64, device=inputs.x.device)
    # q squared is the operator on squares; the variance is squared too, because the operator takes its root.
    squares = Parameters(
        x=inputs.x.double().square(),
        weight=inputs.weight.double().square(),
        bias=None,
        running_mean=torch.zeros_like(inputs.running_mean),
        running_var=(inputs.running_var.double() + inputs.eps).square(),
        gamma=None if inputs.gamma is None else inputs.gamma.double().square(),
        beta=None,
        scaling_factor=inputs.scaling_factor**2,
        eps=0.0,
    )
    return expected_y(problem, squares).sqrt()


def allowed_error(magnitude: Tensor, spread: Tensor) -> Tensor:
    """Compute how far off each element may be before it is rounded to the dtype of y."""
    return ELEMENT_LIMIT * UNIT * magnitude + TF32_ELEMENT_LIMIT * TF32_UNIT * spread


def rounding_error(sizes: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute half the distance between neighbouring numbers of ``dtype`` at these sizes; 0 for float32.

    float32 needs none: ``allowed_error`` includes the roundings to float32.
    """
    if dtype == torch.float32:
        return torch.zeros_like(sizes)
    numbers = torch.finfo(dtype)
    fraction = torch.frexp(sizes.clamp(min=numbers.tiny)).mantissa  # from 0.5 to 1
    return sizes.clamp(min=numbers.tiny) / (2 * fraction) * (numbers.eps / 2)


def norm_limit(problem: Problem, result: float, magnitude: float, spread: float, rounding: float) -> float:
    """Compute how large the L2 norm of the error may be, from the norms of y, m, q and the rounding of y."""
    float32 = (8 + math.sqrt(problem.taps)) * UNIT * max(result, magnitude / math.sqrt(problem.taps + 3))
    return float32 + TF32_NORM_LIMIT * TF32_UNIT * spread + rounding
