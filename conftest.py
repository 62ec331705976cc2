"""Set up the tests: the device they run on, and an environment that does not depend on how they are started."""

import os
import shutil
import signal
import threading

import pytest
import torch

from fusedref import cuda
from kernels import ladder

# Variables of the caller that change what programs print, how they compile or what a lesson records.
KEPT = {"PYTHONHOME", "PYTHONNOUSERSITE", "PYTHONPATH"}
DROPPED = ("CLICOLOR", "LC_", "MAKE", "NVCC_", "PYTHON", "TTY_", "COLUMNS", "CPATH", "CPLUS_INCLUDE_PATH",
           "FORCE_COLOR", "FUSEDREF_RECORD", "LANGUAGE", "LINES", "MFLAGS", "MPLBACKEND", "NO_COLOR",
           "PYTEST_ADDOPTS")  # fmt: skip
for name in set(os.environ) - KEPT:
    if name.startswith(DROPPED):
        del os.environ[name]
os.environ |= {"LC_ALL": "C.UTF-8", "TERM": "dumb"}
os.umask(0o022)
# In the background and under nohup a process starts with SIGINT ignored, and so does every process that it starts.
# A handler undoes that: in a new process, a signal that had a handler has its default action.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

DEVICE = cuda.device()
if DEVICE == "emulator":
    # Tensors on the CPU then go through the kernels, not through torch's folded convolution.
    os.environ["FUSEDREF_DEVICE"] = "emulator"

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))


def pytest_collection_modifyitems(items):
    if DEVICE == "gpu":
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU with PyCUDA"))


@pytest.fixture(scope="session")
def device():
    """Return the torch device of the tests' tensors: the GPU, or the CPU for the emulator."""
    return torch.device("cuda" if DEVICE == "gpu" else "cpu")


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """Return ``plant(file, right, wrong)``, which makes the ladder run a copy of its kernels with one text replaced.

    ``number`` says which occurrence of the text is replaced, from 0; without it, all are.
    """

    def plant(file, right, wrong, number=None):
        for path in ladder.KERNELS.glob("*.cu"):
            shutil.copy(path, tmp_path)
        parts = (tmp_path / file).read_text().split(right)
        assert len(parts) > 1 + (number or 0), f"{file} has no {right!r} to replace"
        if number is None:
            text = wrong.join(parts)
        else:
            text = right.join(parts[: number + 1]) + wrong + right.join(parts[number + 1 :])
        (tmp_path / file).write_text(text)
        monkeypatch.setattr(ladder, "KERNELS", tmp_path)

    return plant
