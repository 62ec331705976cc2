"""launch: torch tensors as a kernel's arguments, on the emulator or the card."""

import numpy as np
import pytest
import torch

from fusedref import validate
from fusedref.cuda.compile import source_module
from fusedref.cuda.launch import Out, launch
from fusedref.problem import SMALL_73
from kernels import ladder

SOURCE = """
extern "C" __global__ void add(const float* x, const float* or_null, float number, long long offset, float* y, int size)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) y[i] = x[i] + (or_null ? or_null[i] : 0.0f) + number + offset;
}

extern "C" __global__ void half_of(const float* x, float* y, int size)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size / 2) y[i] = x[i];
}

extern "C" __global__ void half_in_place(const float* x, int size)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size / 2) const_cast<float*>(x)[i] = 7.0f;
}

extern "C" __global__ void reversed(const int* x, int* y)
{
    extern __shared__ int tile[];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}
"""


@pytest.fixture
def module(device):
    return source_module(SOURCE, device=device)


def test_tensors_null_and_numbers(device, module):
    x, y = torch.arange(300.0, device=device), torch.empty(300, device=device)
    grid = {"grid": (2, 1, 1), "block": (256, 1, 1)}
    numbers = np.float32(0.5), np.int64(1000)
    launch(module.get_function("add"), x, None, *numbers, Out(y), np.int32(300), **grid)
    assert torch.equal(y, x + 1000.5)
    launch(module.get_function("add"), x, x, *numbers, Out(y), np.int32(300), **grid)
    assert torch.equal(y, 2 * x + 1000.5)


def test_dynamic_shared_memory_and_other_dtypes(device, module):
    x, y = (torch.arange(64, dtype=torch.int32, device=device) for _ in range(2))
    launch(module.get_function("reversed"), x, Out(y), grid=(1, 1, 1), block=(64, 1, 1), shared=64 * 4)
    assert torch.equal(y, x.flip(0))


def test_single_element_of_a_strided_tensor(device, module):
    x = torch.arange(20.0, device=device).view(4, 5)[1:2, 3]  # contiguous, though its stride is 5
    y = torch.zeros(4, 5, device=device)[:1, 1]
    assert x.stride() == y.stride() == (5,)
    numbers = np.float32(0.5), np.int64(0)
    launch(module.get_function("add"), x, None, *numbers, Out(y), np.int32(1), grid=(1, 1, 1), block=(32, 1, 1))
    assert y.item() == 8.5


def test_freed_tensor(device, module):
    x, y = torch.ones(8, device=device), torch.ones(8, device=device)
    x.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"must have memory, got one of \(8,\) that was freed"):
        launch(module.get_function("half_of"), x, Out(y), np.int32(8), grid=(1, 1, 1), block=(32, 1, 1))


def test_unwritten_output_is_nan(device, module):
    if device.type == "cuda":
        pytest.skip("a card's memory keeps what it held")
    x, y = torch.ones(10), torch.zeros(10)
    launch(module.get_function("half_of"), x, Out(y), np.int32(10), grid=(1, 1, 1), block=(32, 1, 1))
    assert (y[:5] == 1).all()
    assert y[5:].isnan().all()


def test_a_change_without_permission_shows(device, module):
    x = torch.arange(10.0, device=device)
    launch(module.get_function("half_in_place"), x, np.int32(10), grid=(1, 1, 1), block=(32, 1, 1))
    assert x.tolist() == [7, 7, 7, 7, 7, 5, 6, 7, 8, 9]


def test_an_input_that_is_an_output_too(device, module):
    x = torch.arange(10.0, device=device)
    numbers = np.float32(0.5), np.int64(0)
    launch(module.get_function("add"), x, None, *numbers, Out(x), np.int32(10), grid=(1, 1, 1), block=(32, 1, 1))
    assert torch.equal(x, torch.arange(10.0, device=device) + 0.5)


def test_a_rung_that_changes_its_input_is_refused(device, plant):
    plant("04_fused.cu", "    return (normalised", "    const_cast<float*>(weight)[0] = 0.0f;\n    return (normalised")
    report = validate(ladder.fused, SMALL_73, device=device)
    assert not report.ok
    assert "changes its input weight" in str(report)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.ones(4), 3), TypeError, "tensors, None and NumPy scalars, got 3"),
        ((torch.ones(4), 0.5), TypeError, "tensors, None and NumPy scalars, got 0.5"),
        ((torch.ones(4, 4).T[:2],), ValueError, r"must be contiguous, got strides \(1, 4\)"),
        ((Out(torch.ones(4, 4)[:, 0]),), ValueError, r"must be contiguous, got strides \(4,\)"),
        ((torch.ones(4), torch.ones(4, device="meta")), ValueError, "on one device, got cpu and meta"),
        ((torch.ones(4, device="meta"),), ValueError, "on a CPU or CUDA device, got meta"),
        ((np.int32(3), None), ValueError, "at least one tensor"),
    ],
)
def test_wrong_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        launch(None, *arguments, grid=(1, 1, 1), block=(1, 1, 1))


def test_block_too_large(device, module):
    x, y = torch.ones(8, device=device), torch.ones(8, device=device)
    with pytest.raises(Exception, match=r"invalid|too large|1024|2048"):
        launch(module.get_function("half_of"), x, Out(y), np.int32(8), grid=(1, 1, 1), block=(2048, 1, 1))


@pytest.mark.gpu
def test_public_call_of_pycuda(module, monkeypatch):
    """The fall-back for a PyCUDA without the private entry."""

    class Public:
        def __init__(self, function):
            self.prepare = function.prepare
            self.prepared_async_call = function.prepared_async_call

    x, y = torch.arange(300.0, device="cuda"), torch.empty(300, device="cuda")
    add = Public(module.get_function("add"))
    arguments = (x, None, np.float32(0.5), np.int64(1), Out(y), np.int32(300))
    launch(add, *arguments, grid=(2, 1, 1), block=(256, 1, 1))
    assert torch.equal(y, x + 1.5)
