"""What the tests of the tensor-core kernels share: pure convolutions, wide ranges, and the sums to compare with."""

import torch

from fusedref import fused
from fusedref.planning import folded_plan
from fusedref.validation import Inputs


def convolution(x, weight):
    """Inputs whose y is the convolution and nothing more."""
    zeros, ones = (function(weight.shape[0], device=x.device) for function in (torch.zeros, torch.ones))
    return Inputs(x, weight, None, zeros, ones, None, None, 1.0, 0.0)


def folded(problem, inputs):
    """The float32 sums that errors are measured by."""
    return fused.run(folded_plan(problem), problem, inputs[:7], inputs.scaling_factor, inputs.eps)


def spread(shape, decades, seed=0):
    """Random numbers whose magnitudes are spread evenly over so many decades."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, shape, generator=generator) * 2.0 - 1.0
    return signs * 10 ** ((torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5) * decades).float()
