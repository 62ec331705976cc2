"""Carry out ``python -m fusedref bench``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from fusedref.bench.growth import growth_picture, growth_rows, growth_table
from fusedref.bench.kernelbench import kernelbench_rows
from fusedref.bench.layers import MODELS
from fusedref.bench.measure import compile_ours, host_rows, run
from fusedref.bench.model_tables import models_picture, models_table
from fusedref.bench.models import BATCHES, model_rows
from fusedref.bench.network_tables import networks_table
from fusedref.bench.networks import NETWORKS, network_rows
from fusedref.bench.peers import DTYPES, LAYOUTS, OURS, PEERS, PEERS_AT_OTHER_PROBLEMS
from fusedref.bench.problems import OTHER_PROBLEMS, describe, in_family
from fusedref.bench.rows import Row, save
from fusedref.bench.tables import (
    geometric_mean,
    kernelbench_table,
    other_problems_table,
    other_problems_training_table,
    picture,
    speedup,
    table,
    training_speedups,
    training_table,
)
from fusedref.bench.training import WHOLE, training_host_rows, training_rows
from fusedref.commandline import written_whole
from fusedref.problem import KERNELBENCH_73

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = ("eval", "train", "kernelbench", "host")


def bench_models(
    json_file: Path | None,
    plot: Path | None,
    console: Console,
    models: tuple[str, ...] = MODELS,
    batches: Sequence[int] = BATCHES,
    precisions: Sequence[str] = tuple(DTYPES),
    layouts: Sequence[str] = LAYOUTS,
) -> None:
    """Time the convolutions of ``models`` on the current GPU and print a table by kind.

    Add the rows to ``json_file`` as each precision and layout ends, and draw them into ``plot``.
    """
    card, rows = torch.cuda.get_device_name(), []
    for precision in precisions:
        for layout in layouts:
            rows += (own := list(model_rows(models, batches, (precision,), (layout,))))
            if json_file is not None:
                save(json_file, own)
    console.print(models_table(rows, card))
    _draw(plot, models_picture(rows, card))


def bench_networks(json_file: Path | None, console: Console, networks: tuple[str, ...] = NETWORKS) -> None:
    """Time whole networks on the current GPU and print a table. Add each row to ``json_file`` as it is measured."""
    rows = []
    for row in network_rows(networks):
        rows.append(row)
        if json_file is not None:
            save(json_file, [row])
    console.print(networks_table(rows, torch.cuda.get_device_name()))


def bench_growth(json_file: Path | None, plot: Path | None, console: Console) -> None:
    """Measure the growth around problem 73 on the current GPU, print a table, and write the files."""
    card, rows = torch.cuda.get_device_name(), list(growth_rows())
    if json_file is not None:
        save(json_file, rows)
    console.print(growth_table(rows, card))
    _draw(plot, growth_picture(rows, card))


def _draw(plot: Path | None, figure: Figure) -> None:
    """Write the picture, if a file was named."""
    if plot is not None:
        with written_whole(plot) as aside:
            figure.savefig(aside, dpi=150)


def bench_all(json_file: Path | None, plot: Path | None, console: Console, parts: tuple[str, ...] = PARTS) -> None:
    """Time what ``parts`` name on the current GPU and print tables.

    Add the rows to ``json_file`` as each part ends, and draw those of evaluation mode into ``plot``.
    """
    card = torch.cuda.get_device_name()
    measured = {"eval": _evaluation, "train": _training, "kernelbench": _kernelbench, "host": _host}
    for part in parts:
        rows = measured[part](console, card)
        if json_file is not None:
            save(json_file, rows)
        if part == "eval":
            _draw(plot, picture([row for row in rows if row.problem == describe(KERNELBENCH_73)], card))


def _evaluation(console: Console, card: str) -> list[Row]:
    """Measure evaluation mode without gradients."""
    compile_ours([KERNELBENCH_73, *OTHER_PROBLEMS])
    rows = run([(KERNELBENCH_73, PEERS + OURS)])
    console.print(table(rows, card))
    others = run([(problem, PEERS_AT_OTHER_PROBLEMS + OURS) for problem in OTHER_PROBLEMS])
    console.print(other_problems_table(others, card))
    family = [describe(problem) for problem in OTHER_PROBLEMS if in_family(problem)]
    ratio = speedup([row for row in others if row.problem in family])
    console.print(
        f"fp32, the {len(family)} of them with one group and up to 64 input channels: {ratio:.2f} times as fast as the "
        "best of PyTorch's (geometric mean)"
    )
    return rows + others


def _training(console: Console, card: str) -> list[Row]:
    """Measure training and gradients."""
    rows = list(training_rows([KERNELBENCH_73], precisions=tuple(DTYPES)))
    console.print(training_table(rows, card))
    others = list(training_rows(OTHER_PROBLEMS, steps=(WHOLE,)))
    console.print(other_problems_training_table(others, card))
    ratio = geometric_mean(training_speedups(others, "torch.compile").values())
    console.print(f"{WHOLE.mode}, fp32: {ratio:.2f} times as fast as torch.compile (geometric mean)")
    return rows + others


def _kernelbench(console: Console, card: str) -> list[Row]:
    """Measure as KernelBench's harness does."""
    rows = kernelbench_rows()
    console.print(kernelbench_table(rows, card))
    return rows


def _host(console: Console, card: str) -> list[Row]:
    """Measure the host's time for a call."""
    rows = host_rows()
    console.print(table(rows, card))
    training = training_host_rows()
    console.print(training_table(training, card))
    return rows + training
