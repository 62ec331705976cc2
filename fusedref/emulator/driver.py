"""The names of ``pycuda.driver``, for the emulator: memory, launches, events, and the errors as PyCUDA words them."""

from __future__ import annotations

import ctypes
import enum
import os
import struct
import time
import weakref
from typing import TYPE_CHECKING

import numpy as np

from . import abi, runtime, watching
from .findings import Finding

if TYPE_CHECKING:
    from .compiler import SourceModule

# --------------------------------------------------------------------------------------------------------------- errors


class Error(Exception):
    """Base of all errors of the driver."""


class MemoryError(Error):  # noqa: A001 - PyCUDA's name
    """Device memory is exhausted."""


class LogicError(Error):
    """The driver was asked for something that it refuses."""


class LaunchError(Error):
    """A kernel failed while it ran."""


class RuntimeError(Error):  # noqa: A001 - PyCUDA's name
    """The driver failed for a reason of its own."""


class CompileError(Error):
    """The source does not compile. ``msg``, ``command_line``, ``stdout`` and ``stderr`` as PyCUDA has them."""

    def __init__(self, msg: str, command_line: list[str], stdout: str | None = None, stderr: str | None = None):
        self.msg, self.command_line, self.stdout, self.stderr = msg, command_line, stdout, stderr

    def __str__(self) -> str:
        result = self.msg
        if self.command_line:
            result += f"\n[command: {' '.join(self.command_line)}]"
        if self.stdout:
            result += f"\n[stdout:\n{self.stdout}]"
        if self.stderr:
            result += f"\n[stderr:\n{self.stderr}]"
        return result


class FindingError(LogicError):
    """Something is wrong with a kernel. ``findings`` holds all that was found, ``finding`` the first of it."""

    def __init__(self, findings: list[Finding]):
        super().__init__("\n".join(finding.message for finding in findings))
        self.findings = findings
        self.finding = findings[0]


class MemoryAccessError(FindingError):
    """A kernel touched memory that is not its own. ``finding`` holds the details, field by field."""

    def __init__(self, finding: Finding):
        super().__init__([finding])


class DeadlockError(LaunchError):
    """The threads of a block wait for each other for ever. A card would hang."""


# --------------------------------------------------------------------------------------------------------------- limits

MAX_THREADS_PER_BLOCK = 1024
MAX_BLOCK = (1024, 1024, 64)
MAX_GRID = (2**31 - 1, 65535, 65535)
SHARED_DEFAULT = 48 << 10
SHARED_OPT_IN = 227 << 10
COMPUTE_CAPABILITY = (9, 0)


class function_attribute(enum.IntEnum):  # noqa: N801 - PyCUDA's name
    """What can be asked of a kernel, and set."""

    MAX_THREADS_PER_BLOCK = 0
    SHARED_SIZE_BYTES = 1
    CONST_SIZE_BYTES = 2
    LOCAL_SIZE_BYTES = 3
    NUM_REGS = 4
    PTX_VERSION = 5
    BINARY_VERSION = 6
    MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
    PREFERRED_SHARED_MEMORY_CARVEOUT = 9


class device_attribute(enum.IntEnum):  # noqa: N801 - PyCUDA's name
    """What can be asked of a device. Only what has a meaning on the emulator."""

    MAX_THREADS_PER_BLOCK = 1
    MAX_BLOCK_DIM_X = 2
    MAX_BLOCK_DIM_Y = 3
    MAX_BLOCK_DIM_Z = 4
    MAX_GRID_DIM_X = 5
    MAX_GRID_DIM_Y = 6
    MAX_GRID_DIM_Z = 7
    MAX_SHARED_MEMORY_PER_BLOCK = 8
    TOTAL_CONSTANT_MEMORY = 9
    WARP_SIZE = 10
    MULTIPROCESSOR_COUNT = 16
    COMPUTE_CAPABILITY_MAJOR = 75
    COMPUTE_CAPABILITY_MINOR = 76
    MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97


