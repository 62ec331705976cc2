"""Launch kernels with PyCUDA's interface: arguments, attributes and the checks of a launch."""

from __future__ import annotations

import enum
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import abi
from ..errors import LogicError
from ..image import Launch, LoadedKernel
from ..limits import MAX_BLOCK, MAX_GRID, MAX_THREADS_PER_BLOCK, SHARED_DEFAULT, SHARED_OPT_IN, workers
from ..watching import launching
from .device import Stream
from .memory import Array, DeviceAllocation, mem_alloc_like, memcpy_dtoh, memcpy_htod


class function_attribute(enum.IntEnum):
    """Attributes of a kernel."""

    MAX_THREADS_PER_BLOCK = 0
    SHARED_SIZE_BYTES = 1
    CONST_SIZE_BYTES = 2
    LOCAL_SIZE_BYTES = 3
    NUM_REGS = 4
    PTX_VERSION = 5
    BINARY_VERSION = 6
    MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
    PREFERRED_SHARED_MEMORY_CARVEOUT = 9


class ArgumentHandler:
    """An array argument that a launch copies: the base class of In, Out and InOut."""

    def __init__(self, ary: Array):
        self.array = ary
        self.dev_alloc: DeviceAllocation | None = None

    def get_device_alloc(self) -> DeviceAllocation:
        """Return device memory of the array's size.

        Raises:
            TypeError: it is not an array.
        """
        if self.dev_alloc is None:
            try:
                self.dev_alloc = mem_alloc_like(self.array)
            except AttributeError:
                raise TypeError(
                    f"could not determine array length of '{type(self.array)}': unsupported array type or not an array"
                ) from None
        return self.dev_alloc

    def pre_call(self, stream: Stream | None) -> None:
        """Prepare the launch."""

    def post_call(self, stream: Stream | None) -> None:
        """Finish the launch."""


class In(ArgumentHandler):
    """An array to copy to the device before the launch."""

    def pre_call(self, stream: Stream | None) -> None:
        """Copy the array to the device."""
        memcpy_htod(self.get_device_alloc(), self.array)


class Out(ArgumentHandler):
    """An array to copy back from the device after the launch."""

    def post_call(self, stream: Stream | None) -> None:
        """Copy the array back."""
        memcpy_dtoh(self.array, self.get_device_alloc())


class InOut(In, Out):
    """An array to copy to the device and back."""


@dataclass(frozen=True)
class _Value:
    """An argument as bytes. ``kind`` is its format in struct: ``P`` for a pointer, ``8s`` for 8 bytes."""

    kind: str
    data: bytes

    @property
    def floating(self) -> bool:
        """Return whether the value is a floating-point number."""
        return self.kind in ("e", "f", "d")

    @property
    def opaque(self) -> bool:
        """Return whether the value is bytes of no known type."""
        return self.kind.endswith("s")

    def __str__(self) -> str:
        if self.kind == "P":
            return "a pointer"
        size = f"{len(self.data)} bytes"
        return (
            size if self.opaque else f"a floating-point number of {size}" if self.floating else f"an integer of {size}"
        )

    def fits(self, parameter: abi.Parameter) -> bool:
        """Return whether the kernel's parameter can take the value."""
        if len(self.data) != parameter.size:
            return False
        if self.floating:
            return bool(parameter.floating or parameter.opaque) and not parameter.pointer
        if self.kind == "P":
            return not parameter.floating and bool(parameter.pointer or parameter.size == 8)
        return self.opaque or not parameter.floating


def _wanted(parameter: abi.Parameter) -> str:
    size = f"{parameter.size} bytes"
    if parameter.pointer:
        return "a pointer"
    if parameter.floating:
        return f"a floating-point number of {size}"
    return size if parameter.opaque else f"an integer of {size}"


def _pointer(address: int) -> _Value:
    return _Value("P", struct.pack("P", address))


def _value(position: int, argument: Any) -> _Value:
    """Return an argument of a call as bytes.

    Raises:
        TypeError: its type has no fixed size.
    """
    if isinstance(argument, np.number):
        return _Value(argument.dtype.char, argument.tobytes())
    if isinstance(argument, DeviceAllocation):
        return _pointer(int(argument))
    if isinstance(argument, ArgumentHandler):
        return _pointer(int(argument.get_device_alloc()))
    if isinstance(argument, (np.ndarray, np.void)):
        return _Value("s", argument.tobytes())
    interface = getattr(argument, "__cuda_array_interface__", None)
    if interface:
        return _pointer(interface["data"][0])
    try:
        return _pointer(int(np.uintp(argument.gpudata)))
    except AttributeError:
        raise TypeError(f"invalid type on parameter #{position} (0-based)") from None


