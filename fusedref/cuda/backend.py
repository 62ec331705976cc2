"""The backends that run kernels: a GPU through PyCUDA, and the emulator. The choice is made here and nowhere else."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusedref.cuda import nvcc
from fusedref.cuda.context import bandwidth, keep, make_current, pushed
from fusedref.cuda.kernel import Kernel
from fusedref.cuda.modules import LoadedModules
from fusedref.cuda.scratch import Scratch
from fusedref.cuda.streams import raw_stream, twin_of
from fusedref.target import EMULATED, Target

Kind = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # of a tensor: its shape, strides and dtype

DEFAULT_SHARED_LIMIT = 48 * 1024  # bytes of dynamic shared memory; a kernel needs permission for more

# torch.compile's own way to new tensors, in a third of the time of the public one. Other versions may lack it.
_empty_on_current_device = getattr(getattr(torch._C._dynamo, "guards", None), "_empty_strided_cuda", None)
_current_device = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)


class Gpu:
    """CUDA devices, by PyCUDA, in torch's contexts and streams."""

    name = "gpu"

    def __init__(self) -> None:
        """Load nothing yet; the first method that needs the driver loads it."""
        self._modules = LoadedModules()

    def public_names(self) -> dict[str, Any]:
        """Return PyCUDA's SourceModule, driver and gpuarray, with a context current in this thread."""
        nvcc.find_nvcc()
        make_current()
        import pycuda.compiler
        import pycuda.driver
        import pycuda.gpuarray

        return {"SourceModule": pycuda.compiler.SourceModule, "drv": pycuda.driver, "gpuarray": pycuda.gpuarray}

    def target(self, index: int | None) -> Target:
        """Return the architecture (``sm_90a`` for GPUs with wgmma) and multiprocessors of CUDA device ``index``."""
        properties = torch.cuda.get_device_properties(_index(index))
        capability = properties.major, properties.minor
        architecture = "sm_90a" if capability == (9, 0) else f"sm_{capability[0]}{capability[1]}"
        return Target(architecture, properties.multi_processor_count, bandwidth(_index(index)), properties.name)

    def load(self, source: str, options: tuple[str, ...], include_dirs: list[Path], index: int | None) -> Any:
        """Return the module of CUDA C ``source``, compiled by nvcc and loaded on CUDA device ``index``."""
        index = _index(index)
        architecture = self.target(index).architecture
        name = nvcc.cubin_name(source, options, architecture, include_dirs)
        return self._modules.get(name, index, lambda: nvcc.cubin(source, options, architecture, include_dirs))

    def allow_shared(self, function: Any, size: int, index: int | None) -> None:
        """Allow launches of ``function`` with ``size`` bytes of dynamic shared memory."""
        if size > DEFAULT_SHARED_LIMIT:
            import pycuda.driver as drv

            with pushed(_index(index)):
                function.set_attribute(drv.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, size)

    def new(self, kinds: Sequence[Kind], index: int | None) -> list[Tensor]:
        """Return a new tensor of each kind on CUDA device ``index``."""
        if _empty_on_current_device is not None and _current_device() == index:
            return [_empty_on_current_device(shape, strides, dtype) for shape, strides, dtype in kinds]
        device = torch.device("cuda", _index(index))
        return [torch.empty_strided(shape, strides, dtype=dtype, device=device) for shape, strides, dtype in kinds]

    def allocate(self, scratch: Scratch, index: int | None) -> tuple[list[int], Tensor]:
        """Return the addresses of new blocks on CUDA device ``index``, and the memory that they are in.

        It must be kept until everything is launched that uses it.
        """
        (memory,) = self.new((((scratch.total,), (1,), torch.uint8),), index)
        start = memory.data_ptr()
        return [start + offset for offset in scratch.offsets], memory

    def launch(
        self,
        kernels: Sequence[Kernel],
        tensors: Sequence[Tensor | None],
        numbers: Sequence[Any],
        index: int | None,
        blocks: Sequence[Any] = (),
    ) -> None:
        """Launch ``kernels`` one after the other in torch's current stream of CUDA device ``index``.

        Each kernel picks its arguments from the addresses of ``tensors``, followed by ``blocks`` and ``numbers``.
        """
        values: list[Any] = [0 if tensor is None else tensor.data_ptr() or _null_address(tensor) for tensor in tensors]
        values += blocks
        values += numbers
        assert index is not None  # a CUDA tensor's device has one
        handle = raw_stream(index)
        if handle == 0:  # the default stream, which is where PyCUDA launches when it is given none
            first, *others = kernels
            try:
                first.start(values, None)
            except Exception:  # the thread has no context, or another one, in which this kernel does not run
                with pushed(index):
                    for kernel in kernels:
                        kernel.start(values, None)
                return
            for kernel in others:
                kernel.start(values, None)
            return
        with pushed(index):
            twin = twin_of(index, handle)
            with twin.lock:
                stream = twin.fork()
                if torch.cuda.is_current_stream_capturing():
                    for kernel in kernels:
                        keep(kernel.function)  # the graph launches it again when nothing else refers to it
                for kernel in kernels:
                    kernel.start(values, stream)
                twin.join()