def workers() -> int:
    """How many blocks run at a time: one for each processor that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


_DEVICE_ATTRIBUTES = {
    device_attribute.MAX_THREADS_PER_BLOCK: MAX_THREADS_PER_BLOCK,
    device_attribute.MAX_BLOCK_DIM_X: MAX_BLOCK[0],
    device_attribute.MAX_BLOCK_DIM_Y: MAX_BLOCK[1],
    device_attribute.MAX_BLOCK_DIM_Z: MAX_BLOCK[2],
    device_attribute.MAX_GRID_DIM_X: MAX_GRID[0],
    device_attribute.MAX_GRID_DIM_Y: MAX_GRID[1],
    device_attribute.MAX_GRID_DIM_Z: MAX_GRID[2],
    device_attribute.MAX_SHARED_MEMORY_PER_BLOCK: SHARED_DEFAULT,
    device_attribute.TOTAL_CONSTANT_MEMORY: 64 << 10,
    device_attribute.WARP_SIZE: 32,
    device_attribute.COMPUTE_CAPABILITY_MAJOR: COMPUTE_CAPABILITY[0],
    device_attribute.COMPUTE_CAPABILITY_MINOR: COMPUTE_CAPABILITY[1],
    device_attribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: SHARED_OPT_IN,
}


class Device:
    """The emulated device."""

    def __init__(self, number: int = 0):
        if number != 0:
            raise LogicError("cuDeviceGet failed: invalid device ordinal")

    @staticmethod
    def count() -> int:
        return 1

    def name(self) -> str:
        return "fusedref emulator"

    def compute_capability(self) -> tuple[int, int]:
        return COMPUTE_CAPABILITY

    def total_memory(self) -> int:
        return runtime.memory_bytes()

    def get_attribute(self, attribute: device_attribute) -> int:
        if attribute == device_attribute.MULTIPROCESSOR_COUNT:
            return workers()
        return _DEVICE_ATTRIBUTES[attribute]

    def get_attributes(self) -> dict[device_attribute, int]:
        return {attribute: self.get_attribute(attribute) for attribute in device_attribute}

    def __getattr__(self, name: str) -> int:
        try:
            return self.get_attribute(device_attribute[name.upper()])
        except KeyError:
            raise AttributeError(name) from None


class Context:
    """The one context that there is. Launches are over when they return, so there is never anything to wait for."""

    @staticmethod
    def synchronize() -> None:
        """Wait for all that was launched: nothing, here."""

    @staticmethod
    def get_device() -> Device:
        return Device(0)


def init(flags: int = 0) -> None:
    """Nothing to do."""


def get_version() -> tuple[int, int, int]:
    """CUDA's version that the emulator stands for."""
    return (13, 0, 0)


def get_driver_version() -> int:
    """The same as one number: 1000 times the major version."""
    return 13000


# --------------------------------------------------------------------------------------------------------------- memory


def _free(address: int) -> None:
    watching.about_to_leave(address)
    runtime.library().emu_free(address)


class DeviceAllocation:
    """Device memory. ``int()`` gives its address; it is freed with the object, or by ``free()``."""

    def __init__(self, address: int, size: int):
        self._address = address
        self.size = size
        self._finalizer = weakref.finalize(self, _free, address)
        self._finalizer.atexit = False

    def free(self) -> None:
        if not self._finalizer.alive:
            raise LogicError("device_allocation::free failed: invalid resource handle")
        self._finalizer()

    def __int__(self) -> int:
        return self._address

    def __index__(self) -> int:
        return self._address

    def as_buffer(self, size: int, offset: int = 0) -> memoryview:
        return memoryview((ctypes.c_char * size).from_address(self._address + offset)).cast("B")


PooledDeviceAllocation = DeviceAllocation


def mem_alloc(size: int) -> DeviceAllocation:
    """Device memory of ``size`` bytes, filled with 0xFF: NaN as a float, -1 as an int.

    Raises:
        LogicError: ``size`` is not positive. MemoryError: there is not so much.
    """
    size = int(size)
    if size <= 0:
        raise LogicError("cuMemAlloc failed: invalid argument")
    address = runtime.library().emu_alloc(size)
    if not address:
        raise MemoryError("cuMemAlloc failed: out of memory")
    return DeviceAllocation(address, size)


def mem_alloc_like(array: np.ndarray) -> DeviceAllocation:
    """Device memory of the array's size; its contents are not copied."""
    return mem_alloc(array.nbytes)


def mem_get_info() -> tuple[int, int]:
    """(free bytes, all bytes) of device memory."""
    total = runtime.memory_bytes()
    return total - runtime.library().emu_memory_used(), total


