"""Show how fast ours is at the convolutions of well-known models, as a table by kind and as sorted bars."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rich.table import Table

from fusedref.bench.layers import model_problems
from fusedref.bench.models import BY_HAND, MODE, OURS
from fusedref.bench.problems import describe
from fusedref.bench.rows import Row
from fusedref.bench.tables import geometric_mean
from fusedref.problem import Problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SLOWER = 1.03  # ours counts as slower from this many times the best by hand


class Ratio(NamedTuple):
    """How many times as fast as the best by hand ours is, at one problem."""

    way: tuple[str, str]  # precision and layout
    problem: str
    kind: str
    ratio: float


def ratios(rows: list[Row]) -> list[Ratio]:
    """Return a ratio for each pair of rows."""
    rows = [row for row in rows if row.mode == MODE]
    batches = {int(row.problem.partition(",")[0]) for row in rows}
    kinds = {describe(problem): kind_of(problem) for batch in batches for problem in model_problems(batch=batch)}
    us = {(row.precision, row.layout, row.problem, row.name): row.us for row in rows}
    return [
        Ratio((precision, layout), problem, kinds[problem], by_hand / us[precision, layout, problem, OURS])
        for (precision, layout, problem, name), by_hand in us.items()
        if name == BY_HAND
    ]


def kind_of(problem: Problem) -> str:
    """Return the kind of convolution, by what its speed depends on."""
    if problem.out_height * problem.out_width == 1:
        return "one pixel"
    if problem.groups > 1:
        return "depthwise" if problem.groups == problem.in_channels == problem.out_channels else "grouped"
    if problem.kernel == problem.strides != (1, 1):
        return "patches"
    if problem.in_channels <= 4:
        return "stem"
    stride = "" if problem.strides == (1, 1) else f", stride {problem.strides[0]}"
    return f"{problem.kernel[0]}x{problem.kernel[1]}{stride}"


def models_table(rows: list[Row], card: str) -> Table:
    """Return a table with a line for each kind: the geometric mean of each way, and how many are slower."""
    found = ratios(rows)
    ways = list(dict.fromkeys(ratio.way for ratio in found))
    result = Table(title=f"Times as fast as the best by hand (slower ones of all), {card}")
    result.add_column("")
    for precision, layout in ways:
        result.add_column(f"{precision}\n{layout}", justify="right")
    kinds = sorted({ratio.kind for ratio in found}, key=lambda kind: (-sum(one.kind == kind for one in found), kind))
    for kind in (*kinds, "all"):
        cells = []
        for way in ways:
            own = [ratio.ratio for ratio in found if ratio.way == way and kind in (ratio.kind, "all")]
            slower = sum(ratio * SLOWER < 1 for ratio in own)
            cells.append(f"{geometric_mean(own):.2f} ({slower} of {len(own)})" if own else "")
        result.add_row(kind, *cells, end_section=kind == kinds[-1])
    return result


def models_picture(rows: list[Row], card: str) -> Figure:
    """Draw, for each precision and layout, a bar for each convolution, from the slowest against the best by hand."""
    from matplotlib.figure import Figure

    found = ratios(rows)
    ways = list(dict.fromkeys(ratio.way for ratio in found))
    figure = Figure(figsize=(11, 2.2 * len(ways) + 0.6), layout="constrained")
    for axes, way in zip(figure.subplots(len(ways), squeeze=False)[:, 0], ways, strict=True):
        own = sorted(ratio.ratio for ratio in found if ratio.way == way)
        axes.bar(range(len(own)), [ratio - 1 for ratio in own], width=1.0, bottom=1.0, color="tab:blue")
        axes.axhline(1 / SLOWER, color="tab:red", linewidth=0.8)
        axes.set_yscale("log")
        axes.set_ylabel("times as fast")
        axes.set_title(f"{way[0]}, {way[1]}: {geometric_mean(own):.2f} (geometric mean of {len(own)})", fontsize=9)
        axes.set_xticks([])
    figure.suptitle(f"fusedref beside the best by hand, a bar a convolution, {card}")
    return figure
