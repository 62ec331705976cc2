"""Run the corpus of planted bugs under compute-sanitizer on a card: which tool finds which bug.

``python tests/corpus_on_card.py FILE`` runs every case that is new or has changed since FILE was written under each of
TOOLS, each time in a process of its own, and writes the verdicts to FILE. With ``--show``, it prints FILE as a table.
tests/test_sanitizer_table.py compares FILE with the emulator.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import corpus

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
PATIENCE = 40  # seconds: a card may hang at a barrier that not all threads reach
FOUND = 9  # exit status of a tool that found something
RAN = "== the case has run"

# Reports about correct cases, and why the cases are correct.
ONE_LANE = (
    "racecheck tracks each thread separately: it does not see that __syncwarp() orders the work of all lanes before "
    "lane 0's arrival at the mbarrier"
)
FALSE_REPORTS = {
    ("pipeline_hands_on_before_all_lanes_stored_cured", "racecheck"): ONE_LANE,
    ("pipeline_gives_back_before_all_lanes_read_cured", "racecheck"): ONE_LANE,
    ("race_lock_without_fence_cured", "racecheck"): "racecheck knows only barriers: it does not see that a lock, made "
    "of atomics and fences, keeps the threads of a block apart",
}


def digest(case: corpus.Case) -> str:
    """Return a hash of everything that runs on the card, to detect a verdict on an older case."""
    what = (case.source, case.arguments, case.block, case.grid, case.shared, case.dtype, case.options)
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def run_case(name: str) -> None:
    """Run one case on the card, without torch, which would take longer to start than the case to run."""
    import pycuda.autoprimaryctx  # noqa: F401  makes the context
    import pycuda.driver as drv
    import pycuda.gpuarray as gpuarray
    from pycuda.compiler import SourceModule

    case = {case.name: case for case in corpus.CASES}[name]
    try:
        corpus.run(case, SourceModule, drv, gpuarray)
    except drv.Error as error:  # an effect of the bug, which the tool reports by itself
        print(error)
    print(RAN)


def verdict(name: str, tool: str) -> str:
    """Return the tool's verdict: "found", "nothing", or "hangs" if the case does not end."""
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(FOUND)]
    command += [sys.executable, __file__, "--run", name]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, start_new_session=True, **pipes)
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return "hangs"
    if RAN not in output:
        raise RuntimeError(f"{name} under {tool} did not run:\n{output[-2000:]}")
    return "found" if process.returncode == FOUND else "nothing"


def measure(known: dict) -> dict:
    """Run every case under every tool; keep the verdicts of ``known``, an earlier file, on unchanged cases."""
    import torch

    from fusedref import bench

    todo = [case for case in corpus.CASES if known.get(case.name, {}).get("digest") != digest(case)]
    # One tool after the other: the first compiles, the next ones use PyCUDA's cache.
    jobs = [(case.name, tool) for tool, case in product(TOOLS, todo)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = dict(zip(jobs, pool.map(lambda job: verdict(*job), jobs), strict=True))
    cases = {case.name: known.get(case.name) for case in corpus.CASES}
    for case in todo:
        planted = case.expected[0] if case.expected else None
        found = {tool: verdicts[case.name, tool] for tool in TOOLS}
        cases[case.name] = {"planted": planted, "digest": digest(case), **found}
    return {"card": torch.cuda.get_device_name(), "versions": bench.versions(), "cases": cases}


def show(measured: dict) -> None:
    """Print a file as a table: the case, what it plants, and the tools that found it."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Planted bugs, found by the emulator and by compute-sanitizer on an {measured['card']}")
    for heading in ("case", "planted", "emulator", *TOOLS):
        table.add_column(heading, no_wrap=True)
    for name, case in measured["cases"].items():
        if case["planted"]:
            table.add_row(name, case["planted"], "found", *[case[tool] for tool in TOOLS])
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--show", action="store_true", help="print FILE instead of writing it")
    parser.add_argument("--run", metavar="CASE", help="only run this case, for the tools to watch")
    given = parser.parse_args()
    if given.run:
        run_case(given.run)
    elif given.file is None:
        parser.error("name the FILE")
    elif given.show:
        show(json.loads(given.file.read_text()))
    else:
        known = json.loads(given.file.read_text())["cases"] if given.file.exists() else {}
        given.file.write_text(json.dumps(measure(known), indent=1) + "\n")


if __name__ == "__main__":
    main()
