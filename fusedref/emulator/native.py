"""The runtime library as Python sees it: loading, the structures it shares with kernels, launching."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from ctypes import POINTER, Structure, byref, c_char, c_char_p, c_int, c_uint8, c_uint32, c_uint64, c_void_p

from . import build

u32, u64 = c_uint32, c_uint64


class Parameter(Structure):
    _fields_ = [
        ("offset", u32),
        ("size", u32),
        ("element", u32),
        ("pointer", c_uint8),
        ("constant", c_uint8),
        ("floating", c_uint8),
        ("opaque", c_uint8),
    ]


class Kernel(Structure):
    pass


Kernel._fields_ = [
    ("next", POINTER(Kernel)),
    ("parameter_names", c_char_p),
    ("function", c_void_p),
    ("entry", c_void_p),
    ("parameters", POINTER(Parameter)),
    ("parameter_count", u32),
    ("argument_bytes", u32),
]


class Shared(Structure):
    pass


Shared._fields_ = [
    ("next", POINTER(Shared)),
    ("name", c_char_p),
    ("owner", c_char_p),
    ("size", u64),
    ("align", u64),
    ("element", u64),
    ("offset", u64),
    ("index", u32),
]


class Variable(Structure):
    pass


Variable._fields_ = [
    ("next", POINTER(Variable)),
    ("name", c_char_p),
    ("address", c_void_p),
    ("size", u64),
    ("element", u64),
    ("shadow", u64),
]


class Module(Structure):
    _fields_ = [
        ("kernels", POINTER(Kernel)),
        ("shared", POINTER(Shared)),
        ("variables", POINTER(Variable)),
        ("image_begin", c_void_p),
        ("image_end", c_void_p),
        ("shared_count", u32),
    ]


class Error(Structure):
    _fields_ = [
        ("kind", u32),
        ("write", u32),
        ("address", u64),
        ("bytes", u64),
        ("pc", u64),
        ("block", u32 * 3),
        ("thread", u32 * 3),
        ("worker", u32),
        ("text", c_char * 512),
    ]


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
                _declare(loaded)
                if not loaded.emu_init(memory_bytes()):
                    raise OSError("the emulator cannot reserve addresses for its device memory (4 GiB at least)")
                _library = loaded
    return _library


def _declare(lib: ctypes.CDLL) -> None:
    def declare(name: str, result: type | None, *arguments: type) -> None:
        function = getattr(lib, name)
        function.restype = result
        function.argtypes = arguments

    declare("emu_init", c_int, u64)
    declare("emu_alloc", u64, u64)
    declare("emu_free", c_int, u64)
    declare("emu_valid", c_int, u64, u64)
    declare("emu_allocation", c_int, u64, POINTER(u64))
    declare("emu_memory_used", u64)
    declare("emu_allocations", u64, POINTER(u64), u64)
    declare("emu_module_loaded", None, POINTER(Module))
    declare("emu_symbol", c_char_p, c_void_p)
    declare(
        "emu_launch",
        c_void_p,
        POINTER(Kernel),
        POINTER(Module),
        c_char_p,
        u64,
        POINTER(u32),
        POINTER(u32),
        u64,
        u32,
        u64,
        c_void_p,
    )
    declare("emu_wait", c_int, c_void_p, u32)
    declare("emu_cancel", None, c_void_p)
    declare("emu_error", POINTER(Error), c_void_p)
    declare("emu_release", None, c_void_p)
    declare("emu_shared_offset", u64, u64)
    declare("emu_mark", None, u64, u64)
    declare("emu_unwritten", u64, u64, u64, POINTER(u64))
    declare("emu_watch_new", c_void_p)
    declare("emu_watch_free", None, c_void_p)
    declare("emu_watch_reports", u32, c_void_p, c_void_p)
    declare("emu_watch_sites", u32, c_void_p, c_void_p, c_void_p, c_void_p)
    declare("emu_watch_barriers", u64, c_void_p)
    declare("emu_take_output", u64, c_char_p, u64)


def chain(head: object) -> list:
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
    out = (u64 * 2)()
    return (out[0], out[1]) if library().emu_allocation(address, out) else None


def live() -> list[tuple[int, int]]:
    """(address, bytes) of every allocation."""
    lib = library()
    room = 2 * lib.emu_allocations(None, 0)
    out = (u64 * max(room, 1))()
    lib.emu_allocations(out, room // 2)
    return [(out[i], out[i + 1]) for i in range(0, room, 2) if out[i]]


def launch(
    kernel: Kernel,
    module: Module,
    arguments: bytes,
    grid: tuple,
    block: tuple,
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
        (u32 * 3)(*grid),
        (u32 * 3)(*block),
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
