"""Times of a call, on the device and on the host."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Inside, cuDNN multiplies in tf32 only where ``precision`` says so, and picks its algorithms by timing them."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=precision == "tf32"):
        yield


def samples(call: Callable[[], object], repeats: int = 30) -> list[float]:
    """Device times of ``call`` in microseconds, one for each of ``repeats`` calls after a warm-up.

    Before each call more than the L2 cache is overwritten. The device sleeps until all calls are queued: it waits for
    nothing that the host is late with.
    """
    flush = torch.empty(4 * torch.cuda.get_device_properties().L2_cache_size, dtype=torch.uint8, device="cuda")
    for _ in range(5):
        call()
    starts = [torch.cuda.Event(enable_timing=True) for _ in range(repeats)]
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(repeats)]
    for cycles in (2**24, 2**26, 2**28):  # from about 10 ms on
        torch.cuda.synchronize()
        torch.cuda._sleep(cycles)
        for start, end in zip(starts, ends):
            flush.zero_()
            start.record()
            call()
            end.record()
        queued_in_time = not starts[0].query()
        torch.cuda.synchronize()
        if queued_in_time:
            break
    return [1000 * start.elapsed_time(end) for start, end in zip(starts, ends)]


def host_samples(call: Callable[[], object], repeats: int = 30, calls: int = 100) -> list[float]:
    """Microseconds that the host spends on a call, each of ``repeats`` the mean of ``calls`` that follow each other."""
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        times.append(1e6 * (time.perf_counter() - begin) / calls)
    torch.cuda.synchronize()
    return times[1:]  # the first was the warm-up


def microseconds(call: Callable[[], object]) -> float:
    """The median of ``samples(call)``."""
    return statistics.median(samples(call))


def spread(times: list[float]) -> float:
    """From the first quartile to the third."""
    first, _, third = statistics.quantiles(times, n=4)
    return third - first
