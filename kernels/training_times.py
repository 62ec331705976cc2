"""Time the rungs of training mode beside PyTorch, and show them as a table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor

from fusedref import bench
from fusedref.bench.rows import FLOOR, Row
from fusedref.bench.timing import spread
from fusedref.bench.training import FORWARD, WHOLE, Work, floor_row, measure_step
from fusedref.problem import KERNELBENCH_73
from fusedref.validation import Report
from kernels import ladder, training
from kernels.ladder import Rung
from kernels.training import TRAINING, Training

STEPS = {"train": FORWARD, "backward": WHOLE}  # what is timed for a rung of this mode
PEERS = "eager PyTorch", "torch.compile"


def measure() -> Iterator[Row]:
    """Time the floors, every rung, its parts and the peers, at problem 73 on the current GPU, in one run.

    A rung of mode "backward" is timed with its forward pass, as the peers are.
    """
    for mode, step in STEPS.items():
        floor = floor_row(step, KERNELBENCH_73, "fp32")
        yield floor
        work = Work(step, KERNELBENCH_73, "fp32")
        with bench.arithmetic("fp32"), torch.no_grad():
            for name, call in calls(mode, Training(*work.inputs), work.dy):
                result = call()
                error = work.error(result) if isinstance(result, dict) else None
                del result
                peak, times = bench.peak_bytes(call) / 2**20, bench.samples(call)
                us = statistics.median(times)
                what = bench.describe(KERNELBENCH_73)
                yield Row(name, step.mode, "fp32", "NCHW", what, us, spread(times), error, floor.us, peak)
        for name in PEERS:
            yield measure_step(name, work, floor.us)


def calls(mode: str, given: Training, dy: Tensor | None) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the calls to time of a mode: of each rung, which return y and the gradients by name, and of its parts."""
    for rung in TRAINING:
        if rung.mode == mode:
            yield rung.title, partial(_results, rung, given, dy)
    if dy is None:
        z = ladder.library_convolution(given.x, given.weight, given.bias)
        statistics_of_z = training.batch_statistics(z)
        yield "11 batch_statistics: the statistics of z", lambda: training.batch_statistics(z)
        yield "11 batch_statistics: a sum over z by torch", lambda: z.sum()
        yield "12 training: the statistics by a convolution", lambda: training.conv_statistics(given)
        yield "12 moments: the moments", lambda: training.moments(given)
        yield "12 training: the finished kernel", lambda: training.normalise(given, *statistics_of_z)
    else:
        patches = training.moments(given)
        _, var = training.statistics_of_moments(given, patches)
        yield "13 backward: after forward", lambda: training.backward(dy, given, patches, var)


def _results(rung: Rung, given: Training, dy: Tensor | None) -> dict[str, Tensor | None]:
    """Call the rung; with dy, its forward pass and its backward pass."""
    if dy is None:
        return {"y": rung.candidate(*given)}
    y, found = training.forward_and_backward(dy, given)
    return {"y": y, **{f"d{name}": gradient for name, gradient in found._asdict().items()}}


def training_rows(rows: list[Row]) -> list[Row]:
    """Select the rows that the table shows: of each mode the floor, the peers and the rungs, in this order."""
    found = {(row.name, row.mode): row for row in rows if row.problem == bench.describe(KERNELBENCH_73)}
    keys = [
        (name, step.mode)
        for mode, step in STEPS.items()
        for name in (FLOOR, *PEERS, *[rung.title for rung in TRAINING if rung.mode == mode])
    ]
    return [found[key] for key in keys if key in found]


def table(reports: list[tuple[Rung, Report]], rows: list[Row], where: str) -> Table:
    """Return a table with a line for every rung of training mode, and for every peer that has a time."""
    result = Table(title=f"Training at {bench.describe(KERNELBENCH_73)}, {where}", box=box.SIMPLE_HEAD)
    for heading in ("rung", "mode", "validated"):
        result.add_column(heading, no_wrap=True)
    for heading in ("launches", "MB moved", "x floor", *(("us", "x eager", "of the floor") if rows else ())):
        result.add_column(heading, justify="right")
    for mode, step in STEPS.items():
        timed = {row.name: row for row in rows if row.mode == step.mode}
        for name in PEERS:
            if name in timed:
                result.add_row(name, step.mode, "", "", "", "", *_figures(timed[name], timed))
        for rung, report in reports:
            if rung.mode == mode:
                moved, floor = rung.bytes_moved(KERNELBENCH_73), step.floor_bytes(KERNELBENCH_73)
                times = _figures(timed[rung.title], timed) if rung.title in timed else ()
                validated = "[green]yes[/]" if report.ok else "[red]no[/]"
                figures = str(rung.launches), f"{moved / 1e6:.2f}", f"{moved / floor:.2f}"
                result.add_row(rung.title, step.mode, validated, *figures, *times)
    return result


def _figures(row: Row, timed: dict[str, Row]) -> tuple[str, str, str]:
    """Return microseconds, the speed relative to eager, and the floor's share of the time, as text."""
    return f"{row.us:.0f}", f"{timed['eager PyTorch'].us / row.us:.2f}", f"{row.floor_us / row.us:.0%}"