class Function:
    """A kernel, ready to be launched. Made by ``SourceModule.get_function``."""

    def __init__(self, kernel: LoadedKernel, watched: bool = False):
        self._kernel, self._watched, self.name = kernel, watched, kernel.name
        self._arg_format = ""
        self._attributes = {
            function_attribute.MAX_THREADS_PER_BLOCK: MAX_THREADS_PER_BLOCK,
            function_attribute.SHARED_SIZE_BYTES: kernel.static_shared,
            function_attribute.CONST_SIZE_BYTES: 0,
            function_attribute.LOCAL_SIZE_BYTES: 0,
            function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES: SHARED_DEFAULT - kernel.static_shared,
        }

    def get_attribute(self, attribute: function_attribute) -> int:
        """Return the value of an attribute.

        Raises:
            LogicError: only a card has it, such as the number of registers.
        """
        try:
            return self._attributes[function_attribute(attribute)]
        except KeyError:
            raise LogicError(
                f"cuFuncGetAttribute failed: the emulator has no {function_attribute(attribute).name.lower()}"
            ) from None

    def set_attribute(self, attribute: function_attribute, value: int) -> None:
        """Set an attribute; only MAX_DYNAMIC_SHARED_SIZE_BYTES changes anything.

        Raises:
            LogicError: more shared memory than a block can have, or an attribute that cannot be set.
        """
        if attribute == function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES:
            if not 0 <= value <= SHARED_OPT_IN - self._attributes[function_attribute.SHARED_SIZE_BYTES]:
                raise LogicError("cuFuncSetAttribute failed: invalid argument")
            self._attributes[attribute] = value
        elif attribute != function_attribute.PREFERRED_SHARED_MEMORY_CARVEOUT:
            raise LogicError("cuFuncSetAttribute failed: invalid argument")

    def set_cache_config(self, config: object) -> None:
        """Do nothing: there is no cache."""

    def __getattr__(self, name: str) -> int:
        try:
            attribute = function_attribute[name.upper()]
        except KeyError:
            raise AttributeError(f"no attribute '{name}' in Function") from None
        return self.get_attribute(attribute)

    # -- launching -----------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> float | None:
        """Launch: ``kernel(*args, block=(x, y, z), grid=(x, y), shared=bytes, stream=None, time_kernel=False)``.

        Arguments are numpy scalars, device memory, GPUArrays, or In, Out and InOut of arrays. Returns the seconds of
        the launch with ``time_kernel=True``.

        Raises:
            ValueError: no block size, or an unknown keyword.
            TypeError: an argument of a type that has no fixed size, such as a Python number; sizes that are not ints.
            OverflowError: a negative size of the grid or of shared memory.
            LogicError: a launch that a card would refuse; arguments that do not fit the parameters.
            MemoryAccessError: the kernel accessed memory that it may not access.
            LaunchError: the kernel failed in another way.
        """
        grid = kwargs.pop("grid", (1, 1))
        stream = kwargs.pop("stream", None)
        block = kwargs.pop("block", None)
        shared = kwargs.pop("shared", 0)
        kwargs.pop("texrefs", [])
        time_kernel = kwargs.pop("time_kernel", False)
        if kwargs:
            raise ValueError(f"extra keyword arguments: {','.join(kwargs)}")
        if block is None:
            raise ValueError("must specify block size")
        _check_block(block)
        values = [_value(position, argument) for position, argument in enumerate(args)]
        handlers = [argument for argument in args if isinstance(argument, ArgumentHandler)]
        for handler in handlers:
            handler.pre_call(stream)
        if stream is not None and time_kernel:
            raise AssertionError("Can't time the kernel on an asynchronous invocation")  # as PyCUDA does
        start = time.perf_counter()
        self._launch(grid, block, values, shared)
        elapsed = time.perf_counter() - start
        for handler in handlers:
            handler.post_call(stream)
        return elapsed if time_kernel else None

    def prepare(self, arg_types: Iterable[Any], texrefs: object = None) -> Function:
        """Fix the types of the arguments: numpy types, struct's letters, or ``P`` for pointers."""
        self._arg_format = "".join(_letter(arg_type) for arg_type in arg_types)
        return self

    def _prepared(self, args: tuple[Any, ...]) -> list[_Value]:
        letters = _letters(self._arg_format)
        if len(letters) != len(args):
            raise struct.error(f"pack expected {len(letters)} items for packing (got {len(args)})")
        return [_Value(letter, _packed(letter, argument)) for letter, argument in zip(letters, args, strict=True)]

    def prepared_call(self, grid: tuple[int, ...], block: tuple[int, ...], *args: Any, **kwargs: Any) -> None:
        """Launch with arguments of the types given to ``prepare``."""
        _check_block(block)
        shared = kwargs.pop("shared_size", 0)
        if kwargs:
            raise TypeError(f"unknown keyword arguments: {', '.join(kwargs)}")
        self._launch(grid, block, self._prepared(args), shared)

    def prepared_async_call(
        self, grid: tuple[int, ...], block: tuple[int, ...], stream: Stream | None, *args: Any, **kwargs: Any
    ) -> None:
        """Launch as ``prepared_call``, in a stream."""
        self.prepared_call(grid, block, *args, **kwargs)

    def prepared_timed_call(
        self, grid: tuple[int, ...], block: tuple[int, ...], *args: Any, **kwargs: Any
    ) -> Callable[[], float]:
        """Launch as ``prepared_call``; return a function that returns the seconds of the launch."""
        start = time.perf_counter()
        self.prepared_call(grid, block, *args, **kwargs)
        elapsed = time.perf_counter() - start
        return lambda: elapsed

    def _launch(self, grid: Any, block: Any, values: list[_Value], shared: Any) -> None:
        if isinstance(grid, tuple) and len(grid) > 3:
            raise LogicError(
                "function::launch_kernel failed: invalid resource handle - too many grid dimensions in kernel launch"
            )
        _check_ints("grid", grid, (1, 2, 3), "a tuple of one to three ints")
        _check_ints("shared", (shared,), (1,), "an int")
        if shared < 0 or min(grid) < 0:
            raise OverflowError(f"can't convert negative value to unsigned int: grid={grid}, shared={shared}")
        grid += (1,) * (3 - len(grid))
        limit = self._attributes[function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES]
        if any(not 1 <= size <= most for size, most in zip(grid, MAX_GRID, strict=True)) or not 0 <= shared <= limit:
            raise LogicError("cuLaunchKernel failed: invalid argument")
        launching.run(Launch(self._kernel, self._fit(values), grid, block, shared), workers(), self._watched)

    def _fit(self, values: list[_Value]) -> bytes:
        """Return the argument buffer.

        Raises:
            LogicError: an argument does not fit its parameter.
        """
        kernel = self._kernel
        signature = f"{kernel.title}({', '.join(kernel.parameter_names)})"
        if len(values) != len(kernel.parameters):
            raise LogicError(
                f"cuLaunchKernel failed: invalid argument - {signature} takes {len(kernel.parameters)} "
                f"arguments, {len(values)} given"
            )
        buffer = bytearray(kernel.record.argument_bytes)
        for name, parameter, value in zip(kernel.parameter_names, kernel.parameters, values, strict=True):
            if not value.fits(parameter):
                raise LogicError(
                    f"cuLaunchKernel failed: invalid argument - parameter '{name}' of {signature} needs "
                    f"{_wanted(parameter)}, given {value}"
                )
            buffer[parameter.offset : parameter.offset + parameter.size] = value.data
        return bytes(buffer)


