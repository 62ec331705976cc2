"""torch tensors as the arguments of a kernel: on their GPU in torch's current stream, or through the emulator."""

from __future__ import annotations

import struct
import threading
from functools import cache

import numpy as np
import torch
from torch import Tensor

from fusedref.cuda.context import pushed


class Out:
    """Marks a tensor that the kernel writes, whole, and does not read."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


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
    stream of that device. On the emulator the tensors are the CPU's: they are copied into its memory, and those marked ``Out``,
    which start there as NaN, are copied back.

    Raises TypeError or ValueError for an argument that cannot be passed; the device's own errors for the launch.
    """
    tensors = []
    for argument in arguments:
        tensor = argument.tensor if type(argument) is Out else argument
        if isinstance(tensor, Tensor):
            if not tensor.is_contiguous():
                raise ValueError(f"a tensor given to a kernel must be contiguous, got strides {tensor.stride()}")
            tensors.append(tensor)
        elif tensor is not None and not isinstance(tensor, np.generic):
            raise TypeError(f"a kernel takes tensors, None and NumPy scalars, got {argument!r}")
    devices = {tensor.device for tensor in tensors}
    if len(devices) != 1:
        raise ValueError(f"the tensors given to a kernel must be on one device, got {sorted(map(str, devices))}")
    (device,) = devices
    if device.type == "cuda":
        _launch_on_gpu(function, arguments, device.index, grid, block, shared)
    elif device.type == "cpu":
        _launch_on_emulator(function, arguments, grid, block, shared)
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


def _typed(arguments: tuple, pointer) -> tuple[str, list]:
    """The arguments as ``struct`` wants them: their types, and their values with tensors as addresses."""
    types, values = "", []
    for argument in arguments:
        if isinstance(argument, np.generic):
            types += argument.dtype.char
            values.append(argument.item())
        else:
            types += "P"
            values.append(0 if argument is None else pointer(argument))
    return types, values


def _launch_on_gpu(function, arguments: tuple, index: int, grid: tuple, block: tuple, shared: int) -> None:
    types, values = _typed(arguments, lambda argument: getattr(argument, "tensor", argument).data_ptr())
    current = torch.cuda.current_stream(index)
    if current.cuda_stream == 0:  # the default stream, which is where PyCUDA launches when it is given none
        with pushed(index):
            _start(function, types, values, grid, block, shared, None)
        return
    twin = _twin(index, current.cuda_stream)
    with twin.lock, pushed(index):
        twin.forked.record(current)
        twin.as_torch.wait_event(twin.forked)
        _start(function, types, values, grid, block, shared, twin.stream)
        twin.joined.record(twin.as_torch)
        current.wait_event(twin.joined)


class _Twin:
    """PyCUDA cannot launch into a stream of torch's, so each has a twin that forks off it and joins it again.

    Not one twin for all: a stream that is being captured into a CUDA graph draws its twin into the capture.
    """

    def __init__(self, index: int) -> None:
        import pycuda.driver as drv

        non_blocking = 1  # as torch's streams are: not ordered with the default stream
        with pushed(index):
            self.stream = drv.Stream(non_blocking)
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


def _launch_on_emulator(function, arguments: tuple, grid: tuple, block: tuple, shared: int) -> None:
    from fusedref.emulator import driver

    allocations = []

    def pointer(argument: Tensor | Out) -> object:
        tensor = argument.tensor if type(argument) is Out else argument
        if tensor.numel() == 0:
            return 0
        memory = driver.mem_alloc(tensor.nbytes)
        if type(argument) is Out:
            driver.memset_d8(memory, 0xFF, tensor.nbytes)  # every float is NaN until the kernel writes it
        else:
            driver.memcpy_htod(memory, _bytes(tensor))
        allocations.append((memory, argument))
        return int(memory)

    types, values = _typed(arguments, pointer)
    _start(function, types, values, grid, block, shared, None)
    for memory, argument in allocations:
        if type(argument) is Out:
            driver.memcpy_dtoh(_bytes(argument.tensor), memory)


def _bytes(tensor: Tensor) -> np.ndarray:
    """The tensor's memory, of any dtype, as an array that shares it."""
    return tensor.detach().view(-1).view(torch.uint8).numpy()
