"""Read a GPU's own counters for the rungs of evaluation mode and implicit_gemm, to compare them with the emulator's.

``python -m kernels.profile FILE`` runs each kernel at least RUNS times under Nsight Compute. It writes to FILE, for
each kernel, the counters of each run and the bank conflicts of each line of its source. It needs a GPU whose counters
may be read, and ``ncu`` and ``nvdisasm`` on PATH.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fusedref.commandline import expect_interrupts

if __name__ == "__main__":
    expect_interrupts("python -m kernels.profile")  # before torch, which takes seconds to import

import torch

from fusedref import bench, cuda, fused_conv_bn_scale
from fusedref.commandline import DONE, help_texts, not_run, output_file, run, written_whole
from fusedref.csrc import COMMON, INFERENCE
from fusedref.problem import Problem
from fusedref.validation import random_inputs
from kernels.ladder import KERNELS, LADDER

PROGRAM = "python -m kernels.profile"
ROOT = Path(__file__).parents[1]
PROBLEM = Problem(2, 8, 64, 34, 34, 3)
WIDER = Problem(2, 16, 64, 34, 34, 3)  # with more input channels the operator runs its other fast kernel
METRICS = {  # the emulator's name of a counter: Nsight Compute's
    "global_load_requests": "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum",
    "global_load_sectors": "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum",
    "global_store_requests": "l1tex__t_requests_pipe_lsu_mem_global_op_st.sum",
    "global_store_sectors": "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum",
    "shared_load_bank_conflicts": "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum",
    "shared_store_bank_conflicts": "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_st.sum",
}
WAVEFRONTS = "memory_l1_wavefronts_shared", "memory_l1_wavefronts_shared_ideal"  # of each instruction
RUNS = 3
FINISHED = ("pipeline", "folded", "implicit_gemm")  # the kernels of fusedref/csrc that run_kernels runs
REPLACED = {"ptx.cuh"}  # headers of csrc that the emulator replaces: none of their lines runs there


def kernel_names() -> set[str]:
    """Return the name of every kernel that run_kernels runs."""
    numbers = {f"{rung.number:02d}" for rung in LADDER}
    sources = [
        *[path for path in KERNELS.glob("*.cu") if path.name[:2] in numbers],
        *[INFERENCE / f"{name}.cu" for name in FINISHED],
    ]
    pattern = re.compile(r"__global__\s+void(?:\s+__launch_bounds__\([^;{]*?\))?\s+(\w+)\s*\(")
    return {name for source in sources for name in pattern.findall(source.read_text())}


def run_kernels(device: torch.device) -> None:
    """Run every rung once on PROBLEM, and the finished operator on WIDER."""
    inputs = random_inputs(PROBLEM, seed=0, device=device)
    for rung in LADDER:
        if rung.fits(PROBLEM):
            rung.candidate(*inputs)
    fused_conv_bn_scale(*random_inputs(WIDER, seed=0, device=device))


def read_counters(raw: str) -> dict[str, list[dict[str, int]]]:
    """Return METRICS of each run of each kernel, from Nsight Compute's page ``raw``."""
    rows = csv.DictReader(line for line in raw.splitlines() if line.startswith('"'))
    runs: dict[str, list[dict[str, int]]] = {}
    for row in rows:
        if row["ID"]:  # the first row has units and no ID
            counters = {name: int(float(row[metric].replace(",", ""))) for name, metric in METRICS.items()}
            runs.setdefault(row["Kernel Name"].split("(")[0], []).append(counters)
    return runs


def read_conflicts(source: str) -> dict[str, dict[int, tuple[str, int]]]:
    """Return the bank conflicts of the first run of each kernel, from Nsight Compute's page ``source``.

    For each load or store that had any: its number in the code -> ("load" or "store", conflicts). The conflicts are the
    wavefronts that it took beyond those that its lanes' bytes needed.
    """
    kernels: dict[str, dict[int, tuple[str, int]]] = {}
    found: dict[int, tuple[str, int]] = {}
    header: list[str] | None = None
    number = 0
    for row in csv.reader(line for line in source.splitlines() if line.startswith('"')):
        if row[0] == "Kernel Name":
            name, number, header = row[1].split("(")[0], 0, None
            found = {} if name in kernels else kernels.setdefault(name, {})  # drop the conflicts of later runs
        elif header is None:
            header = row
        else:
            cell = dict(zip(header, row, strict=False))  # a kernel without shared memory has no such columns
            beyond = int(cell.get("L1 Wavefronts Shared", 0)) - int(cell.get("L1 Wavefronts Shared Ideal", 0))
            if beyond and cell["Access Operation"] in ("Load", "Store"):  # cp.async is not a store of the warp
                found[number] = cell["Access Operation"].lower(), beyond
            number += 1
    return kernels


