"""torch tensors as the arguments of a kernel: on their GPU in torch's current stream, or through the emulator."""

from __future__ import annotations

import struct
import threading
from functools import cache

import numpy as np
import torch
from torch import Tensor

from fusedref.cuda.context import kept, primary

try:
    from torch._C import _cuda_getCurrentRawStream as _raw_stream  # at a tenth of the public call's time
except ImportError:

    def _raw_stream(index: int) -> int:
        return torch.cuda.current_stream(index).cuda_stream


class Out:
    """Marks a tensor that the kernel writes, whole, and does not read."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class InOut(Out):
    """Marks a tensor that the kernel reads and writes, or writes only in part."""

    __slots__ = ()


def launch(
    function,
    *arguments: Tensor | Out | np.generic | None,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    shared: int = 0,
) -> None:
    """Launch ``function`` (of ``compile.source_module``) with torch tensors among its arguments.

    A contiguous tensor becomes a pointer, None a null pointer, a NumPy scalar its value (an argument of a kernel has a
    type, so Python's numbers are refused). All tensors are on one device. On a GPU the launch joins torch's current
    stream of that device. On the emulator the tensors are the CPU's: they are copied into its memory, and those marked
    ``Out``, which start there as NaN, or ``InOut`` are copied back.

    Raises TypeError or ValueError for an argument that cannot be passed; the device's own errors for the launch.
    """
    types, values, device = "", [], None
    for argument in arguments:
        if argument is None:
            types += "P"
            values.append(0)
            continue
        if isinstance(argument, np.generic):
            types += argument.dtype.char
            values.append(argument)
            continue
        tensor = argument.tensor if isinstance(argument, Out) else argument
        if not isinstance(tensor, Tensor):
            raise TypeError(f"a kernel takes tensors, None and NumPy scalars, got {argument!r}")
        if not tensor.is_contiguous():
            raise ValueError(f"a tensor given to a kernel must be contiguous, got strides {tensor.stride()}")
        if device is None:
            device = tensor.device
        elif tensor.device != device:
            raise ValueError(f"the tensors given to a kernel must be on one device, got {device} and {tensor.device}")
        types += "P"
        values.append(tensor.data_ptr() if tensor.is_cuda else argument)
    if device is None:
        raise ValueError("a kernel takes at least one tensor, which says where it runs")
    if device.type == "cuda":
        launch_on_gpu(function, types, values, device.index, grid, block, shared)
    elif device.type == "cpu":
        _launch_on_emulator(function, types, values, grid, block, shared)
    else:
        raise ValueError(f"the tensors given to a kernel must be on a CPU or CUDA device, got {device}")


def _start(function, types: str, values: list, grid: tuple, block: tuple, shared: int, stream) -> None:
    try:
        launch_kernel = function._launch_kernel  # private to PyCUDA, a third of the time of its public call
    except AttributeError:
        function.prepare(types)
        function.prepared_async_call(grid, block, stream, *values, shared_size=shared)
    else:
        launch_kernel(grid, block, struct.pack(types, *values), shared, stream)


def launch_on_gpu(
    function, types: str, values: list[int | float], index: int, grid: tuple, block: tuple, shared: int
) -> None:
    """``launch`` for values that are ready, pointers of GPU ``index`` among them, and their ``types`` as struct's."""
    handle = _raw_stream(index)
    context = primary(index)
    context.push()
    try:
        if handle == 0:  # the default stream, which is where PyCUDA launches when it is given none
            _start(function, types, values, grid, block, shared, None)
            return
        current = torch.cuda.current_stream(index)
        twin = _twin(index, handle)
        with twin.lock:
            twin.forked.record(current)
            twin.as_torch.wait_event(twin.forked)
            _start(function, types, values, grid, block, shared, twin.stream)
            twin.joined.record(twin.as_torch)
            current.wait_event(twin.joined)
    finally:
        context.pop()


class _Twin:
    """PyCUDA cannot launch into a stream of torch's, so each has a twin that forks off it and joins it again.

    Not one twin for all: a stream that is being captured into a CUDA graph draws its twin into the capture.
    Made with the device's context current.
    """

    def __init__(self, index: int) -> None:
        import pycuda.driver as drv

        non_blocking = 1  # as torch's streams are: not ordered with the default stream
        self.stream = kept(drv.Stream(non_blocking))
        self.as_torch = torch.cuda.ExternalStream(self.stream.handle, device=index)
        self.forked, self.joined = torch.cuda.Event(), torch.cuda.Event()
        self.lock = threading.Lock()  # the two events serve one launch at a time


_twins_lock = threading.Lock()


def _twin(index: int, handle: int) -> _Twin:
    with _twins_lock:  # or two threads would make a twin each
        return _make_twin(index, handle)


@cache
def _make_twin(index: int, handle: int) -> _Twin:
    return _Twin(index)


def _launch_on_emulator(function, types: str, values: list, grid: tuple, block: tuple, shared: int) -> None:
    from fusedref.emulator import driver

    results = []
    for place, value in enumerate(values):
        tensor = value.tensor if isinstance(value, Out) else value
        if not isinstance(tensor, Tensor):
            continue
        if tensor.numel() == 0:
            values[place] = 0
            continue
        values[place] = memory = driver.mem_alloc(tensor.nbytes)
        if isinstance(value, Out):
            results.append((tensor, memory))
        if type(value) is not Out:  # new memory of the emulator holds NaN in every float
            driver.memcpy_htod(memory, _bytes(tensor))
    _start(function, types, values, grid, block, shared, None)
    for tensor, memory in results:
        driver.memcpy_dtoh(_bytes(tensor), memory)


def _bytes(tensor: Tensor) -> np.ndarray:
    """The tensor's memory, of any dtype, as an array that shares it."""
    return tensor.detach().view(-1).view(torch.uint8).numpy()
