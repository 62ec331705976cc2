"""The names of ``pycuda.gpuarray``. Numpy does the arithmetic, on copies."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike

from . import memory
from .memory import Array

Allocator = Callable[[int], Any]


def _strides(shape: tuple[int, ...], itemsize: int, order: str) -> tuple[int, ...]:
    """Return the strides in bytes of a contiguous array."""
    strides, step = [], itemsize
    for size in shape if order == "F" else reversed(shape):
        strides.append(step)
        step *= size
    return tuple(strides if order == "F" else reversed(strides))


class GPUArray:
    """An n-dimensional array in the emulator's device memory, contiguous in C or Fortran order."""

    __array_priority__ = 100

    def __init__(
        self,
        shape: Any,
        dtype: DTypeLike,
        allocator: Allocator = memory.mem_alloc,
        base: object = None,
        gpudata: Any = None,
        strides: tuple[int, ...] | None = None,
        order: str = "C",
    ):
        shape = (int(shape),) if isinstance(shape, numbers.Integral) else tuple(int(size) for size in shape)
        if order not in ("C", "F"):
            raise ValueError(f"invalid order: {order}")
        self.shape: tuple[int, ...]
        self.dtype: np.dtype[Any]
        self.shape, self.dtype, self.base, self.allocator = shape, np.dtype(dtype), base, allocator
        self.size = self.mem_size = int(np.prod(shape, dtype=np.int64))
        self.itemsize = self.dtype.itemsize
        self.nbytes = self.size * self.itemsize
        self.strides = tuple(strides) if strides is not None else _strides(shape, self.itemsize, order)
        if gpudata is None and self.size:
            gpudata = allocator(self.nbytes)
        self.gpudata = gpudata

    @property
    def ndim(self) -> int:
        """Return the number of dimensions."""
        return len(self.shape)

    @property
    def ptr(self) -> int:
        """Return the address."""
        return int(self.gpudata)

    @property
    def flags(self) -> Any:
        """Return the flags of a numpy array of this shape and these strides."""
        return np.lib.stride_tricks.as_strided(np.empty(1, self.dtype), self.shape, self.strides).flags

    @property
    def _order(self) -> Literal["C", "F"]:
        return "C" if self.strides == _strides(self.shape, self.itemsize, "C") else "F"

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Return the array's description for other libraries."""
        return {
            "shape": self.shape,
            "strides": self.strides,
            "data": (self.ptr if self.size else 0, False),
            "typestr": self.dtype.str,
            "stream": None,
            "version": 3,
        }

    def set(self, ary: Array, async_: bool = False, stream: object = None) -> None:
        """Copy ``ary`` here.

        Raises:
            ValueError: its size or dtype differs.
        """
        if ary.size != self.size:
            raise ValueError("ary and self must be the same size")
        if ary.dtype != self.dtype:
            raise ValueError("ary and self must have the same dtype")
        if self.size:
            memory.memcpy_htod(self.gpudata, np.asarray(ary.reshape(self.shape), order=self._order))

    def set_async(self, ary: Array, stream: object = None) -> None:
        """Copy as ``set`` does: at once."""
        self.set(ary)

    def get(
        self, ary: Array | None = None, pagelocked: bool = False, async_: bool = False, stream: object = None
    ) -> Array:
        """Return a copy as a numpy array, or copy into ``ary``."""
        copy: Array = np.empty(self.shape, self.dtype, self._order)
        if self.size:
            memory.memcpy_dtoh(copy, self.gpudata)
        if ary is None:
            return copy
        if ary.size != self.size:
            raise ValueError("self and ary must be the same size")
        if ary.dtype != self.dtype:
            raise TypeError("self and ary must have the same dtype")
        ary[...] = copy.reshape(ary.shape)
        return ary

    def get_async(self, stream: object = None, ary: Array | None = None) -> Array:
        """Copy as ``get`` does: at once."""
        return self.get(ary)

    def copy(self) -> GPUArray:
        """Return a copy in new device memory."""
        new = GPUArray(self.shape, self.dtype, self.allocator, strides=self.strides)
        if self.size:
            memory.memcpy_dtod(new.gpudata, self.gpudata, self.nbytes)
        return new

    def fill(self, value: Any, stream: object = None) -> GPUArray:
        """Set every element to ``value``."""
        self.set(np.full(self.shape, value, self.dtype))
        return self

    def reshape(self, *shape: Any, order: Any = "C") -> GPUArray:
        """Return the same memory with another shape; one size may be -1."""
        if len(shape) == 1 and not isinstance(shape[0], numbers.Integral):
            shape = tuple(shape[0])
        shape = np.empty(self.shape, np.bool_).reshape(shape).shape
        return GPUArray(shape, self.dtype, base=self, gpudata=self.gpudata, order=order)

    def ravel(self, order: str = "C") -> GPUArray:
        """Return the same memory with one dimension."""
        return self.reshape(self.size, order=order)

    def view(self, dtype: DTypeLike | None = None) -> GPUArray:
        """Return the same memory with another dtype."""
        dtype = np.dtype(dtype or self.dtype)
        shape = np.empty(self.shape, self.dtype).view(dtype).shape
        return GPUArray(shape, dtype, base=self, gpudata=self.gpudata)

    def astype(self, dtype: DTypeLike) -> GPUArray:
        """Return a copy with another dtype."""
        return to_gpu(self.get().astype(dtype))

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __bool__(self) -> bool:
        if self.size == 1:
            return bool(self.get())
        raise ValueError("The truth value of an array with more than one element is ambiguous. Use a.any() or a.all()")

    def __str__(self) -> str:
        return str(self.get())

    def __repr__(self) -> str:
        return repr(self.get())

    def __hash__(self) -> int:
        raise TypeError("GPUArrays are not hashable.")

    def __neg__(self) -> GPUArray:
        return to_gpu(-self.get())

    def __abs__(self) -> GPUArray:
        return to_gpu(abs(self.get()))


