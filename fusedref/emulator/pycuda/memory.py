"""Allocate, copy and fill device memory."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any, SupportsInt

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .. import runtime
from ..errors import LogicError, MemoryError
from ..image import in_loaded_variable
from ..watching.collect import leaves_device, written
from .device import Stream

Array = NDArray[Any]
Shape = int | tuple[int, ...]


def _free(address: ctypes.c_uint64) -> None:
    try:
        leaves_device(address.value)
    finally:
        runtime.library().emu_free(ctypes.byref(address))


class DeviceAllocation:
    """Device memory of ``size`` bytes. ``int()`` gives its address; it is freed with the object, or by ``free()``.

    Raises:
        MemoryError: not that much memory is free.
    """

    def __init__(self, size: int):
        address = ctypes.c_uint64()  # the finalizer exists before the allocation: an interrupt cannot leak it
        self.size = size
        self._finalizer = weakref.finalize(self, _free, address)
        self._finalizer.atexit = False
        runtime.library().emu_alloc(size, ctypes.byref(address))
        self._address = address.value
        if not self._address:
            raise MemoryError("cuMemAlloc failed: out of memory")

    def free(self) -> None:
        """Free the memory.

        Raises:
            LogicError: it has been freed before.
        """
        if not self._finalizer.alive:
            raise LogicError("device_allocation::free failed: invalid resource handle")
        self._finalizer()

    def __int__(self) -> int:
        return self._address

    def __index__(self) -> int:
        return self._address

    def as_buffer(self, size: int, offset: int = 0) -> memoryview:
        """Return ``size`` bytes of the memory, from ``offset`` on, as a buffer."""
        return memoryview((ctypes.c_char * size).from_address(self._address + offset)).cast("B")


def mem_alloc(size: int) -> DeviceAllocation:
    """Return device memory of ``size`` bytes, filled with 0xFF: NaN as a float, -1 as an int.

    Raises:
        LogicError: ``size`` is not positive.
        MemoryError: not that much memory is free.
    """
    size = int(size)
    if size <= 0:
        raise LogicError("cuMemAlloc failed: invalid argument")
    return DeviceAllocation(size)


def mem_alloc_like(array: Array) -> DeviceAllocation:
    """Return device memory of the array's size; its contents are not copied."""
    return mem_alloc(array.nbytes)


def mem_get_info() -> tuple[int, int]:
    """Return (free bytes, all bytes) of device memory."""
    total = runtime.memory_bytes()
    return total - runtime.library().emu_memory_used(), total


def _contiguous(array: Any, writable: bool) -> Array:
    """Return an array or buffer as an array whose memory is one block.

    Raises:
        ValueError: it is contiguous in neither order, or read-only although ``writable`` is set.
    """
    if isinstance(array, np.generic):
        array = np.asarray(array)
    if not isinstance(array, np.ndarray):
        array = np.asarray(memoryview(array))
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        raise ValueError("ndarray is not contiguous")
    if writable and not array.flags.writeable:
        raise ValueError("ndarray is not writeable")
    result: Array = array
    return result


def _checked_address(memory: SupportsInt, size: int, call: str) -> int:
    """Return the address of ``memory``.

    Raises:
        LogicError: not all of the ``size`` bytes there are device memory.
    """
    address = int(memory)
    if not (runtime.library().emu_valid(address, size) or in_loaded_variable(address, size)):
        raise LogicError(f"{call} failed: invalid argument")
    return address


def memcpy_htod(dest: SupportsInt, src: Any) -> None:
    """Copy an array, or any buffer, to the device."""
    source = _contiguous(src, writable=False)
    if source.nbytes:
        address = _checked_address(dest, source.nbytes, "cuMemcpyHtoD")
        ctypes.memmove(address, source.ctypes.data, source.nbytes)
        written(address, source.nbytes)


def memcpy_dtoh(dest: Any, src: SupportsInt) -> None:
    """Copy from the device into an array, or any writable buffer."""
    target = _contiguous(dest, writable=True)
    if target.nbytes:
        address = _checked_address(src, target.nbytes, "cuMemcpyDtoH")
        ctypes.memmove(target.ctypes.data, address, target.nbytes)
        leaves_device(address)


