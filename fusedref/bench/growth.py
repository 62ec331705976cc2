"""Measure how the cost grows around problem 73, one size at a time: less work must not take longer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table

from fusedref.bench.models import OURS, timed_rows
from fusedref.bench.problems import describe
from fusedref.bench.rows import Row
from fusedref.commandline import progress_bar
from fusedref.ops.inference import compile_inference
from fusedref.problem import KERNELBENCH_73, Problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODE = "growth: "  # the modes of rows begin so, and end with the size that grows


def _with(**sizes: Any) -> Problem:
    return dataclasses.replace(KERNELBENCH_73, **sizes)


# By the size that grows, the problem at each of its values. Images have as many pixels together at each size.
SERIES: dict[str, dict[int, Problem]] = {
    "batch": {n: _with(batch=n) for n in (1, 4, 16, 64, 128, 256, 512)},
    "image": {n: _with(batch=2 * 1024**2 // n**2, height=n, width=n) for n in (16, 32, 64, 128, 256, 512, 1024)},
    "in_channels": {n: _with(in_channels=n) for n in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)},
    "out_channels": {n: _with(out_channels=n) for n in (1, 4, 8, 16, 32, 64, 128, 256)},
    "kernel_size": {n: _with(kernel_size=n) for n in (1, 2, 3, 4, 5, 7, 9)},
}


def growth_rows() -> Iterator[Row]:
    """Yield a row for each value of each series, in fp32 and NCHW; show progress on a terminal."""
    device = torch.device("cuda", torch.cuda.current_device())
    work = [(size, problem) for size, problems in SERIES.items() for problem in problems.values()]
    with progress_bar() as progress, ThreadPoolExecutor() as pool:
        jobs = [pool.submit(compile_inference, problem, device) for _, problem in work]
        try:
            for (size, problem), job in progress.track(list(zip(work, jobs, strict=True)), description="timing"):
                job.result()
                yield from timed_rows(problem, MODE + size, "fp32", "NCHW", (OURS,))
        finally:
            pool.shutdown(cancel_futures=True)  # so that Ctrl-C or an error does not wait for the rest


def growth_table(rows: list[Row], card: str) -> Table:
    """Return a table with a line for each problem: time, times the floor, and the kernel of its plan."""
    result = Table(title=f"Growth around problem 73, fp32, {card}")
    result.add_column("")
    for heading in ("", "us", "floor", "x floor"):
        result.add_column(heading, justify="right")
    result.add_column("kernel")
    found = {(row.mode, row.problem): row for row in rows}
    for size, problems in SERIES.items():
        for value, problem in problems.items():
            row = found[MODE + size, describe(problem)]
            times = f"{row.us:.1f}", f"{row.floor_us:.1f}", f"{row.us / row.floor_us:.2f}"
            result.add_row(size, str(value), *times, row.kernel, end_section=value == max(problems))
    return result


def growth_picture(rows: list[Row], card: str) -> Figure:
    """Draw time and floor against each size, both on logarithmic axes."""
    from matplotlib.figure import Figure

    found = {(row.mode, row.problem): row for row in rows}
    figure = Figure(figsize=(3 * len(SERIES), 3.2), layout="constrained")
    for axes, (size, problems) in zip(figure.subplots(1, len(SERIES)), SERIES.items(), strict=True):
        own = [found[MODE + size, describe(problem)] for problem in problems.values()]
        axes.plot(list(problems), [row.us for row in own], marker="o", label="fusedref")
        axes.plot(list(problems), [row.floor_us for row in own], linestyle="--", color="black", label="floor")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(list(problems), labels=list(map(str, problems)), fontsize=7)
        axes.set_title(size)
    axes.legend()
    figure.supylabel("microseconds (median)")
    figure.suptitle(f"Growth around problem 73, fp32, {card}")
    return figure
