"""Run mutants, each in a process of its own: a mutant may hang, crash, or damage the state of its process."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.mutants import Mutant, subjects

LIMIT = 60  # seconds of processor time for one mutant: a busy machine makes no difference
PATIENCE = 10  # times LIMIT is how long a mutant may last: one that only waits uses no processor time


@dataclass(frozen=True)
class Outcome:
    """The outcome of a mutant: ``caught`` by a check, ``survived``, or ``uncompiled``, which does not count."""

    mutant: Mutant
    result: str
    by: str
    seconds: float


def run(mutants: Iterable[Mutant], jobs: int, limit: float = LIMIT) -> Iterator[Outcome]:
    """Yield the outcome of every mutant as it ends, ``jobs`` at a time."""
    waiting, running = list(mutants)[::-1], {}
    scratch = Path(tempfile.mkdtemp(prefix="mutants-"))
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                folder = Path(tempfile.mkdtemp(dir=scratch))
                mutant = waiting.pop()
                running[_start(mutant, folder, limit)] = mutant, folder, time.monotonic()
            for process, (mutant, folder, start) in list(running.items()):
                seconds = time.monotonic() - start
                ended, status = os.waitpid(process, os.WNOHANG)
                if not ended and seconds < PATIENCE * limit:
                    continue
                del running[process]
                if not ended:
                    os.killpg(process, signal.SIGKILL)
                    os.waitpid(process, 0)
                    status = signal.SIGXCPU
                yield Outcome(mutant, *_result(folder, status), seconds)
                shutil.rmtree(folder, ignore_errors=True)
            time.sleep(0.02)
    finally:
        for process in running:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
        shutil.rmtree(scratch, ignore_errors=True)


def _start(mutant: Mutant, folder: Path, limit: float) -> int:
    """Fork a process for the mutant and return its id. This process has computed nothing, so it has no threads."""
    process = os.fork()
    if process:
        return process
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit) + 5))
        with open(folder / "output", "w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        result = _judge(mutant, folder / "csrc")
        (folder / "result").write_text(json.dumps(result))
    finally:
        os._exit(0)


def _judge(mutant: Mutant, folder: Path) -> tuple[str, str]:
    """Return the result and the check that gave it."""
    try:
        by = subjects.caught_by(mutant, folder)
    except subjects.Uncompiled:
        return "uncompiled", ""
    except BaseException:
        traceback.print_exc()
        return "error", traceback.format_exc()
    return ("caught", by) if by else ("survived", "")


def _result(folder: Path, status: int) -> tuple[str, str]:
    """Return what the process has written, or how it ended."""
    if (folder / "result").exists():
        result, by = json.loads((folder / "result").read_text())
        return result, by
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return "caught", "the limit of time"
    return "caught", f"the end of its process ({os.waitstatus_to_exitcode(status)})"
