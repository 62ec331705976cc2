"""One primary context per device, the one that torch uses, pushed around each call into the driver and popped after it.

Nothing is left pushed, so any thread may call, those of autograd included, and any thread may end.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@cache
def primary(index: int):
    """The retained primary context of CUDA device ``index``."""
    import pycuda.driver as drv

    drv.init()
    return kept(drv.Device(index).retain_primary_context())


def kept(thing):
    """``thing``, a context of PyCUDA's or what belongs to one, never to be freed.

    PyCUDA frees it only in the thread that made the context, and at the end of the process, in another, it would warn.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    return thing


@contextmanager
def pushed(index: int) -> Iterator[None]:
    """The primary context of CUDA device ``index`` is current inside the block."""
    context = primary(index)
    context.push()
    try:
        yield
    finally:
        context.pop()
