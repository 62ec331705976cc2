"""Time several calls beside each other, cheaply enough for hundreds of problems."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

CALLS, REPLAYS = 10, 5
GRAPH_US = 3000.0  # about how long a graph may take


def graph_samples(calls: Sequence[Callable[[], object]]) -> list[list[float]]:
    """Return the device's times for each of ``calls``, in microseconds, one for each replay of a CUDA graph.

    A graph makes up to CALLS calls in a row, so that the host's time does not count. Inputs that fit into the cache
    stay there, as in a network, where a layer reads what the layer before has just written. Replays of different calls
    take turns, so that a change of clocks meets all alike. Every call is made twice first, when it may compile, choose
    its algorithm and take memory.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no type hints for it
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graphs = [_captured(call, stream) for call in calls]
        # All replays are queued at once, so that the device does not wait for the host in between.
        events = [[_around(graph.replay) for graph, _ in graphs] for _ in range(REPLAYS + 1)]
        torch.cuda.synchronize()
    torch.cuda.current_stream().wait_stream(stream)
    return [
        [1000 * start.elapsed_time(end) / count for start, end in own[1:]]  # the first warms up
        for (_, count), own in zip(graphs, zip(*events, strict=True), strict=True)
    ]


def graph_microseconds(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Return the median of the samples of each call."""
    return [statistics.median(times) for times in graph_samples(calls)]


def _captured(call: Callable[[], object], stream: torch.cuda.Stream) -> tuple[torch.cuda.CUDAGraph, int]:
    """Return a graph of several calls, and their number."""
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    start, end = _around(call)
    torch.cuda.synchronize()
    count = max(1, min(CALLS, int(GRAPH_US / (1000 * start.elapsed_time(end)))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(count):
            call()
    return graph, count


def _around(call: Callable[[], object]) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    """Make the call; return the events before and after it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    call()
    end.record()
    return start, end