def _contiguous(array: object, writable: bool) -> np.ndarray:
    """The bytes of an array or buffer, as PyCUDA takes them: contiguous, in either order."""
    if isinstance(array, np.generic):
        array = np.asarray(array)
    if not isinstance(array, np.ndarray):
        array = np.asarray(memoryview(array))
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        raise ValueError("ndarray is not contiguous")
    if writable and not array.flags.writeable:
        raise ValueError("ndarray is not writeable")
    return array


def _address_of(memory: object, size: int, call: str) -> int:
    """The address, once all of ``size`` bytes there are known to be device memory."""
    address = int(memory)
    if not (runtime.library().emu_valid(address, size) or _in_module(address, size)):
        raise LogicError(f"{call} failed: invalid argument")
    return address


_modules: weakref.WeakSet[SourceModule] = weakref.WeakSet()  # their variables are device memory too


def _in_module(address: int, size: int) -> bool:
    return any(
        begin <= address and address + size <= begin + room
        for module in list(_modules)
        for begin, room, _ in module._variables.values()
    )


def memcpy_htod(dest: object, src: object) -> None:
    """Copy an array, or any buffer, to the device."""
    src = _contiguous(src, False)
    if src.nbytes:
        address = _address_of(dest, src.nbytes, "cuMemcpyHtoD")
        ctypes.memmove(address, src.ctypes.data, src.nbytes)
        watching.host_wrote(address, src.nbytes)


def memcpy_dtoh(dest: object, src: object) -> None:
    """Copy from the device into an array, or any writable buffer."""
    dest = _contiguous(dest, True)
    if dest.nbytes:
        address = _address_of(src, dest.nbytes, "cuMemcpyDtoH")
        ctypes.memmove(dest.ctypes.data, address, dest.nbytes)
        watching.about_to_leave(address)


def memcpy_dtod(dest: object, src: object, size: int) -> None:
    """Copy ``size`` bytes within the device."""
    if size:
        address = _address_of(dest, size, "cuMemcpyDtoD")
        ctypes.memmove(address, _address_of(src, size, "cuMemcpyDtoD"), size)
        watching.host_wrote(address, size)


def memcpy_htod_async(dest: object, src: object, stream: Stream | None = None) -> None:
    """``memcpy_htod``: streams work at once here."""
    memcpy_htod(dest, src)


def memcpy_dtoh_async(dest: object, src: object, stream: Stream | None = None) -> None:
    """``memcpy_dtoh``: streams work at once here."""
    memcpy_dtoh(dest, src)


def memcpy_dtod_async(dest: object, src: object, size: int, stream: Stream | None = None) -> None:
    """``memcpy_dtod``: streams work at once here."""
    memcpy_dtod(dest, src, size)


def _memset(dest: object, value: int, count: int, dtype: type, call: str) -> None:
    address = _address_of(dest, count * np.dtype(dtype).itemsize, call)
    watching.host_wrote(address, count * np.dtype(dtype).itemsize)
    view = (ctypes.c_char * (count * np.dtype(dtype).itemsize)).from_address(address)
    np.frombuffer(view, dtype)[:] = np.array(int(value) & np.iinfo(dtype).max, dtype)


def memset_d8(dest: object, data: int, count: int) -> None:
    _memset(dest, data, count, np.uint8, "cuMemsetD8")


def memset_d16(dest: object, data: int, count: int) -> None:
    _memset(dest, data, count, np.uint16, "cuMemsetD16")


def memset_d32(dest: object, data: int, count: int) -> None:
    _memset(dest, data, count, np.uint32, "cuMemsetD32")


def memset_d8_async(dest: object, data: int, count: int, stream: Stream | None = None) -> None:
    memset_d8(dest, data, count)


def memset_d32_async(dest: object, data: int, count: int, stream: Stream | None = None) -> None:
    memset_d32(dest, data, count)


def to_device(array: np.ndarray) -> DeviceAllocation:
    """New device memory that holds a copy of ``array``."""
    result = mem_alloc_like(array)
    memcpy_htod(result, array)
    return result


def from_device(devptr: object, shape: tuple, dtype: object, order: str = "C") -> np.ndarray:
    """A new array, copied from the device."""
    result = np.empty(shape, dtype, order)
    memcpy_dtoh(result, devptr)
    return result


