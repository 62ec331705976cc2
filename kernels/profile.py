"""What a card's own counters say of every kernel of the ladder, to be compared with what the emulator counts.

``python -m kernels.profile FILE`` runs each kernel once under Nsight Compute, on PROBLEM, and writes the counters to
FILE. It needs a GPU whose counters may be read, and ``ncu`` on PATH.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from fusedref import bench, cuda, fused
from fusedref.problem import Problem
from fusedref.validator import draw
from kernels.ladder import KERNELS, LADDER

ROOT = Path(__file__).parents[1]
PROBLEM = Problem(2, 8, 64, 34, 34, 3)
METRICS = {  # the emulator's counter: Nsight Compute's
    "global_load_requests": "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum",
    "global_load_sectors": "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum",
    "global_store_requests": "l1tex__t_requests_pipe_lsu_mem_global_op_st.sum",
    "global_store_sectors": "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum",
    "shared_load_bank_conflicts": "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum",
    "shared_store_bank_conflicts": "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_st.sum",
}


def kernel_names() -> set[str]:
    """Of every kernel that a rung launches."""
    sources = [*KERNELS.glob("*.cu"), *fused.KERNELS.glob("*.cu")]
    pattern = re.compile(r"__global__\s+void(?:\s+__launch_bounds__\([^;{]*?\))?\s+(\w+)\s*\(")
    return {name for source in sources for name in pattern.findall(source.read_text())}


def run_rungs(device: torch.device) -> None:
    """Runs every rung once."""
    inputs = draw(PROBLEM, seed=0, device=device)
    for rung in LADDER:
        if rung.fits(PROBLEM):
            rung.candidate(*inputs)


def read(text: str) -> dict[str, dict[str, int]]:
    """Counters by kernel, from what ``ncu --csv`` printed; of a kernel that ran more than once, the first run's."""
    lines = text.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith('"ID"'))
    counter = {metric: name for name, metric in METRICS.items()}
    launches, counters = {}, {}
    for row in csv.DictReader(lines[header:]):
        kernel = row["Kernel Name"].split("(")[0]
        if launches.setdefault(kernel, row["ID"]) == row["ID"]:
            counters.setdefault(kernel, {})[counter[row["Metric Name"]]] = int(row["Metric Value"].replace(",", ""))
    return counters


def profile() -> dict[str, dict[str, int]]:
    """Runs the rungs under Nsight Compute. Raises RuntimeError with its words where it does not give the counters."""
    names = "|".join(sorted(kernel_names()))
    command = ["ncu", "--csv", "--clock-control", "none", "--metrics", ",".join(METRICS.values())]
    command += ["--kernel-name", f"regex:^({names})$", sys.executable, "-m", "kernels.profile", "--run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode or '"ID"' not in done.stdout:
        raise RuntimeError(f"Nsight Compute gave no counters:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return read(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.profile", description=__doc__.split("\n\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("file", nargs="?", type=Path, help="the JSON file to write")
    what.add_argument("--run", action="store_true", help="only run the rungs: what Nsight Compute is given to watch")
    given = parser.parse_args()
    if cuda.device() != "gpu" or not shutil.which("ncu"):
        print("A card's counters need a card, and ncu (Nsight Compute) on PATH. The emulator's need neither.")
        return 2
    if given.run:
        run_rungs(torch.device("cuda"))
        torch.cuda.synchronize()
        return 0
    measured = {"card": torch.cuda.get_device_name(), "versions": bench.versions(), "problem": bench.describe(PROBLEM)}
    given.file.write_text(json.dumps({**measured, "kernels": profile()}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
