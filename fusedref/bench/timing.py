"""Time a call, on the device and on the host."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Let cuDNN multiply in tf32 only at precision "tf32", and choose its algorithms by timing them."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=precision == "tf32"):
        yield


def samples(call: Callable[[], object], repeats: int = 30) -> list[float]:
    """Return the device times of ``repeats`` calls in microseconds, after a warm-up.

    Before each call, more bytes than the L2 cache holds are overwritten. The device sleeps until all calls are queued,
    so that it never waits for the host.
    """
    flush = torch.empty(4 * torch.cuda.get_device_properties().L2_cache_size, dtype=torch.uint8, device="cuda")
    for _ in range(5):
        call()
    starts, ends = _events(repeats), _events(repeats)
    for cycles in (2**24, 2**26, 2**28):  # from about 10 ms on
        torch.cuda.synchronize()
        torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]  # torch has no type hints for it
        for start, end in zip(starts, ends, strict=True):
            flush.zero_()
            start.record()
            call()
            end.record()
        queued_in_time = not starts[0].query()  # type: ignore[no-untyped-call]  # the same
        torch.cuda.synchronize()
        if queued_in_time:
            break
    return [1000 * start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)]


def copy_samples(moved_bytes: int) -> list[float]:
    """Return the device times in microseconds of a copy that reads and writes ``moved_bytes`` altogether."""
    source = torch.empty(moved_bytes // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return samples(lambda: target.copy_(source))


def host_samples(call: Callable[[], object], repeats: int = 30, calls: int = 100) -> list[float]:
    """Return the host's time for a call in microseconds, ``repeats`` times, each the mean of ``calls`` in a row."""
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
    """Return the median of ``samples(call)``."""
    return statistics.median(samples(call))


def spread(times: list[float]) -> float:
    """Return the distance from the first quartile to the third."""
    first, _, third = statistics.quantiles(times, n=4)
    return third - first


def _events(count: int) -> list[torch.cuda.Event]:
    return [torch.cuda.Event(enable_timing=True) for _ in range(count)]  # type: ignore[no-untyped-call]  # the same
