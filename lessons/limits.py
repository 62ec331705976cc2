"""Measure on a GPU what limits the rungs from 04 on and the steps of lesson 10: `python -m lessons.limits FILE`.

It times each kernel, then runs each once under Nsight Compute, which must be on PATH, and writes the figures to FILE.
The lessons show those of measured/limits_h100.json.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fusedref import bench
from fusedref.bench.timing import copy_samples
from fusedref.ops.runner import run_plan, target_of
from fusedref.plans import Plan, pipeline_plan
from fusedref.problem import KERNELBENCH_73
from fusedref.validation import random_inputs
from kernels.ladder import LADDER
from lessons import steps

ROOT = Path(__file__).parents[1]
MEASURED = Path(__file__).parent / "measured" / "limits_h100.json"
PERCENT = {  # Nsight Compute's metric: how busy a part of the GPU is, in percent of what it can do
    "memory": "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "L2 cache": "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "L1 and shared memory": "l1tex__data_pipe_lsu_wavefronts.avg.pct_of_peak_sustained_elapsed",
    "load and store unit": "l1tex__lsuin_requests.avg.pct_of_peak_sustained_elapsed",
    "issue slots": "sm__inst_issued.avg.pct_of_peak_sustained_elapsed",
    "multiply-add units": "sm__pipe_fma_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "tensor cores": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "warps resident": "sm__warps_active.avg.pct_of_peak_sustained_active",
}
BUSY = "memory", "L2 cache", "L1 and shared memory", "issue slots", "multiply-add units", "tensor cores"
COUNTS = {
    "registers": "launch__registers_per_thread",
    "warps ready": "smsp__warps_eligible.avg.per_cycle_active",
}
REASONS = {  # why a warp waits: Nsight Compute's name
    "global memory": "long_scoreboard",
    "shared memory": "short_scoreboard",
    "a barrier": "barrier",
    "the queue of shared memory": "mio_throttle",
    "the queue of global memory": "lg_throttle",
    "a busy arithmetic unit": "math_pipe_throttle",
    "the instruction before": "wait",
    "another warp's turn": "not_selected",
    "wgmma": "gmma",
    "sleep": "sleeping",
    "a branch": "branch_resolving",
    "the dispatcher": "dispatch_stall",
}
LINKS = 512  # multiply-adds for each number of lesson 07's chain
PIPELINES = {  # problem 73's pipeline with one idea of lesson 10 left out; another SHARED_BYTES would not compile
    "reading at any time": {"TURN": 0},
    "runs as they come": {"EXTRA": 0, "TAIL": 0, "RUN_PITCH": 260, "SHARED_BYTES": 182912},
    "1 stage": {"STAGES": 1, "SHARED_BYTES": 150144},
    "2 stages": {"STAGES": 2, "SHARED_BYTES": 166912},
}
STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
Calls = dict[str, tuple[str, Callable[[], object]]]  # what is measured -> its kernel and a call that launches it once


def calls() -> Calls:
    """Return the calls to measure: the rungs from 04 on at problem 73, and the steps of lesson 10."""
    device = torch.device("cuda")
    inputs = random_inputs(KERNELBENCH_73, 0, device)
    found: Calls = {}
    for rung in LADDER:
        if rung.number >= 4 and rung.fits(KERNELBENCH_73) and rung.name != "folded_weights":
            found[rung.title] = rung.name, lambda rung=rung: rung.candidate(*inputs)
    plan = pipeline_plan(KERNELBENCH_73, target_of(device))
    for name, macros in PIPELINES.items():
        changed = with_macros(plan, macros)
        found[f"10 pipeline, {name}"] = "pipeline", lambda plan=changed: run_plan(plan, KERNELBENCH_73, inputs)
    numbers = torch.rand(1 << 26, device=device)
    for count in (1, 2, 4):
        title = f"07 chain: {count} number{'s' * (count > 1)} a thread"
        found[title] = "chain", lambda n=count: steps.chain(numbers, n, LINKS)
    rows = torch.rand(1 << 16, steps.ROW, device=device)
    for blocks in (132, 4 * 132, 8 * 132):
        found[f"a bulk_store, {blocks} blocks"] = "bulk_store", lambda b=blocks: steps.bulk_store(rows, 2, b)
        for count in (1, 2, 3, 4):
            name = f"c stages: {count}, {blocks} blocks"
            found[name] = "stages", lambda b=blocks, n=count: steps.stages(rows, 2, b, n)
    x, w = torch.rand(16, 1 << 20, device=device), torch.rand(64, 16, device=device)
    for blocks in (132, 4 * 132):
        found[f"d product, {blocks} blocks"] = "product", lambda b=blocks: steps.product(x, w, b)
    runs = torch.rand(1 << 18, 252, device=device)
    for blocks in (8 * 132, 16 * 132):
        for whole in (False, True):
            name = f"e sectors: {'whole' if whole else 'as they come'}, {blocks} blocks"
            found[name] = "sectors", lambda b=blocks, yes=whole: steps.sectors(runs, 2, b, yes)
    return found


def with_macros(plan: Plan, changes: dict[str, int]) -> Plan:
    """Return the plan with other values of some of its only launch's macros."""
    (launch,) = plan.launches
    macros = dict(launch.macros) | changes
    shared = macros["SHARED_BYTES"]
    return dataclasses.replace(
        plan, launches=(dataclasses.replace(launch, macros=tuple(macros.items()), shared=shared),)
    )


