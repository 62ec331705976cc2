"""Climb the ladder: validate every rung and, on a GPU, time it beside PyTorch."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fusedref.commandline import expect_interrupts

if __name__ == "__main__":
    expect_interrupts("python -m kernels")  # before torch, which takes seconds to import

import torch
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fusedref import Report, bench, cuda, plan, validate
from fusedref.commandline import DONE, REFUSED, help_texts, not_run, picture_file, progress_bar, run, written_whole
from fusedref.parameters import Parameters
from fusedref.problem import KERNELBENCH_73, SMALL_73
from fusedref.validation import random_inputs
from kernels import training, training_times
from kernels.ladder import LADDER, Rung
from kernels.training import TRAINING

PROGRAM = "python -m kernels"
ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "lessons" / "measured" / "h200.json"  # the committed times, shown where there is no GPU
TRAINING_MEASURED = MEASURED.with_name("training_h100.json")
MEASURE = f"python -m kernels --json {MEASURED.relative_to(ROOT)}"
README = ROOT / "README.md"
README_PICTURE = MEASURED.with_name("ladder.png")
NETWORKS_MEASURED = MEASURED.with_name("networks_h100.json")
NETWORKS_MEASURE = f"python -m fusedref bench --networks --json {NETWORKS_MEASURED.relative_to(ROOT)}"
NETWORKS_BEGIN = "<!-- the networks: written by `python -m kernels --readme` -->"
NETWORKS_END = "<!-- end of the networks -->"
BEGIN, END = "<!-- the ladder: written by `python -m kernels --readme` -->", "<!-- end of the ladder -->"
PLAN = ">>> print(fusedref.plan(fusedref.KERNELBENCH_73))"
PEERS = [peer for peer in bench.PEERS
         if peer.precision == "fp32" and peer.name in ("eager PyTorch", "torch.compile", "folded cuDNN")]  # fmt: skip
ONE_IMAGE = dataclasses.replace(KERNELBENCH_73, batch=1)  # its planes are too large for some rungs


@dataclasses.dataclass(frozen=True)
class Step:
    """The outcome of one rung."""

    rung: Rung
    report: Report
    refusal: str | None  # the error of its launch at ONE_IMAGE, for a rung that does not fit problem 73

    @property
    def ok(self) -> bool:
        """Whether the rung validates, and is refused by the launch where it does not fit."""
        return self.report.ok and (self.rung.fits(KERNELBENCH_73) or self.refusal is not None)


def climb(ladder: list[Rung], device: torch.device) -> list[Step]:
    """Validate every rung: at problem 73 on a GPU, at two small images on the emulator."""
    steps = []
    with progress_bar() as progress:
        task = progress.add_task("", total=len(ladder))
        for rung in ladder:
            progress.update(task, description=f"validating {rung.title}")
            problem = SMALL_73 if rung.mode == "eval" else training.SMALL
            if device.type == "cuda" and rung.fits(KERNELBENCH_73):
                problem = KERNELBENCH_73
            report = validate(rung.candidate, problem, mode=rung.mode, precision=rung.precision, device=device)
            steps.append(Step(rung, report, None if rung.fits(KERNELBENCH_73) else refusal(rung, device)))
            progress.advance(task)
    return steps


def refusal(rung: Rung, device: torch.device) -> str | None:
    """Return the error of launching ``rung`` at ONE_IMAGE; None if it launches."""
    try:
        rung.candidate(*random_inputs(ONE_IMAGE, seed=0, device=device))
    except Exception as error:  # the device's own: its class depends on the device
        return str(error).splitlines()[0]
    return None


def measure() -> list[bench.Row]:
    """Time the floor, the peers and every rung that fits, at problem 73 on the current GPU, in one run."""
    rungs = [
        bench.Peer(rung.title, rung.precision, "NCHW", partial(_prepare, rung))
        for rung in LADDER
        if rung.fits(KERNELBENCH_73)
    ]
    return bench.run([(KERNELBENCH_73, PEERS + rungs)])


def _prepare(rung: Rung, inputs: Parameters, options: dict[str, Any]) -> Callable[[], Tensor]:
    """Return the call to time; a rung takes no ``options``."""
    return lambda: rung.candidate(*inputs)


def ladder_rows(rows: list[bench.Row]) -> list[bench.Row]:
    """Select the rows that the ladder shows: the floor, the peers and the rungs, in this order."""
    order = [(bench.FLOOR, "fp32", "NCHW"), *[(peer.name, peer.precision, peer.layout) for peer in PEERS]]
    order += [(rung.title, rung.precision, "NCHW") for rung in LADDER]
    at_73 = [row for row in rows if row.problem == bench.describe(KERNELBENCH_73) and row.mode == "eval"]
    found = {(row.name, row.precision, row.layout): row for row in at_73}
    return [found[key] for key in order if key in found]


def figures(row: bench.Row, rows: list[bench.Row]) -> tuple[str, str, str]:
    """Return microseconds, the speed relative to eager, and the floor's share of the time, as text."""
    eager = next(other for other in rows if other.name == "eager PyTorch")
    return f"{row.us:.0f}", f"{eager.us / row.us:.2f}", f"{row.floor_us / row.us:.0%}"


