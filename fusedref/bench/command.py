"""Carry out ``python -m fusedref bench``."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from fusedref.bench.measure import compile_ours, host_rows, run
from fusedref.bench.peers import OURS, PEERS, PEERS_AT_OTHER_PROBLEMS
from fusedref.bench.problems import OTHER_PROBLEMS, describe, in_family
from fusedref.bench.rows import save
from fusedref.bench.tables import other_problems_table, picture, speedup, table
from fusedref.commandline import written_whole
from fusedref.problem import KERNELBENCH_73


def bench_all(json_file: Path | None, plot: Path | None, console: Console) -> None:
    """Time everything on the current GPU, print tables, add the rows to ``json_file`` and draw them into ``plot``."""
    card = torch.cuda.get_device_name()
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
    host = host_rows()
    console.print(table(host, card))
    if json_file is not None:
        save(json_file, rows + others + host)
    if plot is not None:
        with written_whole(plot) as aside:
            picture(rows, card).savefig(aside, dpi=150)
