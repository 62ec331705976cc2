"""What the tests of the tensor-core kernels share: pure convolutions, wide ranges, and the sums to compare with."""

import torch

from fusedref.ops.runner import run_plan
from fusedref.parameters import Parameters
from fusedref.plans import folded_plan


def convolution(x, weight):
    """Parameters whose y is the convolution and nothing more."""
    zeros, ones = (function(weight.shape[0], device=x.device) for function in (torch.zeros, torch.ones))
    return Parameters(x, weight, None, zeros, ones, None, None, 1.0, 0.0)


def folded(problem, inputs):
    """The float32 sums that errors are measured by."""
    return run_plan(folded_plan(problem), problem, inputs)


def spread(shape, decades, seed=0):
    """Random numbers whose magnitudes are spread evenly over so many decades."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, shape, generator=generator) * 2.0 - 1.0
    return signs * 10 ** ((torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5) * decades).float()