def from_device_like(devptr: object, other: np.ndarray) -> np.ndarray:
    result = np.empty_like(other)
    memcpy_dtoh(result, devptr)
    return result


def pagelocked_empty(shape: tuple, dtype: object, order: str = "C", mem_flags: int = 0) -> np.ndarray:
    return np.empty(shape, dtype, order)


def pagelocked_zeros(shape: tuple, dtype: object, order: str = "C", mem_flags: int = 0) -> np.ndarray:
    return np.zeros(shape, dtype, order)


def pagelocked_empty_like(array: np.ndarray, mem_flags: int = 0) -> np.ndarray:
    return np.empty_like(array)


def pagelocked_zeros_like(array: np.ndarray, mem_flags: int = 0) -> np.ndarray:
    return np.zeros_like(array)


# --------------------------------------------------------------------------------------------------- streams and events


class Stream:
    """A stream. What is put into it is done at once, which is an order that every stream allows."""

    def __init__(self, flags: int = 0):
        self.handle = 0

    def synchronize(self) -> None:
        """Wait for all that is in the stream: nothing, here."""

    def is_done(self) -> bool:
        return True

    def wait_for_event(self, event: Event) -> None:
        """Wait for the event: it has happened."""


class Event:
    """A moment. Times between two are the emulator's own and say nothing of a card."""

    def __init__(self, flags: int = 0):
        self._moment: float | None = None

    def record(self, stream: Stream | None = None) -> Event:
        self._moment = time.perf_counter()
        return self

    def synchronize(self) -> Event:
        return self

    def query(self) -> bool:
        return True

    def time_since(self, event: Event) -> float:
        """Milliseconds from ``event`` to this one."""
        if self._moment is None or event._moment is None:
            raise LogicError("cuEventElapsedTime failed: invalid resource handle")
        return (self._moment - event._moment) * 1e3

    def time_till(self, event: Event) -> float:
        """Milliseconds from this event to ``event``."""
        return event.time_since(self)


# ------------------------------------------------------------------------------------------------------------ arguments


class ArgumentHandler:
    """An array that is copied to the device for a launch, or back after it, or both."""

    def __init__(self, ary: np.ndarray):
        self.array = ary
        self.dev_alloc: DeviceAllocation | None = None

    def get_device_alloc(self) -> DeviceAllocation:
        if self.dev_alloc is None:
            try:
                self.dev_alloc = mem_alloc_like(self.array)
            except AttributeError:
                raise TypeError(
                    f"could not determine array length of '{type(self.array)}': unsupported array type or not an array"
                ) from None
        return self.dev_alloc

    def pre_call(self, stream: Stream | None) -> None:
        """Before the launch."""


class In(ArgumentHandler):
    """An array to copy to the device before the launch."""

    def pre_call(self, stream: Stream | None) -> None:
        memcpy_htod(self.get_device_alloc(), self.array)


class Out(ArgumentHandler):
    """An array to copy back from the device after the launch."""

    def post_call(self, stream: Stream | None) -> None:
        memcpy_dtoh(self.array, self.get_device_alloc())


class InOut(In, Out):
    """An array to copy to the device and back."""


def _pack(args: tuple) -> tuple[list[ArgumentHandler], list[tuple[str, int, bytes]]]:
    """(handlers, [(kind, size, bytes)]) of the arguments of a call; kind is a struct letter, ``P`` for a pointer."""
    handlers, values = [], []
    for i, arg in enumerate(args):
        if isinstance(arg, np.number):
            values.append((arg.dtype.char, arg.dtype.itemsize, arg.tobytes()))
        elif isinstance(arg, DeviceAllocation):
            values.append(("P", 8, struct.pack("P", int(arg))))
        elif isinstance(arg, ArgumentHandler):
            handlers.append(arg)
            values.append(("P", 8, struct.pack("P", int(arg.get_device_alloc()))))
        elif isinstance(arg, (np.ndarray, np.void)):
            values.append(("s", arg.nbytes, arg.tobytes()))
        else:
            interface = getattr(arg, "__cuda_array_interface__", None)
            if interface:
                values.append(("P", 8, struct.pack("P", interface["data"][0])))
                continue
            try:
                address = int(np.uintp(arg.gpudata))
            except AttributeError:
                raise TypeError(f"invalid type on parameter #{i} (0-based)") from None
            values.append(("P", 8, struct.pack("P", address)))
    return handlers, values


