"""The door to a device: PyCUDA's own objects where there is a GPU, the emulator's otherwise, under the same names.

    from fusedref.cuda import SourceModule, drv, gpuarray

``FUSEDREF_DEVICE=gpu`` or ``FUSEDREF_DEVICE=emulator`` decides it by hand. Nothing is touched before one of the names
is asked for: importing this module makes no context, so a process may still fork.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib.util
import os
import shutil
import sys
import threading
from pathlib import Path

__all__ = ["SourceModule", "device", "drv", "gpuarray"]

_thread = threading.local()


def _gpu_count() -> int:
    """How many devices libcuda sees; 0 where there is no libcuda. Makes no context."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def device() -> str:
    """``"gpu"`` or ``"emulator"``: what the names of this module belong to.

    Decided anew in every call, from ``FUSEDREF_DEVICE`` and, without it, from whether there is a GPU and PyCUDA.

    Raises:
        ValueError: ``FUSEDREF_DEVICE`` is neither.
        RuntimeError: ``FUSEDREF_DEVICE=gpu``, and there is no GPU or no PyCUDA.
    """
    wanted = os.environ.get("FUSEDREF_DEVICE", "")
    if wanted not in ("", "gpu", "emulator"):
        raise ValueError(f"FUSEDREF_DEVICE is {wanted!r}; it must be 'gpu' or 'emulator', or not set")
    if wanted == "emulator":
        return wanted
    has_pycuda = importlib.util.find_spec("pycuda") is not None
    if has_pycuda and _gpu_count():
        return "gpu"
    if wanted == "gpu":
        missing = "no GPU was found" if has_pycuda else "PyCUDA is not installed (pip install fusedref[gpu])"
        raise RuntimeError(f"FUSEDREF_DEVICE=gpu, but {missing}")
    return "emulator"


def find_nvcc() -> None:
    """Put nvcc on PATH, where PyCUDA looks for it, if CUDA_HOME or CUDA's compiler from PyPI has one."""
    if shutil.which("nvcc"):
        return
    places = [Path(home) / "bin" for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if home]
    places += [Path(entry) / "nvidia" / "cu13" / "bin" for entry in sys.path if entry]
    for place in places:
        if (place / "nvcc").is_file():
            os.environ["PATH"] = f"{place}{os.pathsep}{os.environ.get('PATH', '')}"
            return


def _make_current() -> None:
    """Make the primary context, which torch uses too, current in this thread; once per thread, undone at exit."""
    if getattr(_thread, "context", None) is not None:
        return
    from fusedref.cuda.context import primary

    number = 0
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        number = torch.cuda.current_device()
    context = primary(number)
    context.push()
    _thread.context = _Guard(context)
    if threading.current_thread() is threading.main_thread():
        atexit.register(_leave)


class _Guard:
    """Pops the context when the thread that pushed it ends: one that exits with a pushed context aborts the process."""

    def __init__(self, context: object):
        self._context = context

    def pop(self) -> None:
        if self._context is not None:
            self._context.pop()
            self._context = None

    __del__ = pop


def _leave() -> None:
    guard, _thread.context = getattr(_thread, "context", None), None
    if guard is not None:
        guard.pop()


def __getattr__(name: str) -> object:
    if name not in ("SourceModule", "drv", "gpuarray"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if device() == "gpu":
        find_nvcc()
        _make_current()
        import pycuda.compiler
        import pycuda.driver
        import pycuda.gpuarray

        return {"SourceModule": pycuda.compiler.SourceModule, "drv": pycuda.driver, "gpuarray": pycuda.gpuarray}[name]
    from fusedref import emulator

    return {"SourceModule": emulator.SourceModule, "drv": emulator.driver, "gpuarray": emulator.gpuarray}[name]