def _operation(apply: Callable[[Any, Any], Any], swapped: bool = False) -> Callable[[GPUArray, Any], GPUArray]:
    def method(self: GPUArray, other: Any) -> GPUArray:
        """Apply the operator to copies of both operands; return the result on the device."""
        other = other.get() if isinstance(other, GPUArray) else other
        mine = self.get()
        return to_gpu(np.asarray(apply(other, mine) if swapped else apply(mine, other)))

    return method


for _name in ("add", "sub", "mul", "truediv", "pow", "eq", "ne", "lt", "le", "gt", "ge"):
    setattr(GPUArray, f"__{_name}__", _operation(getattr(operator, _name)))
for _name in ("add", "sub", "mul", "truediv", "pow"):
    setattr(GPUArray, f"__r{_name}__", _operation(getattr(operator, _name), swapped=True))


def to_gpu(ary: Array, allocator: Allocator = memory.mem_alloc) -> GPUArray:
    """Return a copy of ``ary`` on the device."""
    ary = np.asarray(ary)
    order = "F" if ary.flags.f_contiguous and not ary.flags.c_contiguous else "C"
    result = GPUArray(ary.shape, ary.dtype, allocator, order=order)
    result.set(ary)
    return result


to_gpu_async = to_gpu


def empty(shape: Any, dtype: DTypeLike, allocator: Allocator = memory.mem_alloc, order: str = "C") -> GPUArray:
    """Return an array that nothing has written: 0xFF in every byte."""
    return GPUArray(shape, dtype, allocator, order=order)


def zeros(
    shape: Any, dtype: DTypeLike = np.float64, allocator: Allocator = memory.mem_alloc, order: str = "C"
) -> GPUArray:
    """Return an array of zeros."""
    result = GPUArray(shape, dtype, allocator, order=order)
    if result.size:
        memory.memset_d8(result.gpudata, 0, result.nbytes)
    return result


def empty_like(other: GPUArray, dtype: DTypeLike | None = None, order: str = "K") -> GPUArray:
    """Return an array of the shape, and unless ``dtype`` is given the dtype, of ``other``."""
    return GPUArray(other.shape, dtype or other.dtype, strides=None if dtype else other.strides)


def zeros_like(other: GPUArray, dtype: DTypeLike | None = None, order: str = "K") -> GPUArray:
    """Return zeros of the shape of ``other``."""
    return empty_like(other, dtype).fill(0)


def ones_like(other: GPUArray, dtype: DTypeLike | None = None, order: str = "K") -> GPUArray:
    """Return ones of the shape of ``other``."""
    return empty_like(other, dtype).fill(1)


def arange(*args: Any, **kwargs: Any) -> GPUArray:
    """Return ``numpy.arange`` on the device."""
    return to_gpu(np.arange(*args, **kwargs))


def sum(a: GPUArray, dtype: DTypeLike | None = None) -> GPUArray:
    """Return the sum of all elements, on the device."""
    return to_gpu(np.asarray(a.get().sum(dtype=dtype)))


def max(a: GPUArray) -> GPUArray:
    """Return the largest element, on the device."""
    return to_gpu(np.asarray(a.get().max()))


def min(a: GPUArray) -> GPUArray:
    """Return the smallest element, on the device."""
    return to_gpu(np.asarray(a.get().min()))
