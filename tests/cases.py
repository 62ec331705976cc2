"""Helpers for the tests of the operator: a problem with every option, a comparison with float64, exact libraries."""

import pytest
import torch

from fusedref import Problem, fused_conv_bn_scale
from fusedref.validation import compare, random_inputs
from tests.strategies import options

PROBLEM = Problem(2, 6, 8, 9, 11, 3, stride=2, padding=1, groups=2)


def case_of(problem, device, seed=0, vectors=None, channels_last=False):
    """Compare the result of fused_conv_bn_scale for random inputs with float64."""
    inputs = random_inputs(problem, seed, device, vectors)
    if channels_last:
        inputs = inputs._replace(x=inputs.x.contiguous(memory_format=torch.channels_last))
    return compare("", problem, inputs, fused_conv_bn_scale(*inputs, **options(problem)))


@pytest.fixture(autouse=True)
def library_in_float32():
    """Keep the library from using tf32 on a card, and from summing gradients in a different order each time."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield
