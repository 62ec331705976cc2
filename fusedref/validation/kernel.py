"""The kernel of a .cu file as a candidate."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from fusedref.cuda.compile import source_module
from fusedref.cuda.launch import Out, launch
from fusedref.validation.call import Candidate


def candidate_from_kernel(path: str | Path, name: str) -> Candidate:
    """The kernel ``name`` of a .cu file as a candidate. It has the signature of ``fused`` in kernels/04_fused.cu.

    It is launched with blocks of 256 threads, ceil(outputs / 256) of them, for stride 1, no padding, a square kernel
    and one group. A null pointer never reaches it: where bias, gamma or beta is None it gets zeros, ones and zeros.

    Raises FileNotFoundError where there is no such file. The candidate raises TypeError where x is not float32.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")

    def candidate(x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps):
        """y by the learner's kernel, between guards that it must leave alone."""
        if x.dtype != torch.float32:
            raise TypeError(f"the kernel takes float32 tensors, got {x.dtype}")
        batch, in_channels, height, width = x.shape
        out_channels, _, kernel_size, _ = weight.shape
        shape = batch, out_channels, height - kernel_size + 1, width - kernel_size + 1
        outputs = math.prod(shape)
        guard = 1024  # elements of NaN on both sides of y, which must stay so
        memory = torch.full((guard + outputs + guard,), torch.nan, device=x.device)
        y = memory[guard:-guard]
        zeros, ones = torch.zeros_like(running_mean), torch.ones_like(running_mean)
        launch(
            source_module(path, device=x.device).get_function(name),
            x, weight, zeros if bias is None else bias, running_mean, running_var,
            ones if gamma is None else gamma, zeros if beta is None else beta,
            np.float32(scaling_factor), np.float32(eps), Out(y),
            *[np.int32(size) for size in (batch, in_channels, height, width, out_channels, kernel_size)],
            grid=(math.ceil(outputs / 256), 1, 1), block=(256, 1, 1),
        )  # fmt: skip
        if not (memory[:guard].isnan().all() and memory[-guard:].isnan().all()):
            raise IndexError(f"{name} writes outside y, which has {outputs} elements: is its guard missing?")
        return y.view(shape)

    return candidate
