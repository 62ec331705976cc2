"""What the tests of the rungs of training mode share: inputs of many kinds."""

import torch

from fusedref import Problem
from fusedref.validation import random_inputs
from kernels.training import Training


def families(shape, seed=0):
    """Return numbers on which a variance may go wrong: name -> tensor of ``shape`` [batch, channels, height, width]."""
    draw = torch.Generator().manual_seed(seed)
    normal, uniform = torch.randn(shape, generator=draw), torch.rand(shape, generator=draw)
    scales = torch.logspace(-4, 4, shape[1]).view(-1, 1, 1)
    outlier = normal.clone()
    outlier[0, 0, 0, 0] = 1e6
    return {
        "N(0, 1)": normal,
        "uniform": uniform,
        "mean 100": normal + 100,
        "mean -3000": normal - 3000,
        "channels over 8 decades": normal * scales,
        "constant": torch.full(shape, 7.3),
        "an outlier": outlier,
    }


def training_inputs(problem: Problem, seed: int, device) -> Training:
    """Return random arguments for a rung of mode "train"."""
    given = random_inputs(problem, seed, device)
    return Training(*given, momentum=0.3)
