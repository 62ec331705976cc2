"""torch's current stream, and PyCUDA's twin of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from fusedref.cuda.context import keep


def _public_raw_stream(index: int) -> int:
    return int(torch.cuda.current_stream(index).cuda_stream)


# The handle of torch's current stream on a device. The private call takes a tenth of the public one's time.
raw_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", _public_raw_stream)


class Twin:
    """A PyCUDA stream that forks off a torch stream and joins it again.

    PyCUDA cannot launch into a torch stream, so each torch stream has a twin of its own. They cannot share one: when a
    stream is captured into a CUDA graph, its twin takes part in the capture.
    """

    def __init__(self, index: int) -> None:
        """Make the stream; the device's context must be current."""
        import pycuda.driver as drv

        non_blocking = 1  # as torch's streams are: not ordered with the default stream
        self.index = index
        self.stream = keep(drv.Stream(non_blocking))
        self.as_torch = torch.cuda.ExternalStream(self.stream.handle, device=index)  # type: ignore[no-untyped-call]  # torch's
        self.forked, self.joined = (torch.cuda.Event() for _ in range(2))  # type: ignore[no-untyped-call]  # torch's
        self.lock = threading.Lock()  # hold it from fork to join: the two events serve one user at a time

    def fork(self) -> Any:
        """Return the stream to launch into, ordered after the work in torch's current stream."""
        self.forked.record(torch.cuda.current_stream(self.index))
        self.as_torch.wait_event(self.forked)
        return self.stream

    def join(self) -> None:
        """Let torch's current stream wait for what was launched since ``fork``."""
        self.joined.record(self.as_torch)
        torch.cuda.current_stream(self.index).wait_event(self.joined)


_twins_lock = threading.Lock()


def twin_of(index: int, handle: int) -> Twin:
    """Return the twin of the torch stream with this ``handle`` on CUDA device ``index``."""
    with _twins_lock:  # else two threads could each make a twin
        return _make_twin(index, handle)


@cache
def _make_twin(index: int, handle: int) -> Twin:
    return Twin(index)