def memcpy_dtod(dest: SupportsInt, src: SupportsInt, size: int) -> None:
    """Copy ``size`` bytes within the device."""
    if size:
        address = _checked_address(dest, size, "cuMemcpyDtoD")
        ctypes.memmove(address, _checked_address(src, size, "cuMemcpyDtoD"), size)
        written(address, size)


def memcpy_htod_async(dest: SupportsInt, src: Any, stream: Stream | None = None) -> None:
    """Copy as ``memcpy_htod`` does: at once."""
    memcpy_htod(dest, src)


def memcpy_dtoh_async(dest: Any, src: SupportsInt, stream: Stream | None = None) -> None:
    """Copy as ``memcpy_dtoh`` does: at once."""
    memcpy_dtoh(dest, src)


def memcpy_dtod_async(dest: SupportsInt, src: SupportsInt, size: int, stream: Stream | None = None) -> None:
    """Copy as ``memcpy_dtod`` does: at once."""
    memcpy_dtod(dest, src, size)


def _memset(dest: SupportsInt, value: int, count: int, bits: int) -> None:
    dtype = np.dtype(f"uint{bits}")
    size = count * dtype.itemsize
    address = _checked_address(dest, size, f"cuMemsetD{bits}")
    written(address, size)
    memory: Array = np.frombuffer(memoryview((ctypes.c_char * size).from_address(address)), dtype)
    memory[:] = int(value) & (1 << bits) - 1


def memset_d8(dest: SupportsInt, data: int, count: int) -> None:
    """Set ``count`` bytes to ``data``."""
    _memset(dest, data, count, 8)


def memset_d16(dest: SupportsInt, data: int, count: int) -> None:
    """Set ``count`` 16-bit words to ``data``."""
    _memset(dest, data, count, 16)


def memset_d32(dest: SupportsInt, data: int, count: int) -> None:
    """Set ``count`` 32-bit words to ``data``."""
    _memset(dest, data, count, 32)


def memset_d8_async(dest: SupportsInt, data: int, count: int, stream: Stream | None = None) -> None:
    """Set as ``memset_d8`` does: at once."""
    memset_d8(dest, data, count)


def memset_d16_async(dest: SupportsInt, data: int, count: int, stream: Stream | None = None) -> None:
    """Set as ``memset_d16`` does: at once."""
    memset_d16(dest, data, count)


def memset_d32_async(dest: SupportsInt, data: int, count: int, stream: Stream | None = None) -> None:
    """Set as ``memset_d32`` does: at once."""
    memset_d32(dest, data, count)


def to_device(array: Array) -> DeviceAllocation:
    """Return new device memory that holds a copy of ``array``."""
    result = mem_alloc_like(array)
    memcpy_htod(result, array)
    return result


def from_device(devptr: SupportsInt, shape: Shape, dtype: DTypeLike, order: Any = "C") -> Array:
    """Return a new array, copied from the device."""
    result: Array = np.empty(shape, dtype, order)
    memcpy_dtoh(result, devptr)
    return result


def from_device_like(devptr: SupportsInt, other: Array) -> Array:
    """Return a new array of the shape and dtype of ``other``, copied from the device."""
    result = np.empty_like(other)
    memcpy_dtoh(result, devptr)
    return result


def pagelocked_empty(shape: Shape, dtype: DTypeLike, order: Any = "C", mem_flags: int = 0) -> Array:
    """Return ``numpy.empty``: no memory needs to be locked."""
    return np.empty(shape, dtype, order)


def pagelocked_zeros(shape: Shape, dtype: DTypeLike, order: Any = "C", mem_flags: int = 0) -> Array:
    """Return ``numpy.zeros``: no memory needs to be locked."""
    return np.zeros(shape, dtype, order)


def pagelocked_empty_like(array: Array, mem_flags: int = 0) -> Array:
    """Return ``numpy.empty_like``: no memory needs to be locked."""
    return np.empty_like(array)


def pagelocked_zeros_like(array: Array, mem_flags: int = 0) -> Array:
    """Return ``numpy.zeros_like``: no memory needs to be locked."""
    return np.zeros_like(array)
