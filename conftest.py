"""Where the tests run: on the GPU where the door leads to one, on the emulator otherwise."""

import os
import shutil

import pytest
import torch

from fusedref import cuda
from kernels import ladder

DEVICE = cuda.device()
if DEVICE == "emulator":
    # Tensors of the CPU go through the kernels then, not through torch's folded convolution.
    os.environ["FUSEDREF_DEVICE"] = "emulator"

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores; each with threads of its own for every core would only be in the others' way.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))


def pytest_collection_modifyitems(items):
    if DEVICE == "gpu":
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU with PyCUDA"))


@pytest.fixture(scope="session")
def device():
    """The torch device whose tensors the kernels take: the GPU, or the CPU for the emulator."""
    return torch.device("cuda" if DEVICE == "gpu" else "cpu")


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """plant(file, right, wrong): the ladder runs from a copy of the kernels in which one text is replaced."""

    def plant(file, right, wrong):
        for path in ladder.KERNELS.glob("*.cu"):
            shutil.copy(path, tmp_path)
        text = (tmp_path / file).read_text()
        assert right in text, f"{file} has no {right!r} to replace"
        (tmp_path / file).write_text(text.replace(right, wrong))
        monkeypatch.setattr(ladder, "KERNELS", tmp_path)

    return plant
