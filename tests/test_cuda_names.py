"""fusedref.cuda: whose names it gives, and that importing it loads nothing."""

import threading
from pathlib import Path

import pytest

from fusedref import cuda
from fusedref.cuda import backend
from tests import processes

ROOT = str(Path(__file__).parents[1])


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(backend, "_gpu_count", lambda: 0)
    monkeypatch.delenv("FUSEDREF_DEVICE", raising=False)


@pytest.fixture
def fake_gpu(monkeypatch):
    monkeypatch.setattr(backend, "_gpu_count", lambda: 2)
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv("FUSEDREF_DEVICE", raising=False)


def test_names_without_a_gpu(no_gpu):
    from fusedref import emulator

    assert cuda.device() == "emulator"
    assert cuda.SourceModule is emulator.SourceModule
    assert cuda.drv is emulator.driver
    assert cuda.gpuarray is emulator.gpuarray


def test_environment_decides(fake_gpu, monkeypatch):
    assert cuda.device() == "gpu"
    monkeypatch.setenv("FUSEDREF_DEVICE", "emulator")
    assert cuda.device() == "emulator"
    monkeypatch.setenv("FUSEDREF_DEVICE", "gpu")
    assert cuda.device() == "gpu"


def test_missing_gpu(no_gpu, monkeypatch):
    monkeypatch.setenv("FUSEDREF_DEVICE", "gpu")
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="FUSEDREF_DEVICE=gpu, but PyCUDA is not installed"):
        cuda.device()
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(RuntimeError, match="FUSEDREF_DEVICE=gpu, but no GPU was found"):
        cuda.device()
    with pytest.raises(RuntimeError, match="no GPU was found"):
        cuda.SourceModule  # noqa: B018


def test_unknown_device(monkeypatch):
    monkeypatch.setenv("FUSEDREF_DEVICE", "tpu")
    with pytest.raises(ValueError, match="FUSEDREF_DEVICE is 'tpu'; it must be 'gpu' or 'emulator'"):
        cuda.device()


def test_other_names():
    with pytest.raises(AttributeError, match="has no attribute 'Stream'"):
        cuda.Stream  # noqa: B018


def test_import_loads_nothing():
    processes.python("import sys, fusedref.cuda; assert not {'pycuda', 'fusedref.emulator'} & set(sys.modules)")


@pytest.mark.gpu
def test_names_with_a_gpu():
    import numpy as np
    import pycuda.compiler
    import torch

    assert cuda.SourceModule is pycuda.compiler.SourceModule
    kernel = "__global__ void k(float* x) { x[threadIdx.x] *= 2; }"
    x = torch.arange(4.0, device="cuda")
    cuda.SourceModule(kernel).get_function("k")(np.intp(x.data_ptr()), block=(4, 1, 1))
    assert x.tolist() == [0, 2, 4, 6]

    results = []

    def work():
        array = cuda.gpuarray.to_gpu(np.ones(4, np.float32))
        cuda.SourceModule(kernel).get_function("k")(array, block=(4, 1, 1))
        results.append(array.get().tolist())
        del array

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [[2, 2, 2, 2]]
