"""The rounding bound: how far an element of y, and all of y, may be from float64.

Let u = 2**-24, K the number of products in an output, m the output with every term made positive:

    m = (conv(|x|, |weight|) + |bias| + |running_mean|) / sqrt(running_var + eps) * |gamma| + |beta|, times |scale|

Each element must be within 32 u m of float64. After the sum come at most eight roundings, each of at most u m. In the
sum, the terms have random signs (the inputs are drawn so): its partial sums grow as sqrt(K) where m grows as K, and the
error of a sequential float32 sum has a standard deviation of 0.5 u m, whatever K is, and three times that if it starts
from a folded bias instead of zero. The bound is three times what the largest of many such errors need. With inputs
rounded to tf32 the largest errors are some 3000 u m at K = 72 and 500 at K = 4608.

The error of all elements together, in the L2 norm, must be within (8 + sqrt(K)) u of the result's: the sequential sum
gives 0.3 sqrt(K) u, tf32 2000 u and more. Where the terms of a result happen to cancel, its norm counts as
|m| / sqrt(K + 3) at least, which is no more than terms of random signs would give.

At precision tf32 the factors of the products may have been rounded to tf32 as well, nothing else. Let t = 2**-11, the
largest relative error of that rounding, and

    q = sqrt(conv(x**2, weight**2)) / sqrt(running_var + eps) * |gamma|, times |scale|

The errors of the products are independent, so an element is off by 0.6 t q in standard deviation, whatever K is. Where
the low bits are cut off instead of rounded, as tensor cores do with what nobody has rounded, it is 1.6 t q, and with
bfloat16 factors 4.8 t q. Each element may be 10 t q farther off than in float32, six times the deviation of cut ones,
and all together, in the L2 norm, 2.5 t |q|: a single product, rounded, is off by 2 t q at most. So bfloat16 is
refused, by the norm at the latest.

Where the tensors are float16 or bfloat16, float64 gets them as they are, for the arithmetic is to be float32's on them,
with one rounding at the end: each element may be half the distance between two numbers of y's dtype farther off, and
all together by the norm of that. A second rounding, of the sum or of folded weights, or one through another dtype, is
more than that wherever the first does not leave room for it, which it seldom does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fusedref.problem import Problem
from fusedref.reference import oracle
from fusedref.validation.inputs import Inputs

UNIT = 2.0**-24  # half the distance from 1 to the next float32: the largest relative error of one rounding
ELEMENT_LIMIT = 32  # units of UNIT * m
TF32_UNIT = 2.0**-11  # the same for tf32
TF32_ELEMENT_LIMIT = 10  # units of TF32_UNIT * q
TF32_NORM_LIMIT = 2.5


def expected_y(problem: Problem, inputs: Inputs) -> Tensor:
    return oracle(*inputs, **problem.conv_options)


def magnitude_of(problem: Problem, inputs: Inputs) -> Tensor:
    """m of the module's text: the output with every term made positive."""
    x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps = inputs
    positive = Inputs(
        x.abs(), weight.abs(), None if bias is None else bias.abs(), -running_mean.abs(), running_var,
        gamma.abs(), beta.abs(), abs(scaling_factor), eps,
    )  # fmt: skip
    return expected_y(problem, positive)


def spread_of(problem: Problem, inputs: Inputs, precision: str) -> Tensor:
    """q of the module's text; zero in float32, where it allows nothing."""
    if precision == "fp32":
        return torch.zeros((), dtype=torch.float64, device=inputs.x.device)
    # q squared is the operator too: of squares, and with the square of the variance, for its root is taken.
    x, weight, gamma = (tensor.double().square() for tensor in (inputs.x, inputs.weight, inputs.gamma))
    variance, nothing = (inputs.running_var.double() + inputs.eps) ** 2, torch.zeros_like(inputs.running_mean)
    squares = Inputs(x, weight, None, nothing, variance, gamma, nothing, inputs.scaling_factor**2, 0.0)
    return expected_y(problem, squares).sqrt()


def allowed_error(magnitude: Tensor, spread: Tensor) -> Tensor:
    """How far off an element may be before it is rounded to the dtype of y."""
    return ELEMENT_LIMIT * UNIT * magnitude + TF32_ELEMENT_LIMIT * TF32_UNIT * spread


def rounding_error(sizes: Tensor, dtype: torch.dtype) -> Tensor:
    """Half the distance of the numbers of ``dtype`` from each other at these sizes; 0 where y is float32 anyway."""
    if dtype == torch.float32:
        return torch.zeros_like(sizes)
    numbers = torch.finfo(dtype)
    fraction = torch.frexp(sizes.clamp(min=numbers.tiny)).mantissa  # from 0.5 to 1
    return sizes.clamp(min=numbers.tiny) / (2 * fraction) * (numbers.eps / 2)
