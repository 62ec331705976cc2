"""End a check that does not end by itself."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SECONDS = 15.0  # of the process's processor time, so that a busy machine and the compiler do not count


class TooLong(BaseException):
    """A check took longer than its limit. No ``except Exception`` on the way swallows it."""


@contextmanager
def time_limit(seconds: float | None = None) -> Iterator[None]:
    """Raise TooLong inside the block after so many seconds of this process's processor time; default: SECONDS.

    It ends Python code and kernels on the emulator. Outside the main thread, and without POSIX timers, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def expire(number: int, frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGPROF, expire)
    signal.setitimer(signal.ITIMER_PROF, SECONDS if seconds is None else seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