class Emulator:
    """The emulator, which runs CUDA C on the CPU."""

    name = "emulator"

    def public_names(self) -> dict[str, Any]:
        """Return the emulator's SourceModule, driver and gpuarray."""
        from fusedref import emulator

        return {"SourceModule": emulator.SourceModule, "drv": emulator.driver, "gpuarray": emulator.gpuarray}

    def target(self, index: int | None) -> Target:
        """Return the GPU that the emulator stands for."""
        return EMULATED

    def load(self, source: str, options: tuple[str, ...], include_dirs: list[Path], index: int | None) -> Any:
        """Return the module of CUDA C ``source``, compiled for the CPU."""
        from fusedref.emulator import SourceModule

        folders = [str(folder) for folder in include_dirs]
        return SourceModule(source, options=list(options), no_extern_c=True, include_dirs=folders)

    def allow_shared(self, function: Any, size: int, index: int | None) -> None:
        """Allow launches of ``function`` with ``size`` bytes of dynamic shared memory."""
        if size > DEFAULT_SHARED_LIMIT:
            from fusedref.emulator import driver

            function.set_attribute(driver.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, size)

    def new(self, kinds: Sequence[Kind], index: int | None) -> list[Tensor]:
        """Return a new tensor of each kind on the CPU."""
        return [torch.empty_strided(shape, strides, dtype=dtype) for shape, strides, dtype in kinds]

    def allocate(self, scratch: Scratch, index: int | None) -> tuple[list[Any], None]:
        """Return the addresses of new blocks, which exist as long as the list."""
        from fusedref.emulator import driver

        return [driver.mem_alloc(size) for size in scratch.sizes], None

    def launch(
        self,
        kernels: Sequence[Kernel],
        tensors: Sequence[Tensor | None],
        numbers: Sequence[Any],
        index: int | None,
        blocks: Sequence[Any] = (),
    ) -> None:
        """Launch ``kernels`` one after the other on ``tensors``, which are on the CPU, ``blocks`` and ``numbers``.

        The tensors are copied into the emulator's memory; those that are only written start as NaN there. Those that a
        kernel is declared to write are copied back, and so are those that it changes anyway: the caller must see
        such a change, as on a GPU.
        """
        from fusedref.emulator import driver

        read: set[int] = set()
        written: set[int] = set()
        for kernel in kernels:
            read |= kernel.read - written
            written |= kernel.written
        values: list[Any] = [0] * len(tensors)
        for place, tensor in enumerate(tensors):
            if tensor is None or tensor.numel() == 0:
                continue
            if tensor.untyped_storage().nbytes() == 0:
                _null_address(tensor)
            values[place] = driver.mem_alloc(tensor.nbytes)  # new memory of the emulator holds NaN in every float
            if place in read:
                driver.memcpy_htod(values[place], _bytes(tensor))
        for kernel in kernels:
            kernel.start([*values, *blocks, *numbers], None)
        for place, tensor in enumerate(tensors):
            if tensor is None or not tensor.numel():
                continue
            if place in written or (place in read and _differs(values[place], tensor)):
                driver.memcpy_dtoh(_bytes(tensor), values[place])