def _check_block(block: Any) -> None:
    """Raise TypeError unless ``block`` is a tuple of three ints, LogicError if no card could run it."""
    _check_ints("block", block, (3,), "a tuple of three ints")
    x, y, z = block
    too_large = any(not 1 <= size <= most for size, most in zip(block, MAX_BLOCK, strict=True))
    if too_large or x * y * z > MAX_THREADS_PER_BLOCK:
        raise LogicError("cuFuncSetBlockShape failed: invalid argument")


def _check_ints(name: str, sizes: Any, lengths: tuple[int, ...], wanted: str) -> None:
    """Raise TypeError for anything but a tuple of Python ints: PyCUDA refuses NumPy's integers, too."""
    if not isinstance(sizes, tuple) or len(sizes) not in lengths or not all(isinstance(size, int) for size in sizes):
        given = sizes[0] if wanted == "an int" else sizes
        raise TypeError(f"{name} must be {wanted}, got {given!r}")


def _letter(arg_type: Any) -> str:
    """Return struct's letter for a type that ``prepare`` is given."""
    if isinstance(arg_type, type) and issubclass(arg_type, np.number):
        return np.dtype(arg_type).char
    if isinstance(arg_type, np.dtype):
        return f"{arg_type.itemsize}s" if arg_type.char == "V" else arg_type.char
    return arg_type if isinstance(arg_type, str) else np.dtype(np.uintp).char


def _letters(arg_format: str) -> list[str]:
    """Return the single items of a struct format: ``"PPi8s"`` -> ``["P", "P", "i", "8s"]``."""
    letters, digits = [], ""
    for character in arg_format:
        if character.isdigit():
            digits += character
        elif character == "s":
            letters.append(digits + "s")
            digits = ""
        elif not character.isspace():
            letters.extend([character] * int(digits or 1))
            digits = ""
    return letters


def _packed(letter: str, argument: Any) -> bytes:
    if letter in ("F", "D"):
        return np.array(argument, letter).tobytes()
    if letter.endswith("s"):
        return struct.pack(letter, bytes(argument))
    return struct.pack(letter, float(argument) if letter in ("e", "f", "d") else int(argument))
