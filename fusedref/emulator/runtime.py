"""Load the runtime library and call it: device memory, modules and launches."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import warnings
from ctypes import byref, c_uint32, c_uint64, c_void_p
from typing import Any

from . import abi
from .abi import Error, Kernel, Module
from .compile import build

_Three = c_uint32 * 3
_lock = threading.Lock()
_library: ctypes.CDLL | None = None
_run: Any = None


def memory_bytes() -> int:
    """Return how much device memory the emulator offers: the machine's memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 8 << 30


def library() -> ctypes.CDLL:
    """Return the runtime, compiled and loaded at first use.

    Raises:
        build.NoCompiler: there is no C++ compiler.
        OSError: the library cannot be loaded, or too few addresses are left for the device's memory.
    """
    if _library is None:
        with _lock:
            if _library is None:
                _load()
    assert _library is not None
    return _library


def _load() -> None:
    global _library, _run
    path = str(build.runtime())
    loaded = ctypes.CDLL(path)
    abi.declare(loaded)
    python = ctypes.pythonapi
    needed = (python.PyEval_SaveThread, python.PyEval_RestoreThread, python.PyErr_CheckSignals)
    loaded.emu_python(*(ctypes.cast(function, c_void_p) for function in needed))
    if not loaded.emu_init(memory_bytes()):
        raise OSError("the emulator cannot reserve addresses for its device memory (4 GiB at least)")
    run = ctypes.PyDLL(path).emu_run  # keeps the GIL: the runtime releases it itself, and checks for signals
    run.restype, run.argtypes = loaded.emu_run.restype, loaded.emu_run.argtypes
    _run, _library = run, loaded


def chain(head: Any) -> list[Any]:
    """Return the members of a linked list, in the order in which they were registered."""
    members = []
    while head:
        members.append(head.contents)
        head = head.contents.next
    return members[::-1]


def register(module: Module) -> None:
    """Run a loaded module's constructors; place its shared memory and its variables.

    Raises:
        ValueError: the module's variables do not fit, or the constructor of one fails.
        KeyboardInterrupt: a constructor did not end before Ctrl-C.
    """
    try:
        _construct(module)
        status = library().emu_module_loaded(module)
        if status == abi.SHARED_TOO_LARGE:
            largest = max(chain(module.shared), key=lambda variable: int(variable.size))
            raise ValueError(
                f"the __shared__ variables of the module need too much memory: {largest.name.decode()} in "
                f"{largest.owner.decode()} has {largest.size} bytes"
            )
        if status == abi.VARIABLES_TOO_LARGE:
            raise ValueError("the loaded modules' __constant__ and __device__ variables need more than 1 GiB")
    except BaseException:
        module.image_begin = 0  # not registered
        raise


def _construct(module: Module) -> None:
    kernel = Kernel()
    waiting = library().emu_module_constructors(module, kernel)
    try:
        error = launch(kernel, module, b"", (1, 1, 1), (1, 1, 1), 0, 1) if waiting > 0 else None
    except BaseException:
        module.constructors_end = None  # they never finish
        raise
    if error or waiting < 0:
        module.constructors_end = None
        reason = error.text.decode() if error and error.text else "it does not return"
        raise ValueError(f"the constructor of a global variable fails: {reason}")


def unregister(module: Module) -> None:
    """Undo ``register``. Call it before the module's library is closed."""
    library().emu_module_unloaded(module)


def allocation(address: int) -> tuple[int, int] | None:
    """Return (address, bytes) of the allocation that holds ``address``, or of the last one before it."""
    out = (c_uint64 * 2)()
    return (out[0], out[1]) if library().emu_allocation(address, out) else None


def live() -> list[tuple[int, int]]:
    """Return (address, bytes) of every allocation."""
    lib = library()
    room = 2 * lib.emu_allocations(None, 0)
    out = (c_uint64 * max(room, 1))()
    lib.emu_allocations(out, room // 2)
    return [(out[i], out[i + 1]) for i in range(0, room, 2) if out[i]]


class Watch:
    """What a watched launch records. It is freed with the object."""

    def __init__(self) -> None:
        """Reserve its memory.

        Raises:
            OSError: there are no addresses left for it.
        """
        self.handle = c_void_p()
        library().emu_watch_new(byref(self.handle))
        if not self.handle:
            raise OSError("the emulator cannot reserve addresses for its record of memory accesses")

    def __del__(self) -> None:
        library().emu_watch_free(byref(self.handle))


class _Outcome(abi.Outcome):
    def __del__(self) -> None:
        if self.output:
            library().emu_outcome_free(self)

    def show(self) -> None:
        """Write what the kernel printed to Python's standard output."""
        if self.output:
            sys.stdout.write(ctypes.string_at(self.output, self.output_bytes).decode("utf-8", "replace"))
        if self.output_lost:
            warnings.warn(
                f"a kernel printed more than the {abi.OUTPUT_BYTES} bytes that the device keeps of a launch: "
                f"the first {self.output_lost} bytes were overwritten",
                RuntimeWarning,
                stacklevel=2,
            )


def _ends_at_ctrl_c() -> bool:
    """Return whether Ctrl-C must end this thread's launches: Python interrupts its main thread only."""
    return (
        threading.current_thread() is not threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )


def launch(
    kernel: Kernel,
    module: Module,
    arguments: bytes,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    shared: int,
    workers: int,
    seed: int = 0,
    watch: Watch | None = None,
) -> Error | None:
    """Run a kernel to its end; return the failure that stopped it, or None.

    Raises:
        KeyboardInterrupt: Ctrl-C, in whichever thread the launch waits. The kernel has ended then.
    """
    library()
    outcome = _Outcome()
    try:
        ended = _run(
            kernel,
            module,
            arguments,
            len(arguments),
            _Three(*grid),
            _Three(*block),
            shared,
            workers,
            seed,
            watch.handle if watch else None,
            _ends_at_ctrl_c(),
            outcome,
        )
    finally:
        outcome.show()
    if not ended:
        raise KeyboardInterrupt
    error: Error = outcome.error
    return error if error.kind else None
