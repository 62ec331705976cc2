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
        times: list[list[float]] = [[] for _ in graphs]
        for replay in range(REPLAYS + 1):
            for (graph, count), own in zip(graphs, times, strict=True):
                us = _between(graph.replay) / count
                if replay:  # the first warms up
                    own.append(us)
    torch.cuda.current_stream().wait_stream(stream)
    return times


def graph_microseconds(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Return the median of the samples of each call."""
    return [statistics.median(times) for times in graph_samples(calls)]


def _captured(call: Callable[[], object], stream: torch.cuda.Stream) -> tuple[torch.cuda.CUDAGraph, int]:
    """Return a graph of several calls, and their number."""
    for _ in range(2):
        call()
    count = max(1, min(CALLS, int(GRAPH_US / _between(call))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(count):
            call()
    return graph, count


def _between(call: Callable[[], object]) -> float:
    """Return the microseconds between the events around one call."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(1000 * start.elapsed_time(end))