_FLOATING = "efd"


class Function:
    """A kernel, ready to be launched. Made by ``SourceModule.get_function``."""

    def __init__(self, module: SourceModule, kernel: abi.Kernel, name: str):
        self._module, self._kernel, self.name = module, kernel, name
        self.parameters = [kernel.parameters[i] for i in range(kernel.parameter_count)]
        names = kernel.parameter_names.decode().split(",") if kernel.parameter_names else []
        self.parameter_names = (
            names if len(names) == len(self.parameters) else [f"#{i}" for i in range(len(self.parameters))]
        )
        self._attributes = {
            function_attribute.MAX_THREADS_PER_BLOCK: MAX_THREADS_PER_BLOCK,
            function_attribute.SHARED_SIZE_BYTES: module._static_shared(name),
            function_attribute.CONST_SIZE_BYTES: 0,
            function_attribute.LOCAL_SIZE_BYTES: 0,
            function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES: SHARED_DEFAULT - module._static_shared(name),
        }

    def get_attribute(self, attribute: function_attribute) -> int:
        """What the attribute is. Registers and the like, which only a card has, raise LogicError."""
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
        """Nothing to prefer: there is no cache."""

    def __getattr__(self, name: str) -> int:
        try:
            attribute = function_attribute[name.upper()]
        except KeyError:
            raise AttributeError(f"no attribute '{name}' in Function") from None
        return self.get_attribute(attribute)

    # -- launching -----------------------------------------------------------------------------------------------------

    def __call__(self, *args: object, **kwargs: object) -> float | None:
        """Launch: ``kernel(*args, block=(x, y, z), grid=(x, y), shared=bytes, stream=None, time_kernel=False)``.

        Arguments are numpy scalars, device memory, GPUArrays, or In, Out and InOut of arrays. Gives back the seconds
        that it took with ``time_kernel=True``.

        Raises:
            ValueError: no block size, or a keyword that is unknown.
            TypeError: an argument of a type that has no fixed size, such as a Python number; sizes that are no ints.
            OverflowError: a negative size of the grid or of shared memory.
            LogicError: a launch that the card would refuse; arguments that do not fit the parameters.
            MemoryAccessError: the kernel touched memory that is not its own.
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
        self._set_block_shape(block)
        handlers, values = _pack(args)
        for handler in handlers:
            handler.pre_call(stream)
        if stream is not None:
            assert not time_kernel, "Can't time the kernel on an asynchronous invocation"
        start = time.perf_counter()
        self._launch(grid, block, values, shared)
        elapsed = time.perf_counter() - start
        for handler in handlers:
            if hasattr(handler, "post_call"):
                handler.post_call(stream)
        return elapsed if time_kernel else None

    def prepare(self, arg_types: object, texrefs: object = None) -> Function:
        """Fix the types of the arguments: numpy types, struct letters, or ``P`` for pointers."""
        self.arg_format = ""
        for arg_type in arg_types:
            if isinstance(arg_type, type) and issubclass(arg_type, np.number):
                self.arg_format += np.dtype(arg_type).char
            elif isinstance(arg_type, np.dtype):
                self.arg_format += f"{arg_type.itemsize}s" if arg_type.char == "V" else arg_type.char
            elif isinstance(arg_type, str):
                self.arg_format += arg_type
            else:
                self.arg_format += np.dtype(np.uintp).char
        return self

    def _prepared(self, args: tuple) -> list[tuple[str, int, bytes]]:
        letters = _letters(self.arg_format)
        if len(letters) != len(args):
            raise struct.error(f"pack expected {len(letters)} items for packing (got {len(args)})")
        values = []
        for letter, arg in zip(letters, args):
            if letter in "FD":
                data = np.array(arg, letter).tobytes()
            elif letter[-1] == "s":
                data = struct.pack(letter, bytes(arg))
            elif letter in "efd":
                data = struct.pack(letter, float(arg))
            else:
                data = struct.pack(letter, int(arg))
            values.append((letter, len(data), data))
        return values

    def prepared_call(self, grid: tuple, block: tuple, *args: object, **kwargs: object) -> None:
        """Launch with arguments of the types given to ``prepare``."""
        self._set_block_shape(block)
        shared = kwargs.pop("shared_size", 0)
        if kwargs:
            raise TypeError(f"unknown keyword arguments: {', '.join(kwargs)}")
        self._launch(grid, block, self._prepared(args), shared)

    def prepared_async_call(
        self, grid: tuple, block: tuple, stream: Stream | None, *args: object, **kwargs: object
    ) -> None:
        """As ``prepared_call``, in a stream."""
        self.prepared_call(grid, block, *args, **kwargs)

    def prepared_timed_call(self, grid: tuple, block: tuple, *args: object, **kwargs: object) -> object:
        """As ``prepared_call``; gives back a function that gives the seconds that it took."""
        start = time.perf_counter()
        self.prepared_call(grid, block, *args, **kwargs)
        elapsed = time.perf_counter() - start
        return lambda: elapsed

    @staticmethod
    def _set_block_shape(block: tuple) -> None:
        _whole("block", block, (3,), "a tuple of three ints")
        x, y, z = block
        if any(not 1 <= size <= most for size, most in zip(block, MAX_BLOCK)) or x * y * z > MAX_THREADS_PER_BLOCK:
            raise LogicError("cuFuncSetBlockShape failed: invalid argument")

    def _launch(self, grid: tuple, block: tuple, values: list[tuple[str, int, bytes]], shared: int) -> None:
        if isinstance(grid, tuple) and len(grid) > 3:
            raise LogicError(
                "function::launch_kernel failed: invalid resource handle - too many grid dimensions in kernel launch"
            )
        _whole("grid", grid, (1, 2, 3), "a tuple of one to three ints")
        _whole("shared", (shared,), (1,), "an int")
        if shared < 0 or min(grid) < 0:
            raise OverflowError(f"can't convert negative value to unsigned int: grid={grid}, shared={shared}")
        grid += (1,) * (3 - len(grid))
        limit = self._attributes[function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES]
        if any(not 1 <= size <= most for size, most in zip(grid, MAX_GRID)) or not 0 <= shared <= limit:
            raise LogicError("cuLaunchKernel failed: invalid argument")
        arguments = self._fit(values)
        from . import launching

        launching.launch(self, arguments, grid, block, shared, workers())

    def _fit(self, values: list[tuple[str, int, bytes]]) -> bytes:
        """The argument buffer, once every argument is known to fit its parameter."""
        signature = f"{self.name}({', '.join(self.parameter_names)})"
        if len(values) != len(self.parameters):
            raise LogicError(
                f"cuLaunchKernel failed: invalid argument - {signature} takes {len(self.parameters)} "
                f"arguments, {len(values)} given"
            )
        buffer = bytearray(self._kernel.argument_bytes)
        for name, parameter, (kind, size, data) in zip(self.parameter_names, self.parameters, values):
            wanted = (
                "a pointer"
                if parameter.pointer
                else f"a floating-point number of {parameter.size} bytes"
                if parameter.floating
                else f"{parameter.size} bytes"
                if parameter.opaque
                else f"an integer of {parameter.size} bytes"
            )
            given = (
                "a pointer"
                if kind == "P"
                else f"a floating-point number of {size} bytes"
                if kind in _FLOATING
                else f"{size} bytes"
                if kind[-1] == "s"
                else f"an integer of {size} bytes"
            )
            fits = size == parameter.size
            if kind in _FLOATING:
                fits = fits and (parameter.floating or parameter.opaque) and not parameter.pointer
            elif kind[-1] != "s":
                fits = fits and not parameter.floating and (kind != "P" or parameter.pointer or parameter.size == 8)
            if not fits:
                raise LogicError(
                    f"cuLaunchKernel failed: invalid argument - parameter '{name}' of {signature} needs "
                    f"{wanted}, given {given}"
                )
            buffer[parameter.offset : parameter.offset + size] = data
        return bytes(buffer)


def _whole(name: str, sizes: object, lengths: tuple, wanted: str) -> None:
    """Refuse what PyCUDA refuses: anything but a tuple of Python's own ints. A numpy integer is none."""
    if not isinstance(sizes, tuple) or len(sizes) not in lengths or not all(isinstance(size, int) for size in sizes):
        given = sizes[0] if wanted == "an int" else sizes
        raise TypeError(f"{name} must be {wanted}, got {given!r}")


def _letters(arg_format: str) -> list[str]:
    """The struct format's single items: ``"PPi8s"`` -> ``["P", "P", "i", "8s"]``."""
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
