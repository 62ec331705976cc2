"""Show rows as tables and as a picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Table

from fusedref.bench.rows import FLOOR, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def fastest(rows: list[Row], precision: str, ours: bool) -> Row:
    """Return the fastest row of a precision: of this package's rows if ``ours``, else of the peers'."""
    found = [row for row in rows if row.precision == precision and row.name != FLOOR]
    return min((row for row in found if (row.name == "fusedref") == ours), key=lambda row: row.us)


def speedup(rows: list[Row]) -> float:
    """Return the fastest peer's time / ours in fp32: the geometric mean over the problems of the rows."""
    problems = {row.problem: [other for other in rows if other.problem == row.problem] for row in rows}
    ratios = [fastest(of_one, "fp32", False).us / fastest(of_one, "fp32", True).us for of_one in problems.values()]
    return geometric_mean(ratios)


def other_problems_table(rows: list[Row], card: str) -> Table:
    """Return a table with a line for each problem: the floor, and the fastest peer and ours in each precision."""
    result = Table(title=f"Other problems, microseconds on {card}")
    result.add_column("")
    for heading in ("floor", "best fp32 peer", "fusedref", "times", *[f"{p} peer, fusedref" for p in ("tf32", "fp16")]):
        result.add_column(heading, justify="right")
    for problem in dict.fromkeys(row.problem for row in rows):
        of_one = [row for row in rows if row.problem == problem]
        peer, mine = fastest(of_one, "fp32", False), fastest(of_one, "fp32", True)
        cells = [f"{mine.floor_us:.1f}", f"{peer.us:.1f}", f"{mine.us:.1f}", f"{peer.us / mine.us:.2f}"]
        for precision in ("tf32", "fp16"):
            cells.append(", ".join(f"{fastest(of_one, precision, ours).us:.1f}" for ours in (False, True)))
        result.add_row(problem, *cells)
    return result


def table(rows: list[Row], card: str) -> Table:
    """Return a table with a line for each row."""
    result = Table(title=f"{rows[0].problem}, {card}")
    for heading in ("", "precision", "layout"):
        result.add_column(heading)
    for heading in ("us", "+-", "x floor", "relative L2"):
        result.add_column(heading, justify="right")
    for row in rows:
        error = "" if row.relative_l2 is None else f"{row.relative_l2:.1e}"
        times = f"{row.us:.1f}", f"{row.us_spread:.1f}", f"{row.us / row.floor_us:.2f}"
        result.add_row(row.name, row.precision, row.layout, *times, error)
    return result


def training_table(rows: list[Row], card: str) -> Table:
    """Return a table with a line for each row of training, and how much memory the call takes."""
    result = Table(title=f"{rows[0].problem}, {card}")
    for heading in ("", "", "precision"):
        result.add_column(heading)
    for heading in ("us", "+-", "x floor", "relative L2", "peak MiB"):
        result.add_column(heading, justify="right")
    for number, row in enumerate(rows):
        error = "" if row.relative_l2 is None else f"{row.relative_l2:.1e}"
        peak = "" if row.peak_mib is None else f"{row.peak_mib:.0f}"
        times = f"{row.us:.1f}", f"{row.us_spread:.1f}", f"{row.us / row.floor_us:.2f}"
        following = rows[number + 1] if number + 1 < len(rows) else row
        result.add_row(
            row.mode, row.name, row.precision, *times, error, peak,
            end_section=(following.mode, following.precision) != (row.mode, row.precision),
        )  # fmt: skip
    return result


def training_speedups(rows: list[Row], peer: str) -> dict[str, float]:
    """Return, for each problem of the rows, the peer's time / ours."""
    times = {(row.problem, row.name): row.us for row in rows}
    return {problem: us / times[problem, "fusedref"] for (problem, name), us in times.items() if name == peer}


def other_problems_training_table(rows: list[Row], card: str) -> Table:
    """Return a table with a line for each problem: the floor, eager PyTorch, torch.compile, ours and the speed-ups."""
    result = Table(title=f"Other problems, {rows[0].mode}, {rows[0].precision}, microseconds on {card}")
    result.add_column("")
    names = [FLOOR, "eager PyTorch", "torch.compile", "fusedref"]
    for heading in (*names, "eager / ours", "compile / ours"):
        result.add_column(heading, justify="right")
    times = {(row.problem, row.name): row.us for row in rows}
    eager, compiled = (training_speedups(rows, peer) for peer in names[1:3])
    for problem in dict.fromkeys(row.problem for row in rows):
        cells = [f"{times[problem, name]:.1f}" for name in names]
        result.add_row(problem, *cells, f"{eager[problem]:.2f}", f"{compiled[problem]:.2f}")
    return result


def kernelbench_table(rows: list[Row], card: str) -> Table:
    """Return a table with a line for each mode and precision: eager's time, ours, the speed-up and the check."""
    result = Table(title=f"KernelBench's protocol, {rows[0].problem}, {card}")
    for heading in ("", "convolutions"):
        result.add_column(heading)
    for heading in ("eager us", "fusedref us", "speed-up", "within 1e-4"):
        result.add_column(heading, justify="right")
    found = {(row.mode, row.precision, row.name): row for row in rows}
    for mode, precision in dict.fromkeys((row.mode, row.precision) for row in rows):
        eager, ours = (found[mode, precision, name] for name in ("eager PyTorch", "fusedref"))
        times = f"{eager.us:.1f}", f"{ours.us:.1f}", f"{eager.us / ours.us:.2f}"
        result.add_row(mode.partition(", ")[2], precision, *times, "yes" if ours.passed else "NO")
    return result


def geometric_mean(ratios: Iterable[float]) -> float:
    """Return the geometric mean."""
    return math.exp(statistics.mean(map(math.log, ratios)))


def picture(rows: list[Row], card: str) -> Figure:
    """Draw a bar for each row, and the floor as a line for each element size."""
    from matplotlib.figure import Figure

    bars = [row for row in rows if row.name != FLOOR]
    figure = Figure(figsize=(9, 0.32 * len(bars) + 1.2), layout="constrained")
    axes = figure.subplots()
    colours = {"fp32": "tab:blue", "tf32": "tab:orange", "fp16": "tab:green", "bf16": "tab:olive"}
    names = [f"{row.name}, {row.precision}, {row.layout}" for row in bars]
    axes.barh(names, [row.us for row in bars], color=[colours[row.precision] for row in bars])
    for row in rows:
        if row.name == FLOOR:
            axes.axvline(row.us, color=colours[row.precision], linestyle="--", label=f"floor, {row.precision}")
    axes.invert_yaxis()
    axes.set_xlabel("microseconds (median)")
    axes.set_title(f"{rows[0].problem}, {card}")
    axes.legend()
    return figure