def read_places(assembly: str) -> dict[str, list[tuple[str, int]]]:
    """Return the file and line of each instruction of each kernel, from the output of ``nvdisasm``.

    An instruction of a function of ours belongs to the line in that function. One of CUDA's headers, or of a header
    that the emulator replaces, belongs to the line that calls it.
    """
    kernels: dict[str, list[tuple[str, int]]] = {}
    places: list[tuple[str, int]] = []
    place: tuple[str, int] | None = None
    for text in assembly.splitlines():
        if section := re.match(r"\.text\.(\w+):", text):
            places = kernels.setdefault(section[1], [])
        elif named := re.match(r'\s*//## File "([^"]+)", line (\d+)( inlined at)?', text):
            file = Path(named[1]).name
            if place is None and (not named[3] or _ours(file)):
                place = file, int(named[2])
        elif re.match(r"\s+/\*[0-9a-f]{4,}\*/", text):
            places.append(place or places[-1])
            place = None
    return kernels


def _ours(file: str) -> bool:
    return file not in REPLACED and any((folder / file).exists() for folder in (KERNELS, COMMON, INFERENCE))


def line(file: str, number: int) -> str:
    """Name a line of a kernel's source by its text, which does not change when lines before it do."""
    (path,) = [folder / file for folder in (KERNELS, COMMON, INFERENCE) if (folder / file).exists()]
    return f"{file}: {path.read_text().splitlines()[number - 1].strip()}"


def by_line(conflicts: dict[int, tuple[str, int]], places: list[tuple[str, int]]) -> dict[str, dict[str, int]]:
    """Return the bank conflicts of each line that had any."""
    found: dict[str, dict[str, int]] = {}
    for number, (operation, beyond) in conflicts.items():
        counts = found.setdefault(line(*places[number]), {})
        name = f"shared_{operation}_bank_conflicts"
        counts[name] = counts.get(name, 0) + beyond
    return found


def profile() -> dict[str, dict[str, Any]]:
    """Run the kernels under Nsight Compute; return the counters and bank conflicts of each.

    Raises RuntimeError, with the output of Nsight Compute, if it gives no counters.
    """
    with tempfile.TemporaryDirectory() as folder:
        report, cache = Path(folder, "rungs.ncu-rep"), Path(folder, "cache")
        metrics = [*METRICS.values(), *WAVEFRONTS]
        names = "|".join(sorted(kernel_names()))
        command = ["ncu", "--clock-control", "none", "--section", "SourceCounters", "--metrics", ",".join(metrics)]
        command += ["--kernel-name", f"regex:^({names})$", "-o", str(report), sys.executable, "-m", "kernels.profile"]
        _output([*command, "--run"], XDG_CACHE_HOME=str(cache))  # a cache with these kernels alone
        runs = read_counters(_output(["ncu", "-i", str(report), "--page", "raw", "--csv"]))
        conflicts = read_conflicts(_output(["ncu", "-i", str(report), "--page", "source", "--csv"]))
        places: dict[str, list[tuple[str, int]]] = {}
        for cubin in cache.glob("fusedref/*.cubin"):
            places |= read_places(_output(["nvdisasm", "-gi", "-c", str(cubin)]))
    return {
        kernel: {"runs": runs[kernel], "bank_conflicts": by_line(conflicts[kernel], places[kernel])} for kernel in runs
    }


def _output(command: list[str], **environment: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def counters_file(text: str) -> Path:
    """Return the path of the file to write, for argparse; an existing file must hold counters of this command."""
    path = output_file(text)
    try:
        known = not path.exists() or "kernels" in json.loads(path.read_text(encoding="utf-8") or '{"kernels": {}}')
    except (TypeError, ValueError):
        known = False
    if not known:
        raise argparse.ArgumentTypeError(f"{text} does not hold counters of this command: name another file")
    return path


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(
        prog=PROGRAM,
        **help_texts(
            "Read a GPU's own counters for every kernel of the ladder, to compare them with the emulator's. It needs a "
            "GPU whose counters may be read, and ncu and nvdisasm on PATH.",
            f"{PROGRAM} build/counters.json",
            "0 done",
        ),
    )
    what = result.add_mutually_exclusive_group(required=True)
    what.add_argument("file", nargs="?", type=counters_file, metavar="FILE", help="the JSON file to write")
    what.add_argument("--run", action="store_true", help="only run the kernels; this is what Nsight Compute watches")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command line; return its exit status."""
    args = parser().parse_args(arguments)
    try:
        on_gpu = cuda.device() == "gpu"
    except (RuntimeError, ValueError) as error:  # FUSEDREF_DEVICE names a device that is not here
        return not_run(PROGRAM, str(error))
    if not on_gpu or not (args.run or (shutil.which("ncu") and shutil.which("nvdisasm"))):
        return not_run(PROGRAM, "it needs a GPU, and ncu and nvdisasm on PATH; the emulator's counters need neither")
    if args.run:
        for _ in range(RUNS):
            run_kernels(torch.device("cuda"))
        torch.cuda.synchronize()
        return DONE
    problems = [bench.describe(problem) for problem in (PROBLEM, WIDER)]
    measured = {"card": torch.cuda.get_device_name(), "versions": bench.versions(), "problems": problems}
    try:
        content = {**measured, "kernels": profile()}
    except RuntimeError as error:
        return not_run(PROGRAM, str(error))
    with written_whole(args.file) as aside:
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return DONE


if __name__ == "__main__":
    run(PROGRAM, main)
