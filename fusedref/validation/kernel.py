"""Make a candidate of the kernel in a .cu file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fusedref.cuda.compile import source_module
from fusedref.cuda.launch import InOut, Out, launch
from fusedref.validation.call import Candidate

THREADS = 256  # in a block
GUARD = 1024  # elements of NaN on both sides of y, which the kernel must leave alone


def candidate_from_kernel(path: str | Path, name: str) -> Candidate:
    """Return the kernel ``name`` of a .cu file as a candidate.

    The kernel has the signature of ``fused`` in kernels/04_fused.cu. It is launched with ceil(outputs / 256) blocks of
    256 threads, for stride 1, no padding, a square kernel and one group. It never gets a null pointer: where bias,
    gamma or beta is None it gets zeros, ones and zeros.

    Raises TypeError where an argument has another type and FileNotFoundError where there is no such file. The candidate
    raises TypeError where x is not float32, ValueError for several groups or a filter that is not square, and
    IndexError where the kernel writes beside y.
    """
    if not isinstance(path, (str, Path)):
        raise TypeError(f"path must be the path of a .cu file, got {type(path).__name__}")
    if not isinstance(name, str):
        raise TypeError(f"name must be the name of a kernel in the file, got {type(name).__name__}")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")

    def candidate(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        running_mean: Tensor,
        running_var: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        scaling_factor: float,
        eps: float,
    ) -> Tensor:
        """Compute y by the kernel."""
        if x.dtype != torch.float32:
            raise TypeError(f"the kernel takes float32 tensors, got {x.dtype}")
        batch, in_channels, height, width = x.shape
        out_channels, _, kernel_size, _ = weight.shape
        if weight.shape[1:] != (in_channels, kernel_size, kernel_size):
            raise ValueError(f"the kernel serves one group and a square filter, got weight {tuple(weight.shape)}")
        shape = batch, out_channels, height - kernel_size + 1, width - kernel_size + 1
        outputs = math.prod(shape)
        memory = torch.full((GUARD + outputs + GUARD,), torch.nan, device=x.device)
        y = memory[GUARD:-GUARD]
        inputs = (
            x,
            weight,
            torch.zeros_like(running_mean) if bias is None else bias,
            running_mean,
            running_var,
            torch.ones_like(running_mean) if gamma is None else gamma,
            torch.zeros_like(running_mean) if beta is None else beta,
        )
        launch(
            source_module(path, device=x.device).get_function(name),
            *map(InOut, inputs),  # so that a kernel that writes to its inputs changes them on the emulator too
            np.float32(scaling_factor),
            np.float32(eps),
            Out(y),
            *(np.int32(size) for size in (batch, in_channels, height, width, out_channels, kernel_size)),
            grid=(math.ceil(outputs / THREADS), 1, 1),
            block=(THREADS, 1, 1),
        )
        if not (memory[:GUARD].isnan().all() and memory[-GUARD:].isnan().all()):
            raise IndexError(f"{name} writes outside y, which has {outputs} elements: is its guard missing?")
        return y.view(shape)

    return candidate