Backend = Gpu | Emulator
GPU, EMULATOR = Gpu(), Emulator()


def chosen() -> Backend:
    """Return the backend that the environment variable FUSEDREF_DEVICE names.

    If it is not set, return the GPU if there is one and PyCUDA is installed, else the emulator. Nothing is cached.

    Raises:
        ValueError: FUSEDREF_DEVICE is neither ``gpu`` nor ``emulator``.
        RuntimeError: FUSEDREF_DEVICE is ``gpu``, and there is no GPU or no PyCUDA.
    """
    wanted = os.environ.get("FUSEDREF_DEVICE", "")
    if wanted not in ("", "gpu", "emulator"):
        raise ValueError(f"FUSEDREF_DEVICE is {wanted!r}; it must be 'gpu' or 'emulator', or not set")
    if wanted == "emulator":
        return EMULATOR
    has_pycuda = importlib.util.find_spec("pycuda") is not None
    if has_pycuda and _gpu_count():
        return GPU
    if wanted == "gpu":
        missing = "no GPU was found" if has_pycuda else "PyCUDA is not installed (pip install fusedref[gpu])"
        raise RuntimeError(f"FUSEDREF_DEVICE=gpu, but {missing}")
    return EMULATOR


def backend_of(device: torch.device) -> Backend:
    """Return the backend for tensors on ``device``: the GPU for CUDA's, the emulator for the CPU's.

    Raises:
        RuntimeError: ``device`` is a CUDA device, and there is no PyCUDA or FUSEDREF_DEVICE is ``emulator``.
    """
    if device.type == "cpu":
        return EMULATOR
    backend = chosen()
    if backend is not GPU:
        raise RuntimeError(
            f"running a kernel on {device} needs PyCUDA (pip install fusedref[gpu]) and FUSEDREF_DEVICE unset or 'gpu'"
        )
    return backend


def forced_to_emulator() -> bool:
    """Return whether tensors on the CPU go through CUDA kernels on the emulator."""
    return os.environ.get("FUSEDREF_DEVICE") == "emulator"


def can_launch(device: torch.device) -> bool:
    """Return whether kernels serve ``device``: CUDA's where PyCUDA is, the CPU if FUSEDREF_DEVICE=emulator."""
    if device.type == "cpu":
        return forced_to_emulator()
    return device.type == "cuda" and chosen() is GPU


@cache
def _gpu_count() -> int:
    """Return how many devices libcuda sees, 0 if there is no libcuda. Create no context."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def _null_address(tensor: Tensor) -> int:
    """Return 0 for a tensor without elements; raise ValueError for one whose storage was freed."""
    if tensor.numel():
        raise ValueError(
            f"a tensor given to a kernel must have memory, got one of {tuple(tensor.shape)} that was freed"
        )
    return 0


def _index(index: int | None) -> int:
    return torch.cuda.current_device() if index is None else index


def _differs(memory: Any, tensor: Tensor) -> bool:
    """Return whether the emulator's ``memory`` holds other bytes than ``tensor``, whose size it has."""
    differs: bool = memory.as_buffer(tensor.nbytes) != _bytes(tensor).data
    return differs


def _bytes(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a byte array that shares the memory of ``tensor``, which has no gaps but any dtype and order."""
    array: np.ndarray[Any, np.dtype[np.uint8]]
    array = torch.as_strided(tensor.detach(), (tensor.numel(),), (1,)).view(torch.uint8).numpy()
    return array
