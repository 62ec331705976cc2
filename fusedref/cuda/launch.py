"""Launch a kernel with torch tensors as arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusedref.cuda.backend import backend_of
from fusedref.cuda.kernel import Geometry, Kernel


class Out:
    """Marks a tensor that the kernel writes completely and does not read."""

    __slots__ = ("tensor",)
    kind = "out"

    def __init__(self, tensor: Tensor) -> None:
        """Mark ``tensor``."""
        self.tensor = tensor


class InOut(Out):
    """Marks a tensor that the kernel reads and writes, or writes only in part."""

    __slots__ = ()
    kind = "inout"


def launch(
    function: Any,
    *arguments: Tensor | Out | np.generic | None,
    grid: Geometry,
    block: Geometry,
    shared: int = 0,
) -> None:
    """Launch ``function`` (of ``compile.source_module``) with torch tensors among its arguments.

    A contiguous tensor becomes a pointer, None a null pointer, a NumPy scalar its value. Python's numbers are refused:
    they do not say which type the kernel expects. All tensors are on one device. On a GPU the launch joins torch's
    current stream of that device. On the emulator, CPU tensors are copied into its memory, where those marked ``Out``
    start as NaN. Those marked ``Out`` or ``InOut`` are copied back.

    Raise TypeError or ValueError for an argument that cannot be passed, and the device's own errors for the launch.
    """
    tensors: list[Tensor | None] = []
    numbers: list[np.generic] = []
    kinds: list[str] = []
    places: list[int] = []  # of the tensors from 0, of the numbers from -1 downwards
    device: torch.device | None = None
    for argument in arguments:
        if isinstance(argument, np.generic):
            kinds.append(argument.dtype.char)
            numbers.append(argument)
            places.append(-len(numbers))
            continue
        kinds.append(argument.kind if isinstance(argument, Out) else "in")
        tensor = argument.tensor if isinstance(argument, Out) else argument
        places.append(len(tensors))
        tensors.append(tensor)
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"a kernel takes tensors, None and NumPy scalars, got {argument!r}")
        if not tensor.is_contiguous():
            raise ValueError(f"a tensor given to a kernel must be contiguous, got strides {tensor.stride()}")
        if device is None:
            device = tensor.device
        elif tensor.device != device:
            raise ValueError(f"the tensors given to a kernel must be on one device, got {device} and {tensor.device}")
    if device is None:
        raise ValueError("a kernel takes at least one tensor, which says where it runs")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"the tensors given to a kernel must be on a CPU or CUDA device, got {device}")
    positions = [place if place >= 0 else len(tensors) - 1 - place for place in places]
    kernel = Kernel(function, kinds, positions, grid, block, shared)
    backend_of(device).launch([kernel], tensors, numbers, device.index)