def read(raw: str) -> list[dict[str, Any]]:
    """Return the figures of each profiled launch, in order, from Nsight Compute's page `raw`."""
    rows = [row for row in csv.DictReader(line for line in raw.splitlines() if line.startswith('"')) if row["ID"]]
    return [
        {
            "percent": {name: _number(row, metric) for name, metric in PERCENT.items()},
            **{name: _number(row, metric) for name, metric in COUNTS.items()},
            "waits": {name: _number(row, STALL.format(reason)) for name, reason in REASONS.items()},
        }
        for row in rows
    ]


def _number(row: dict[str, str], metric: str) -> float | None:
    """Return a metric of a row; None if this GPU does not have it."""
    try:
        return round(float(row[metric].replace(",", "")), 2)
    except (KeyError, ValueError):
        return None


def profile(names: list[str]) -> list[dict[str, Any]]:
    """Run this module under Nsight Compute and return the figures of its launches."""
    metrics = [*PERCENT.values(), *COUNTS.values(), *[STALL.format(reason) for reason in REASONS.values()]]
    command = ["ncu", "--clock-control", "none", "--metrics", ",".join(metrics), "--page", "raw", "--csv"]
    command += ["--kernel-name", f"regex:^({'|'.join(sorted(set(names)))})$", sys.executable, "-m", "lessons.limits"]
    done = subprocess.run([*command, "--run"], capture_output=True, text=True, cwd=ROOT, env=dict(os.environ))
    if done.returncode:
        raise RuntimeError(f"ncu failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return read(done.stdout)


def comparison(*names: str) -> str:
    """Return the committed figures of these kernels as a table of text, with the reasons that warps mostly wait for."""
    measured = load()
    found = [measured["kernels"][name] for name in names]
    rows = [("time, us", [f"{kernel['us']:,.0f}" for kernel in found])]
    rows.append(("a copy's share of it", [f"{measured['floor_us'] / kernel['us']:.0%}" for kernel in found]))
    rows += [(f"{name} busy", [f"{kernel['percent'][name]:.0f}%" for kernel in found]) for name in BUSY]
    rows.append(("warps resident", [f"{kernel['percent']['warps resident']:.0f}%" for kernel in found]))
    rows.append(("registers a thread", [f"{kernel['registers']:.0f}" for kernel in found]))
    for place in range(2):
        reasons = [sorted(kernel["waits"].items(), key=lambda item: -(item[1] or 0))[place][0] for kernel in found]
        rows.append((("warps wait most for", "then for")[place], reasons))
    width = max(len(text) for text in (*names, *(cell for _, cells in rows for cell in cells))) + 2
    lines = [f"{title:32}" + "".join(f"{cell:>{width}}" for cell in cells) for title, cells in [("", names), *rows]]
    return f"measured on {measured['card']}, committed; not your code\n" + "\n".join(lines)


def load() -> dict[str, Any]:
    """Return the committed figures: the card, the floor in microseconds, and the figures of each kernel by name."""
    return json.loads(MEASURED.read_text())


def main(arguments: list[str]) -> None:
    """Measure, and write the file named by the only argument; with --run, only launch every kernel once."""
    found = calls()
    if arguments == ["--run"]:
        for _, call in found.values():
            call()
        torch.cuda.synchronize()
        return
    us = {name: round(bench.microseconds(call), 1) for name, (_, call) in found.items()}
    moved = KERNELBENCH_73.least_bytes
    record = {
        "card": torch.cuda.get_device_name(),
        "versions": bench.versions(),
        "problem": bench.describe(KERNELBENCH_73),
        "floor_us": round(sorted(copy_samples(moved))[15], 1),
        "kernels": {
            name: {"us": us[name], **figures}
            for name, figures in zip(found, profile([kernel for kernel, _ in found.values()]), strict=True)
        },
    }
    Path(arguments[0]).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
