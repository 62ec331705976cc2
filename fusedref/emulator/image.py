"""A kernel library in memory: its kernels, its variables, and the source line of every address in its code."""

from __future__ import annotations

import _ctypes
import ctypes
import struct
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from . import abi, runtime
from .lines import Lines, lines
from .names import function_name

_lock = threading.RLock()  # a finalizer may run while this thread holds it
_registered: dict[int, int] = {}  # address of a library's abi.Module -> how many LoadedImages have it open
_images: weakref.WeakSet[LoadedImage] = weakref.WeakSet()


@dataclass(frozen=True)
class Variable:
    """A ``__constant__`` or ``__device__`` variable: ``size`` bytes at ``address``, ``element`` bytes per element."""

    address: int
    size: int
    element: int


class LoadedImage:
    """A kernel library, loaded. It is unloaded when nothing refers to it any more.

    Attributes:
        path: the library's file.
        texts: file name -> text, of the source and of the user's headers.
        module: the record by which the runtime knows the library.
        kernels: symbol -> kernel.
        variables: name -> variable.
        shared: the ``__shared__`` variables.

    Raises:
        ValueError: its variables do not fit into the emulator's memory.
    """

    def __init__(self, path: Path, texts: dict[str, str]):
        self.path, self.texts = path, texts
        library = runtime.library()
        with _lock:
            loaded = ctypes.CDLL(str(path))
            address = ctypes.addressof(ctypes.c_char.in_dll(loaded, "emu_module"))
            self.module = abi.Module.from_address(address)
            if address not in _registered:
                try:
                    runtime.register(self.module)
                except ValueError:
                    _ctypes.dlclose(loaded._handle)
                    raise
            _registered[address] = _registered.get(address, 0) + 1
            weakref.finalize(self, _unload, loaded, address).atexit = False
            _images.add(self)
        self.shared: list[abi.Shared] = runtime.chain(self.module.shared)
        self.variables = {
            variable.name.decode(): Variable(variable.address, variable.size, max(variable.element, 1))
            for variable in runtime.chain(self.module.variables)
        }
        symbols = ((library.emu_symbol(kernel.function), kernel) for kernel in runtime.chain(self.module.kernels))
        self.kernels: dict[str, abi.Kernel] = {symbol.decode(): kernel for symbol, kernel in symbols if symbol}

    @cached_property
    def _lines(self) -> Lines:
        return lines(str(self.path))

    def line(self, pc: int) -> tuple[str, int] | None:
        """Return (file, line) of the source for a return address in this library; None for any other address."""
        if not pc or not self.module.image_begin <= pc < self.module.image_end:
            return None
        return self._lines.find(pc - self.module.image_begin)

    def static_shared(self, kernel: str) -> int:
        """Return how many bytes of shared memory the kernel declares."""
        total = 0
        for variable in self.shared:
            if variable.owner.decode() == kernel and variable.size:
                total = -(-total // variable.align) * variable.align + variable.size
        return total


def _unload(loaded: ctypes.CDLL, address: int) -> None:
    with _lock:
        _registered[address] -= 1
        if not _registered[address]:
            del _registered[address]
            runtime.unregister(abi.Module.from_address(address))
        _ctypes.dlclose(loaded._handle)


def in_loaded_variable(address: int, size: int) -> bool:
    """Return whether all of ``size`` bytes at ``address`` belong to a variable of a loaded library."""
    with _lock:
        images = list(_images)
    return any(
        variable.address <= address and address + size <= variable.address + variable.size
        for image in images
        for variable in image.variables.values()
    )


class LoadedKernel:
    """A kernel of a loaded library, which it keeps loaded.

    Attributes:
        name: the linker's name.
        title: the name for messages, such as ``twice<float>`` for ``_Z5twiceIfEvPT_i``.
        record: what the runtime knows of the kernel.
        parameters, parameter_names: in the order of the declaration.

    Raises:
        KeyError: the library has no such kernel.
    """

    def __init__(self, image: LoadedImage, name: str):
        self.image, self.name, self.record = image, name, image.kernels[name]
        self.title = function_name(name)
        self.parameters = [self.record.parameters[i] for i in range(self.record.parameter_count)]
        names = self.record.parameter_names.decode().split(",") if self.record.parameter_names else []
        if len(names) != len(self.parameters):
            names = [f"#{i}" for i in range(len(self.parameters))]
        self.parameter_names: list[str] = names

    @property
    def static_shared(self) -> int:
        """Bytes of shared memory that the kernel declares."""
        return self.image.static_shared(self.name)


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel, its packed arguments, the sizes of grid and block, bytes of dynamic shared memory."""

    kernel: LoadedKernel
    arguments: bytes
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int

    @property
    def blocks(self) -> int:
        """How many blocks the grid has."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    def pointers(self) -> Iterator[Pointer]:
        """Yield the pointers among the arguments."""
        for name, parameter in zip(self.kernel.parameter_names, self.kernel.parameters, strict=True):
            if parameter.pointer:
                address: int = struct.unpack_from("P", self.arguments, parameter.offset)[0]
                yield Pointer(name, address, max(parameter.element, 1), bool(parameter.constant))


@dataclass(frozen=True)
class Pointer:
    """A pointer argument: the parameter's name, the address, the size of an element, whether it is ``const``."""

    name: str
    address: int
    element: int
    constant: bool
