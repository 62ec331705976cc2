"""Render what a watch saw: tables for a terminal; for Jupyter, the source with counts, sectors and banks."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from .. import abi
from ..findings import Finding
from .counters import SECTOR, Counters, KernelCounters, Sample

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
BANKS, BANK_BYTES = 32, 4
STYLE = "font-family:monospace;font-size:12px;border-collapse:collapse"
CELL = "padding:0 6px;text-align:right;border:none"
BOX = "padding:0 2px;min-width:12px;text-align:center;font-size:9px;color:#111;border:1px solid #fff"


def as_text(findings: Sequence[Finding], counters_of: Mapping[str, KernelCounters]) -> str:
    """Return findings and counters as tables for a terminal."""
    from rich.console import Console  # imported here: few processes print a table, and rich is slow to import
    from rich.table import Table

    console = Console(width=140, force_terminal=False)
    with console.capture() as capture:
        for finding in findings:
            console.print(f"{finding.kind}: {finding.message}", markup=False, highlight=False)
        if not findings:
            console.print("nothing found")
        for kernel, counters in counters_of.items():
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
    """Return the columns with a nonzero count."""
    return [(heading, attribute) for heading, attribute in COLUMNS if getattr(counters, attribute)]


def _cells(counters: Counters, columns: list[tuple[str, str]]) -> list[str]:
    return [str(getattr(counters, attribute) or "") for _, attribute in columns]


def as_html(
    findings: Sequence[Finding],
    counters_of: Mapping[str, KernelCounters],
    samples: Sequence[Sample],
    sources: Mapping[str, str],
) -> str:
    """Return the findings, each kernel's source with its counts beside the lines, and what first requests accessed."""
    parts = [f"<p><b>{html.escape(finding.kind)}</b>: {html.escape(finding.message)}</p>" for finding in findings]
    if not findings:
        parts.append("<p>nothing found</p>")
    for kernel, counters in counters_of.items():
        parts.append(
            f"<p><b>{html.escape(kernel)}</b>: {counters.bytes_moved:,} bytes moved, "
            f"{counters.bytes_used:,} used; {counters.bank_conflicts:,} bank conflicts; "
            f"{counters.barriers} barriers</p>"
        )
        for source in sorted({source for source, _ in counters.by_line}):
            parts.append(_source(findings, counters, source, sources.get(source, "")))
        parts.extend(_request(sample) for sample in samples if sample.kernel == kernel)
    return "".join(parts)


def _source(findings: Sequence[Finding], counters: KernelCounters, source: str, text: str) -> str:
    """Return the lines of a file that access memory, and those around them, with their counts."""
    by_line = {line: of_line for (file, line), of_line in counters.by_line.items() if file == source}
    lines = text.splitlines()
    columns = _columns(counters)
    found = {line for f in findings if f.source == source for line in (f.line, f.other_line)}
    first, last = max(min(by_line) - 3, 1), min(max(by_line) + 2, max(len(lines), max(by_line)))
    head = "".join(f'<th style="{CELL}">{heading}</th>' for heading, _ in columns)
    rows = []
    for number in range(first, last + 1):
        text = html.escape(lines[number - 1]) if number <= len(lines) else ""
        cells = _cells(by_line[number], columns) if number in by_line else [""] * len(columns)
        colour = ";background-color:#fdd;color:#111" if number in found else ""
        rows.append(
            f'<tr><td style="{CELL};color:#888">{number}</td><td style="{CELL};text-align:left{colour}">'
            f"<pre style='margin:0'>{text}</pre></td>"
            + "".join(f'<td style="{CELL}">{cell}</td>' for cell in cells)
            + "</tr>"
        )
    title = f'<th></th><th style="{CELL};text-align:left">{html.escape(source)}</th>'
    return f'<table style="{STYLE}"><tr>{title}{head}</tr>{"".join(rows)}</table>'


def _request(sample: Sample) -> str:
    """Return one request as a strip: the sectors of global memory that it accessed, or the banks of shared memory."""
    what = "stores" if sample.write else "loads"
    title = f"line {sample.line}: the first warp's {what}, {sample.width} bytes per lane"
    if sample.space == abi.SHARED:
        depth: dict[int, set[int]] = {}
        for offset in sample.offsets.values():
            for word in range(offset // BANK_BYTES, (offset + sample.width - 1) // BANK_BYTES + 1):
                depth.setdefault(word % BANKS, set()).add(word)
        boxes = [(str(len(depth.get(bank, ())) or ""), len(depth.get(bank, ()))) for bank in range(BANKS)]
        title += ", by bank (how many different words of each)"
    else:
        first = min(sample.offsets.values()) // SECTOR
        lanes: dict[int, int] = {}
        for offset in sample.offsets.values():
            lanes[offset // SECTOR - first] = lanes.get(offset // SECTOR - first, 0) + 1
        shown = sorted(lanes)[:64]
        boxes = [(str(lanes[sector]), 1 if lanes[sector] * sample.width >= SECTOR else 2) for sector in shown]
        title += f", {len(lanes)} sector{'s' * (len(lanes) > 1)} of {SECTOR} bytes (how many lanes in each)"
    colours = ("#eee", "#8c8", "#ec8", "#e88")  # cells of a table: Jupyter drops SVG where it does not trust a notebook
    cells = "".join(
        f'<td style="{BOX};background-color:{colours[min(level, 3)]}">{text or "&nbsp;"}</td>' for text, level in boxes
    )
    return f'<p style="margin:4px 0 0">{html.escape(title)}</p><table><tr>{cells}</tr></table>'