def table(steps: list[Step], rows: list[bench.Row], card: str | None, device: torch.device) -> Table:
    """Return a table with a line for every rung, and for every peer that has a time; ``rows`` are from ``card``."""
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
                result.add_row(_name(row), "", row.precision, _error(row), "", "", "", *figures(row, rows))
    return result


def _name(row: bench.Row) -> str:
    return row.name if row.layout == "NCHW" else f"{row.name}, {row.layout}"


def _error(row: bench.Row) -> str:
    return "" if row.relative_l2 is None else f"{row.relative_l2:.1e}"


def picture(rows: list[bench.Row], card: str | None) -> Figure:
    """Draw the bytes that each rung moves at problem 73 and, if there are ``rows``, its time and the peers' times."""
    figure = Figure(figsize=(11 if rows else 6, 4.2), layout="constrained")
    panels = figure.subplots(1, 2 if rows else 1, squeeze=False)[0]
    panels[0].barh([rung.title for rung in LADDER], [rung.bytes_moved(KERNELBENCH_73) / 1e6 for rung in LADDER])
    panels[0].axvline(KERNELBENCH_73.least_bytes / 1e6, color="black", linestyle="--", label="the floor")
    panels[0].set_xlabel("MB across the memory bus at problem 73")
    panels[0].legend()
    if rows:
        bars = [row for row in rows if row.name != bench.FLOOR]
        names = [_name(row) for row in bars]
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
    """Return the README's part about the ladder, from the committed times."""
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
            times = f"{' | '.join(figures(row, rows))} | {_error(row)}"
        else:
            times = "does not launch | | | "
        lines.append(
            f"| {rung.title} | {rung.implementation} | {rung.precision} | {rung.launches} | {moved} | {times} |"
        )
    for row in rows:
        if row.name != bench.FLOOR and row.name not in [rung.title for rung in LADDER]:
            times = f"{' | '.join(figures(row, rows))} | {_error(row)}"
            lines.append(f"| *{_name(row)}* | | {row.precision} | | | {times} |")
    lines += ["", f"Measured by `{MEASURE}`, put here by `python -m kernels --readme`."]
    return "\n".join(lines)


def networks_markdown() -> str:
    """Return the README's part about whole networks, from the committed times."""
    if not NETWORKS_MEASURED.exists():
        return f"No times are committed yet: `{NETWORKS_MEASURE}` measures them on a card."
    card, rows = bench.load(NETWORKS_MEASURED)
    return f"{bench.networks_markdown(rows, card)}\n\nMeasured by `{NETWORKS_MEASURE}`."


