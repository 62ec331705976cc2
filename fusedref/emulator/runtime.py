"""The runtime library as Python sees it: loading, the structures it shares with kernels, launching."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from ctypes import byref, c_uint32, c_uint64
from typing import Any

from . import abi
from .abi import Error, Kernel, Module
from .compile import build

_lock = threading.Lock()
_library = None


def memory_bytes() -> int:
    """How much device memory the emulator offers: the machine's memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 8 << 30


def library() -> ctypes.CDLL:
    """The runtime, compiled and loaded at first use.

    Raises:
        build.NoCompiler: there is no C++ compiler.
        OSError: the library cannot be loaded, or there are no addresses left for the device's memory.
    """
    global _library
    if _library is None:
        with _lock:
            if _library is None:
                loaded = ctypes.CDLL(str(build.runtime()))
                abi.declare(loaded)
                if not loaded.emu_init(memory_bytes()):
                    raise OSError("the emulator cannot reserve addresses for its device memory (4 GiB at least)")
                _library = loaded
    return _library


def chain(head: Any) -> list[Any]:
    """The members of a linked list, in the order in which they were registered."""
    members = []
    while head:
        members.append(head.contents)
        head = head.contents.next
    return members[::-1]


def flush_output() -> None:
    """Pass on what kernels have printed, to Python's standard output."""
    buffer = ctypes.create_string_buffer(1 << 16)
    while taken := library().emu_take_output(buffer, len(buffer)):
        sys.stdout.write(buffer.raw[:taken].decode("utf-8", "replace"))


def allocation(address: int) -> tuple[int, int] | None:
    """(address, bytes) of the allocation that holds ``address``, or else of the last one before it."""
    out = (c_uint64 * 2)()
    return (out[0], out[1]) if library().emu_allocation(address, out) else None


def live() -> list[tuple[int, int]]:
    """(address, bytes) of every allocation."""
    lib = library()
    room = 2 * lib.emu_allocations(None, 0)
    out = (c_uint64 * max(room, 1))()
    lib.emu_allocations(out, room // 2)
    return [(out[i], out[i + 1]) for i in range(0, room, 2) if out[i]]


def launch(
    kernel: Kernel,
    module: Module,
    arguments: bytes,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    shared: int,
    workers: int,
    seed: int = 0,
    watch: int | None = None,
) -> Error | None:
    """Run a kernel to its end and give back what stopped it, if anything did. Ctrl-C ends it too."""
    lib = library()
    handle = lib.emu_launch(
        byref(kernel),
        byref(module),
        arguments,
        len(arguments),
        (c_uint32 * 3)(*grid),
        (c_uint32 * 3)(*block),
        shared,
        workers,
        seed,
        watch,
    )
    try:
        while not lib.emu_wait(handle, 50):  # between two waits Python looks for signals
            pass
    except BaseException:
        while not lib.emu_wait(handle, 20):
            lib.emu_cancel(handle)
        lib.emu_release(handle)
        raise
    error = Error.from_buffer_copy(lib.emu_error(handle).contents)
    lib.emu_release(handle)
    flush_output()
    return error if error.kind else None
