"""``python -m fusedref bench``."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from fusedref import cuda
from fusedref.bench.measure import compile_ours, host_rows, run
from fusedref.bench.peers import OURS, PEERS, PEERS_OF_OTHERS
from fusedref.bench.problems import OTHERS, describe, in_family
from fusedref.bench.rows import save
from fusedref.bench.tables import picture, table, table_of_others, times_as_fast
from fusedref.problem import KERNELBENCH_73


def main(json_file: Path | None, plot: Path | None, console: Console) -> int:
    """What ``python -m fusedref bench`` does; returns its exit status."""
    if cuda.device() != "gpu":
        console.print(
            "Times are measured on a card alone, and here is no NVIDIA GPU with PyCUDA (or FUSEDREF_DEVICE hides it).\n"
            "Without one, `make ladder` shows what can be counted, beside the committed times of a card."
        )
        return 2
    card = torch.cuda.get_device_name()
    with console.status("compiling"):
        compile_ours([KERNELBENCH_73, *OTHERS])
    rows = run([(KERNELBENCH_73, PEERS + OURS)])
    console.print(table(rows, card))
    others = run([(problem, PEERS_OF_OTHERS + OURS) for problem in OTHERS])
    console.print(table_of_others(others, card))
    family = [describe(problem) for problem in OTHERS if in_family(problem)]
    ratio = times_as_fast([row for row in others if row.problem in family])
    console.print(
        f"fp32, the {len(family)} of them with one group and up to 64 input channels: {ratio:.2f} times as fast as the "
        "best of PyTorch's (geometric mean)"
    )
    host = host_rows()
    console.print(table(host, card))
    if json_file is not None:
        save(json_file, rows + others + host)
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        picture(rows, card).savefig(plot, dpi=150)
    return 0
