"""Start processes for tests, in the same way however the tests themselves were started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Seconds; less than a test has (faulthandler_timeout in pyproject.toml), so that no process outlives its test.
LIMIT = 120


def environment(**changes: str | Path | None) -> dict[str, str]:
    """Return this process's environment, with this checkout to import from and ``changes``. None removes a variable."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    wanted = {**os.environ, "PYTHONPATH": os.pathsep.join(path), **changes}
    return {name: str(value) for name, value in wanted.items() if value is not None}


def run(
    command: list,
    *,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    limit: float = LIMIT,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run ``command`` without input and return its status and its output as text.

    At the limit, or if the test is interrupted, everything that the command started ends with it.
    Raises subprocess.TimeoutExpired; with ``check``, CalledProcessError for a status other than 0.
    """
    process = subprocess.Popen(
        [str(part) for part in command],
        env=env or environment(),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )
    with process:
        try:
            printed, errors = process.communicate(timeout=limit)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, printed, errors)
    if check:
        done.check_returncode()
    return done


def python(code: str, *, cwd: Path | None = None, **changes: str | Path | None) -> str:
    """Run ``code`` in a new Python process and return what it prints. Fail if the process fails."""
    done = run([sys.executable, "-c", textwrap.dedent(code)], env=environment(**changes), cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout
