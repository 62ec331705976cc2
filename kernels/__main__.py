"""Climbs the ladder: validates every rung and, on a GPU, times it beside what PyTorch offers.

Exit status: 0 where every rung validates, 1 where one does not, 2 for a command that cannot be carried out.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fusedref import Report, bench, cuda, plan, validate
from fusedref.problem import KERNELBENCH_73, SMALL_73
from fusedref.validation import random_inputs
from kernels.ladder import LADDER, Rung

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "lessons" / "measured" / "h200.json"  # the committed times, shown where there is no GPU
MEASURE = f"python -m kernels --json {MEASURED.relative_to(ROOT)}"
README = ROOT / "README.md"
README_PICTURE = MEASURED.with_name("ladder.png")
BEGIN, END = "<!-- the ladder: written by `python -m kernels --readme` -->", "<!-- end of the ladder -->"
PLAN = ">>> print(fusedref.plan(fusedref.KERNELBENCH_73))"
PEERS = [peer for peer in bench.PEERS
         if peer.precision == "fp32" and peer.name in ("eager PyTorch", "torch.compile", "folded cuDNN")]  # fmt: skip
TOO_LARGE = dataclasses.replace(KERNELBENCH_73, batch=1)  # a plane of problem 73


@dataclasses.dataclass(frozen=True)
class Step:
    """What was found on one rung."""

    rung: Rung
    report: Report
    refusal: str | None  # what the launch said on a plane of problem 73, for a rung that does not fit it

    @property
    def ok(self) -> bool:
        return self.report.ok and (self.rung.fits(KERNELBENCH_73) or self.refusal is not None)


def climb(ladder: list[Rung], device: torch.device, console: Console) -> list[Step]:
    """Validates every rung: at problem 73 on a GPU, on two small images of the same layer on the emulator."""
    steps = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=len(ladder))
        for rung in ladder:
            progress.update(task, description=f"validating {rung.title}")
            problem = KERNELBENCH_73 if device.type == "cuda" and rung.fits(KERNELBENCH_73) else SMALL_73
            report = validate(rung.candidate, problem, precision=rung.precision, device=device)
            steps.append(Step(rung, report, None if rung.fits(KERNELBENCH_73) else refusal(rung, device)))
            progress.advance(task)
    return steps


def refusal(rung: Rung, device: torch.device) -> str | None:
    """The error of launching ``rung`` on a plane of problem 73; None if it launches after all."""
    try:
        rung.candidate(*random_inputs(TOO_LARGE, seed=0, device=device))
    except Exception as error:  # the device's own, of a class that depends on the device
        return str(error).splitlines()[0]
    return None


def measure() -> list[bench.Row]:
    """Times the floor, the peers and every rung that fits, at problem 73 on the current GPU, in one run."""
    rungs = [
        bench.Peer(rung.title, rung.precision, "NCHW", lambda inputs, _, rung=rung: lambda: rung.candidate(*inputs))
        for rung in LADDER
        if rung.fits(KERNELBENCH_73)
    ]
    return bench.run([(KERNELBENCH_73, PEERS + rungs)])


def ladder_rows(rows: list[bench.Row]) -> list[bench.Row]:
    """Of the rows of a file, those that the ladder shows: the floor, the peers and the rungs, in this order."""
    order = [(bench.FLOOR, "fp32", "NCHW"), *[(peer.name, peer.precision, peer.layout) for peer in PEERS]]
    order += [(rung.title, rung.precision, "NCHW") for rung in LADDER]
    found = {
        (row.name, row.precision, row.layout): row for row in rows if row.problem == bench.describe(KERNELBENCH_73)
    }
    return [found[key] for key in order if key in found]


def figures(row: bench.Row, rows: list[bench.Row]) -> tuple[str, str, str]:
    """Microseconds, times eager, and share of the floor, as text."""
    eager = next(other for other in rows if other.name == "eager PyTorch")
    return f"{row.us:.0f}", f"{eager.us / row.us:.2f}", f"{row.floor_us / row.us:.0%}"


def table(steps: list[Step], rows: list[bench.Row], card: str | None, device: torch.device) -> Table:
    """A row for every rung, and for every peer of which there is a time. ``card`` is the one that ``rows`` are from."""
    on_gpu = device.type == "cuda"
    problem = KERNELBENCH_73 if on_gpu else SMALL_73
    title = f"The ladder at {bench.describe(problem)}, {card if on_gpu else 'on the emulator'}"
    if rows and not on_gpu:
        title += f"\nTimes: committed, from an {card}, at problem 73"
    result = Table(title=title, box=box.SIMPLE_HEAD)
    result.add_column("rung", no_wrap=True)
    result.add_column("validated")
    result.add_column("precision")
    for heading in ("relative L2", "launches", "MB moved", "x floor"):
        result.add_column(heading, justify="right")
    if rows:
        for heading in ("us", "x eager", "of the floor"):
            result.add_column(heading, justify="right")
    for step in steps:
        moved = step.rung.bytes_moved(problem)
        cells = [
            step.rung.title,
            "[green]yes[/]" if step.ok else "[red]no[/]",
            step.rung.precision,
            f"{step.report.relative_l2:.1e}",
            str(step.rung.launches),
            f"{moved / 1e6:.2f}",
            f"{moved / problem.least_bytes:.2f}",
        ]
        timed = [figures(row, rows) for row in rows if row.name == step.rung.title]
        if rows:
            cells += timed[0] if timed else ("none", "", "")
        result.add_row(*cells)
    if rows:
        result.add_section()
        for row in rows:
            if row.name not in [rung.title for rung in LADDER]:
                error = "" if row.relative_l2 is None else f"{row.relative_l2:.1e}"
                name = row.name if row.layout == "NCHW" else f"{row.name}, {row.layout}"
                result.add_row(name, "", row.precision, error, "", "", "", *figures(row, rows))
    return result


def picture(rows: list[bench.Row], card: str | None) -> Figure:
    """The bytes that each rung moves at problem 73 and, where there are times, how long it and the peers take."""
    figure = Figure(figsize=(11 if rows else 6, 4.2), layout="constrained")
    panels = figure.subplots(1, 2 if rows else 1, squeeze=False)[0]
    panels[0].barh([rung.title for rung in LADDER], [rung.bytes_moved(KERNELBENCH_73) / 1e6 for rung in LADDER])
    panels[0].axvline(KERNELBENCH_73.least_bytes / 1e6, color="black", linestyle="--", label="the floor")
    panels[0].set_xlabel("MB across the memory bus at problem 73")
    panels[0].legend()
    if rows:
        bars = [row for row in rows if row.name != bench.FLOOR]
        names = [row.name if row.layout == "NCHW" else f"{row.name}, {row.layout}" for row in bars]
        titles = [rung.title for rung in LADDER]
        colours = ["tab:blue" if row.name in titles else "tab:gray" for row in bars]
        panels[1].barh(names, [row.us for row in bars], color=colours)
        panels[1].axvline(bars[0].floor_us, color="black", linestyle="--", label="the floor")
        panels[1].set_xlabel(f"microseconds at problem 73, {card}")
        panels[1].legend()
    for panel in panels:
        panel.invert_yaxis()
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def markdown() -> str:
    """The README's part about the ladder, from the committed times."""
    if not MEASURED.exists():
        return f"No times are committed yet: `{MEASURE}` measures them on a card."
    card, rows = bench.load(MEASURED)
    rows = ladder_rows(rows)
    floor = next(row for row in rows if row.name == bench.FLOOR)
    by_name = {row.name: row for row in rows}
    lines = [
        f"![The ladder: bytes and times of every rung]({README_PICTURE.relative_to(ROOT)})",
        "",
        f"Problem 73 on an {card}; the floor there is {floor.us:.0f} µs (a copy of the least bytes).",
        "",
        "| rung | what runs | precision | launches | bytes, x floor | µs | x eager | of the floor | relative L2 |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for rung in LADDER:
        moved = f"{rung.bytes_moved(KERNELBENCH_73) / KERNELBENCH_73.least_bytes:.2f}"
        if rung.title in by_name:
            row = by_name[rung.title]
            times = f"{' | '.join(figures(row, rows))} | {row.relative_l2:.1e}"
        else:
            times = "does not launch | | | "
        lines.append(f"| {rung.title} | {rung.how} | {rung.precision} | {rung.launches} | {moved} | {times} |")
    for row in rows:
        if row.name != bench.FLOOR and row.name not in [rung.title for rung in LADDER]:
            name = row.name if row.layout == "NCHW" else f"{row.name}, {row.layout}"
            times = f"{' | '.join(figures(row, rows))} | {row.relative_l2:.1e}"
            lines.append(f"| *{name}* | | {row.precision} | | | {times} |")
    lines += ["", f"Measured by `{MEASURE}`, put here by `python -m kernels --readme`."]
    return "\n".join(lines)


def write_readme() -> None:
    """Puts ``markdown()`` between the README's marks, and the plan after its prompt; draws the picture."""
    text = README.read_text(encoding="utf-8")
    for begin, end, new in ((BEGIN, END, markdown()), (PLAN, "```", str(plan(KERNELBENCH_73)))):
        before, rest = text.split(begin)
        after = rest[rest.index(end) :]
        text = f"{before}{begin}\n{new}\n{after}"
    README.write_text(text, encoding="utf-8")
    if MEASURED.exists():
        card, rows = bench.load(MEASURED)
        picture(ladder_rows(rows), card).savefig(README_PICTURE, dpi=120)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kernels",
        description="Validate every rung of the ladder. On a GPU: at problem 73, timed beside what PyTorch offers. "
        "Without one: on a small problem on the emulator, beside the committed times.",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the measured times to FILE (on a GPU)")
    parser.add_argument("--plot", type=Path, metavar="FILE", default=ROOT / "build" / "ladder.png",
                        help="where the picture of the ladder goes (default: build/ladder.png)")  # fmt: skip
    parser.add_argument("--readme", action="store_true", help="only write the committed times into README.md")
    given = parser.parse_args(arguments)
    if given.readme:
        write_readme()
        return 0

    try:
        on_gpu = cuda.device() == "gpu"
    except (RuntimeError, ValueError) as error:  # FUSEDREF_DEVICE names what is not here
        print(f"python -m kernels: {error}", file=sys.stderr)
        return 2
    console = Console()
    console.width = max(console.width, 130)  # what the table needs: in a narrow window its lines wrap, and are whole
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)  # a compiler's text is no markup
    device = torch.device("cuda" if on_gpu else "cpu")
    if not on_gpu:
        os.environ["FUSEDREF_DEVICE"] = "emulator"  # rung 05 is to run its kernel, not torch's folded convolution
        if given.json is not None:
            say("--json needs times, and times are measured on a GPU alone.")
            return 2
    steps = climb(LADDER, device, console)
    card, rows = None, []
    if on_gpu:
        card = torch.cuda.get_device_name()
        if all(step.ok for step in steps):  # the time of a kernel that is wrong means nothing
            rows = measure()
    elif MEASURED.exists():
        card, rows = bench.load(MEASURED)
        rows = ladder_rows(rows)

    console.print(table(steps, rows, card, device))
    for rung in LADDER:
        console.print(f"[bold]{rung.title}[/]: {rung.how}; {rung.idea}", highlight=False)
    console.print()
    for step in steps:
        if step.refusal is not None:
            say(f"{step.rung.title} does not launch on the 126x126 planes of problem 73: {step.refusal}")
        elif not step.rung.fits(KERNELBENCH_73):
            say(f"{step.rung.title} launches where it should not: on a plane of problem 73.")
        if not step.report.ok:
            say(f"\n{step.rung.title} is not validated:\n{step.report}")
    if on_gpu and not rows:
        say("No times: nothing is timed before every rung validates.")
    elif not on_gpu:
        say(
            f"Times are those of {card}, from {MEASURED.relative_to(ROOT)}: no GPU is in use here."
            if rows
            else f"No times: no GPU is in use here, and {MEASURED.relative_to(ROOT)} is not there yet."
        )
    if given.json is not None and rows:
        bench.save(given.json, rows)
    given.plot.parent.mkdir(parents=True, exist_ok=True)
    picture(rows, card).savefig(given.plot, dpi=120)
    say(f"The ladder as a picture: {given.plot}")
    return 0 if all(step.ok for step in steps) else 1


if __name__ == "__main__":
    sys.exit(main())
