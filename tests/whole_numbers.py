"""Inputs for which float32 arithmetic is exact, so that a test can require equality.

Small whole numbers everywhere, and running_var + eps a power of four: its root and the division by it are exact too.
"""

import torch
from hypothesis import strategies as st

EPS = 0.25

SIZES = st.tuples(*[st.integers(1, 3)] * 3, *[st.integers(3, 11)] * 2, st.integers(1, 3))


def whole(*shape, seed=0, device="cpu"):
    """Return random whole numbers from -4 to 4."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).float().to(device)


def variances(channels, device="cpu"):
    """Return variances such that variance + EPS is 1, 4, 16, 1, ..."""
    return (torch.tensor([1.0, 4.0, 16.0]).repeat(channels)[:channels] - EPS).to(device)


def inputs(batch, in_channels, out_channels, height, width, kernel_size, device="cpu"):
    """Return the nine arguments of a candidate."""
    x = whole(batch, in_channels, height, width, seed=1, device=device)
    weight = whole(out_channels, in_channels, kernel_size, kernel_size, seed=2, device=device)
    bias, mean, gamma, beta = (whole(out_channels, seed=seed, device=device) for seed in (3, 4, 5, 6))
    return x, weight, bias, mean, variances(out_channels, device), gamma, beta, 2.0, EPS
