"""What a watch saw, drawn: tables in a terminal, and in Jupyter the source with counts, sectors and banks beside it."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .watching import Counters, Sample, Seen

COLUMNS = (  # heading, attribute
    ("load requests", "global_load_requests"),
    ("sectors", "global_load_sectors"),
    ("store requests", "global_store_requests"),
    ("sectors", "global_store_sectors"),
    ("shared loads", "shared_load_requests"),
    ("conflicts", "shared_load_bank_conflicts"),
    ("shared stores", "shared_store_requests"),
    ("conflicts", "shared_store_bank_conflicts"),
    ("atomics", "atomic_requests"),
    ("bulk bytes", "bulk_bytes"),
)
SHARED = 2
STYLE = "font-family:monospace;font-size:12px;border-collapse:collapse"
CELL = "padding:0 6px;text-align:right;border:none"


def as_text(seen: Seen) -> str:
    """Findings and counters as tables for a terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=140, file=None, record=True, quiet=False, force_terminal=False)
    with console.capture() as capture:
        for finding in seen.findings:
            console.print(f"{finding.kind}: {finding.message}", markup=False, highlight=False)
        if not seen.findings:
            console.print("nothing found")
        for kernel, counters in seen.counters.items():
            table = Table(
                title=f"{kernel}: {counters.launches} launch(es), {counters.barriers} barriers, "
                f"{counters.bytes_moved} bytes moved, {counters.bytes_used} used",
                title_justify="left",
            )
            columns = _columns(counters)
            table.add_column("line")
            for heading, _ in columns:
                table.add_column(heading, justify="right")
            for (source, line), of_line in sorted(counters.by_line.items()):
                table.add_row(f"{source}:{line}", *_cells(of_line, columns))
            table.add_row("all", *_cells(counters, columns))
            console.print(table)
    return capture.get()


def _columns(counters: Counters) -> list[tuple[str, str]]:
    """Those in which anything stands."""
    return [(heading, attribute) for heading, attribute in COLUMNS if getattr(counters, attribute)]


def _cells(counters: Counters, columns: list[tuple[str, str]]) -> list[str]:
    return [str(getattr(counters, attribute) or "") for _, attribute in columns]


def as_html(seen: Seen) -> str:
    """The findings, every kernel's source with its counts beside each line, and what its first requests touched."""
    parts = [f"<p><b>{html.escape(f.kind)}</b>: {html.escape(f.message)}</p>" for f in seen.findings]
    if not seen.findings:
        parts.append("<p>nothing found</p>")
    for kernel, counters in seen.counters.items():
        parts.append(
            f"<p><b>{html.escape(kernel)}</b>: {counters.bytes_moved} bytes moved, "
            f"{counters.bytes_used} used; {counters.bank_conflicts} bank conflicts; "
            f"{counters.barriers} barriers</p>"
        )
        for source in sorted({source for source, _ in counters.by_line}):
            parts.append(_source(seen, kernel, source))
        parts.extend(_request(sample) for sample in seen.samples if sample.kernel == kernel)
    return "".join(parts)


def _source(seen: Seen, kernel: str, source: str) -> str:
    by_line = {line: c for (file, line), c in seen.counters[kernel].by_line.items() if file == source}
    lines = seen.sources.get(source, "").splitlines()
    columns = _columns(seen.counters[kernel])
    found = {line for f in seen.findings if f.source == source for line in (f.line, f.other_line)}
    first, last = max(min(by_line) - 3, 1), min(max(by_line) + 2, max(len(lines), max(by_line)))
    head = "".join(f'<th style="{CELL}">{heading}</th>' for heading, _ in columns)
    rows = []
    for number in range(first, last + 1):
        text = html.escape(lines[number - 1]) if number <= len(lines) else ""
        cells = _cells(by_line[number], columns) if number in by_line else [""] * len(columns)
        colour = ";background:#fdd" if number in found else ""
        rows.append(
            f'<tr><td style="{CELL};color:#888">{number}</td><td style="{CELL};text-align:left{colour}">'
            f"<pre style='margin:0'>{text}</pre></td>"
            + "".join(f'<td style="{CELL}">{cell}</td>' for cell in cells)
            + "</tr>"
        )
    title = f'<th></th><th style="{CELL};text-align:left">{html.escape(source)}</th>'
    return f'<table style="{STYLE}"><tr>{title}{head}</tr>{"".join(rows)}</table>'


def _request(sample: Sample) -> str:
    """One request as a strip: the sectors of global memory that it touched, or the banks of shared memory."""
    what = "stores" if sample.write else "loads"
    title = f"line {sample.line}: the first warp's {what}, {sample.width} bytes a lane"
    if sample.space == SHARED:
        depth: dict[int, set[int]] = {}
        for offset in sample.offsets.values():
            for word in range(offset // 4, (offset + sample.width - 1) // 4 + 1):
                depth.setdefault(word % 32, set()).add(word)
        boxes = [(str(len(depth.get(bank, ())) or ""), len(depth.get(bank, ()))) for bank in range(32)]
        title += ", by bank (how many different words of each)"
    else:
        first = min(sample.offsets.values()) // 32
        lanes: dict[int, int] = {}
        for offset in sample.offsets.values():
            lanes[offset // 32 - first] = lanes.get(offset // 32 - first, 0) + 1
        shown = sorted(lanes)[:64]
        boxes = [(str(lanes[sector]), 1 if lanes[sector] * sample.width >= 32 else 2) for sector in shown]
        title += f", {len(lanes)} sector{'s' * (len(lanes) > 1)} of 32 bytes (how many lanes in each)"
    colours = ("#eee", "#8c8", "#ec8", "#e88")
    cells = "".join(
        f'<rect x="{18 * i}" y="0" width="16" height="16" fill="{colours[min(level, 3)]}"/>'
        f'<text x="{18 * i + 8}" y="12" font-size="9" text-anchor="middle">{text}</text>'
        for i, (text, level) in enumerate(boxes)
    )
    return f'<p style="margin:4px 0 0">{html.escape(title)}</p><svg width="{18 * len(boxes)}" height="16">{cells}</svg>'
