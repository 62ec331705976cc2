"""Show the times of whole networks."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from fusedref.bench.networks import SIZE, WAYS
from fusedref.bench.rows import Row


def networks_table(rows: Sequence[Row], card: str) -> Table:
    """Return a table with a line for each network, mode, precision and layout."""
    result = Table(title=f"Networks in CUDA graphs, {SIZE}x{SIZE}, milliseconds and peak MiB on {card}")
    for heading in ("", "", "precision", "layout"):
        result.add_column(heading)
    ways = list(dict.fromkeys(row.name for row in rows))
    for way in ways:
        result.add_column(way, justify="right")
        result.add_column("MiB", justify="right")
    result.add_column("best other / ours", justify="right")
    found = {(*row.key[1:], row.name): row for row in rows}
    for key in dict.fromkeys(row.key[1:] for row in rows):
        of_one = {way: found[(*key, way)] for way in ways if (*key, way) in found}
        cells = []
        for way in ways:
            row = of_one.get(way)
            cells += ["", ""] if row is None else [f"{row.us / 1000:.2f}", f"{row.peak_mib:.0f}"]
        others = [row.us for way, row in of_one.items() if way != "fusedref"]
        ratio = f"{min(others) / of_one['fusedref'].us:.2f}" if others and "fusedref" in of_one else ""
        mode, precision, layout, problem = key
        result.add_row(problem, mode.removeprefix("network, "), precision, layout, *cells, ratio)
    return result


def networks_markdown(rows: Sequence[Row], card: str) -> str:
    """Return a table in Markdown, with the faster layout of each way: milliseconds, and MiB in brackets."""
    lines = [
        f"Milliseconds on an {card}, in a CUDA graph, in the faster layout of each; in brackets the MiB that it takes "
        "beyond its input and parameters.",
        "",
        f"| network, batch | | precision | {' | '.join(WAYS)} | best other / fusedref |",
        f"| --- | --- | --- |{' ---: |' * (len(WAYS) + 1)}",
    ]
    for problem, mode, precision in dict.fromkeys((row.problem, row.mode, row.precision) for row in rows):
        same = [row for row in rows if (row.problem, row.mode, row.precision) == (problem, mode, precision)]
        fastest = {row.name: row for row in sorted(same, key=lambda row: -row.us)}
        cells = [
            f"{fastest[way].us / 1000:.2f} ({fastest[way].peak_mib:.0f})" if way in fastest else "" for way in WAYS
        ]
        others = [row.us for way, row in fastest.items() if way != "fusedref"]
        ratio = f"{min(others) / fastest['fusedref'].us:.2f}" if others and "fusedref" in fastest else ""
        lines.append(f"| {problem} | {mode.removeprefix('network, ')} | {precision} | {' | '.join(cells)} | {ratio} |")
    return "\n".join(lines)
