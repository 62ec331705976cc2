"""One primary context per device, the one that torch uses, pushed around each call into the driver and popped after it.

Nothing is left pushed, so any thread may call, autograd's included, and any thread may end.
"""

from __future__ import annotations

import atexit
import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")
_thread = threading.local()


@cache
def primary(index: int) -> Any:
    """Return the retained primary context of CUDA device ``index``."""
    import pycuda.driver as drv

    drv.init()
    return keep(drv.Device(index).retain_primary_context())


@cache
def bandwidth(index: int) -> float:
    """Return the bytes a second that the memory of CUDA device ``index`` transfers, twice in each cycle."""
    import pycuda.driver as drv

    drv.init()
    device, attribute = drv.Device(index), drv.device_attribute
    kilohertz, bits = attribute.MEMORY_CLOCK_RATE, attribute.GLOBAL_MEMORY_BUS_WIDTH
    return float(2000 * device.get_attribute(kilohertz) * device.get_attribute(bits) / 8)


def keep(thing: T) -> T:
    """Return ``thing``, an object of PyCUDA's, which is then never freed.

    PyCUDA frees it only in the thread that made its context; at the end of the process, in another, it would warn.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    return thing


def release(thing: object) -> None:
    """Undo one ``keep``."""
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(thing))


@contextmanager
def pushed(index: int) -> Iterator[None]:
    """Make the primary context of CUDA device ``index`` current inside the block."""
    context = primary(index)
    context.push()
    try:
        yield
    finally:
        context.pop()


def make_current() -> None:
    """Make the primary context, which torch uses too, current in this thread until the thread or the process ends."""
    if getattr(_thread, "context", None) is not None:
        return
    index = 0
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        index = torch.cuda.current_device()
    context = primary(index)
    context.push()
    _thread.context = _Guard(context)
    if threading.current_thread() is threading.main_thread():
        atexit.register(_leave)


class _Guard:
    """Pops the context when the thread that pushed it ends: one that exits with a pushed context aborts the process."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def pop(self) -> None:
        """Pop the context, unless that was done before."""
        if self._context is not None:
            self._context.pop()
            self._context = None

    __del__ = pop


def _leave() -> None:
    guard, _thread.context = getattr(_thread, "context", None), None
    if guard is not None:
        guard.pop()
