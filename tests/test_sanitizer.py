"""compute-sanitizer finds nothing on any rung, and finds the bug planted for it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import processes

SANITIZER = shutil.which("compute-sanitizer")
SCRIPT = Path(__file__).with_name("sanitized.py")
TOOLS = ["memcheck", "racecheck", "initcheck"]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(SANITIZER is None, reason="needs compute-sanitizer, a part of the CUDA toolkit"),
]


def sanitize(tool: str, what: str) -> subprocess.CompletedProcess:
    """Run SCRIPT under the tool. Its exit status is 9 if the tool reports an error."""
    command = [SANITIZER, "--tool", tool, "--error-exitcode", "9", sys.executable, SCRIPT, what]
    # Without the allocator's cache, the memory of a tensor ends with it.
    return processes.run(command, env=processes.environment(PYTORCH_NO_CUDA_MEMORY_CACHING="1"), limit=230)


@pytest.mark.parametrize("tool", TOOLS)
def test_every_rung_is_clean(tool):
    done = sanitize(tool, "rungs")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize("tool", TOOLS)
def test_a_planted_bug_is_found(tool):
    done = sanitize(tool, tool)
    assert done.returncode == 9, done.stdout[-3000:] + done.stderr[-3000:]