def write_readme() -> None:
    """Write the tables between the README's marks and the plan after its prompt; draw the picture."""
    text = README.read_text(encoding="utf-8")
    for begin, end, new in (
        (BEGIN, END, markdown()),
        (NETWORKS_BEGIN, NETWORKS_END, networks_markdown()),
        (PLAN, "```", str(plan(KERNELBENCH_73))),
    ):
        before, rest = text.split(begin)
        after = rest[rest.index(end) :]
        text = f"{before}{begin}\n{new}\n{after}"
    README.write_text(text, encoding="utf-8")
    if MEASURED.exists():
        card, rows = bench.load(MEASURED)
        picture(ladder_rows(rows), card).savefig(README_PICTURE, dpi=120)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(
        prog=PROGRAM,
        **help_texts(
            "Validate every rung of the ladder. On a GPU: at problem 73, timed beside PyTorch. Without one: at a small "
            "problem on the emulator, beside the committed times.",
            f"{PROGRAM} --plot build/ladder.svg",
            "0 every rung validates, 1 a rung is refused",
        ),
    )
    result.add_argument("--json", type=bench.rows_file, metavar="FILE", help="add the times to FILE (on a GPU)")
    result.add_argument(
        "--plot",
        type=picture_file,
        metavar="FILE",
        default=str(ROOT / "build" / "ladder.png"),  # text, so that argparse checks it too
        help="where the picture of the ladder goes (default: build/ladder.png)",
    )
    result.add_argument("--readme", action="store_true", help="only write the committed times into README.md")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command line; return its exit status."""
    args = parser().parse_args(arguments)
    if args.readme:
        write_readme()
        return DONE
    try:
        on_gpu = cuda.device() == "gpu"
    except (RuntimeError, ValueError) as error:  # FUSEDREF_DEVICE names a device that is not here
        return not_run(PROGRAM, str(error))
    if not on_gpu:
        if args.json is not None:
            return not_run(PROGRAM, "--json needs times, and times are measured on a GPU alone")
        os.environ["FUSEDREF_DEVICE"] = "emulator"  # so that rung 05 runs its kernel, not torch's folded convolution
    device = torch.device("cuda" if on_gpu else "cpu")
    try:
        steps = climb(LADDER, device)
        training_steps = climb(TRAINING, device)
    except ValueError as error:  # problem 73 does not fit into the memory of this GPU
        return not_run(PROGRAM, str(error))
    validated = all(step.ok for step in steps + training_steps)
    card: str | None = None
    rows: list[bench.Row] = []
    training_rows: list[bench.Row] = []
    if on_gpu:
        card = torch.cuda.get_device_name()
        if validated:  # the time of a wrong kernel means nothing
            rows, training_rows = measure(), list(training_times.measure())
    elif MEASURED.exists():
        card, rows = bench.load(MEASURED)
        rows = ladder_rows(rows)
    show(steps, rows, card, device)
    if training_steps:
        show_training(training_steps, training_rows, device)
    if args.json is not None and rows:
        bench.save(args.json, rows + training_rows)
    with written_whole(args.plot) as aside:
        picture(rows, card).savefig(aside, dpi=120)
    print(f"The ladder as a picture: {args.plot}")
    return DONE if validated else REFUSED


def show(steps: list[Step], rows: list[bench.Row], card: str | None, device: torch.device) -> None:
    """Print the table, what each rung teaches, what failed, and where the times are from."""
    console = Console()
    console.width = max(console.width, 130)  # the table's: in a narrow window its lines wrap, and are whole
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)  # a compiler's text is no markup
    console.print(table(steps, rows, card, device))
    for step in steps:
        console.print(f"[bold]{step.rung.title}[/]: {step.rung.implementation}; {step.rung.idea}", highlight=False)
    console.print()
    for step in steps:
        if step.refusal is not None:
            say(f"{step.rung.title} does not launch on the 126x126 planes of problem 73: {step.refusal}")
        elif not step.rung.fits(KERNELBENCH_73):
            say(f"{step.rung.title} launches where it should not: on a plane of problem 73.")
        if not step.report.ok:
            say(f"\n{step.rung.title} is not validated:\n{step.report}")
    if device.type == "cuda" and not rows:
        say("No times: nothing is timed before every rung validates.")
    elif device.type != "cuda":
        say(
            f"Times are those of {card}, from {MEASURED.relative_to(ROOT)}: no GPU is in use here."
            if rows
            else f"No times: no GPU is in use here, and {MEASURED.relative_to(ROOT)} is not there yet."
        )


def show_training(steps: list[Step], rows: list[bench.Row], device: torch.device) -> None:
    """Print the table of the rungs of training mode, what each teaches, what failed, and where the times are from."""
    console = Console()
    console.width = max(console.width, 130)
    if device.type == "cuda":
        where = torch.cuda.get_device_name()
    else:
        where = f"validated on the emulator at {bench.describe(training.SMALL)}"
        if TRAINING_MEASURED.exists():
            card, rows = bench.load(TRAINING_MEASURED)
            where += f"\nTimes: committed, from an {card}"
    reports = [(step.rung, step.report) for step in steps]
    console.print(training_times.table(reports, training_times.training_rows(rows), where))
    for step in steps:
        console.print(f"[bold]{step.rung.title}[/]: {step.rung.implementation}; {step.rung.idea}", highlight=False)
    for step in steps:
        if not step.report.ok:
            console.print(f"\n{step.rung.title} is not validated:\n{step.report}", markup=False, highlight=False)


if __name__ == "__main__":
    run(PROGRAM, main)
