"""Kernels as tutorials show them, unmodified: results and counts are right, and nothing is found."""

from pathlib import Path

import numpy as np
import pytest

from fusedref.emulator import SourceModule, gpuarray, watch

SOURCE = (Path(__file__).parent / "samples.cu").read_text()
int32, float32 = np.int32, np.float32


@pytest.fixture(scope="module")
def module():
    return SourceModule(SOURCE)


@pytest.fixture(params=["watched", "unwatched", "in random order"])
def launch(request, module):
    """Return a function that launches a kernel by name and returns its counters, or None if unwatched."""

    def run(name, *arguments, **geometry):
        function = module.get_function(name)
        if request.param == "unwatched":
            function(*arguments, **geometry)
            return None
        with watch(seed=5 if request.param == "in random order" else 0) as seen:
            function(*arguments, **geometry)
        assert [finding.message for finding in seen.findings] == []
        return seen.counters[name]

    return run


X = np.random.default_rng(1).integers(-8, 8, 4096).astype(float32)


@pytest.mark.parametrize(
    ("name", "store_sectors", "conflicts"),
    [("copy", 4, 0), ("transposeNaive", 32, 0), ("transposeCoalesced", 4, 31), ("transposeNoBankConflicts", 4, 0)],
)
def test_copy_and_transpose(launch, name, store_sectors, conflicts):
    x = X.reshape(64, 64)
    y = gpuarray.empty((64, 64), float32)
    counters = launch(name, y, gpuarray.to_gpu(x), block=(32, 8, 1), grid=(2, 2))
    assert np.array_equal(y.get(), x if name == "copy" else x.T)
    if counters:
        assert (counters.global_load_requests, counters.global_load_sectors) == (128, 512)
        assert (counters.global_store_requests, counters.global_store_sectors) == (128, 128 * store_sectors)
        assert counters.bank_conflicts == 128 * conflicts


def test_tree_reduction(launch):
    y = gpuarray.empty(8, float32)
    launch("reduceTree", gpuarray.to_gpu(X), y, np.uint32(4000), block=(256, 1, 1), grid=(8, 1), shared=1024)
    assert y.get().sum() == X[:4000].sum()


def test_shuffle_reduction(launch):
    y = gpuarray.zeros(1, float32)
    launch("reduceShuffle", gpuarray.to_gpu(X), y, int32(4000), block=(256, 1, 1), grid=(4, 1))
    assert y.get()[0] == X[:4000].sum()


def test_last_block_reduction(launch):
    for _ in range(2):
        y = gpuarray.empty(16, float32)
        launch("reduceSinglePass", gpuarray.to_gpu(X), y, np.uint32(4000), block=(64, 1, 1), grid=(16, 1), shared=256)
        assert y.get()[0] == X[:4000].sum()


def test_matrix_product(launch):
    a, b = X[: 32 * 48].reshape(32, 48), X[: 48 * 64].reshape(48, 64)
    c = gpuarray.empty((32, 64), float32)
    counters = launch(
        "matrixMul", c, gpuarray.to_gpu(a), gpuarray.to_gpu(b), int32(48), int32(64), block=(16, 16, 1), grid=(4, 2)
    )
    assert np.array_equal(c.get(), a @ b)
    if counters:
        assert counters.bank_conflicts == 0
        assert counters.barriers == 8 * 3 * 2


def test_histogram(launch):
    data = (np.arange(5000) ** 2 % 251).astype(np.uint8)
    bins = gpuarray.zeros(256, np.uint32)
    launch("histogram", gpuarray.to_gpu(data), bins, int32(5000), block=(96, 1, 1), grid=(5, 1))
    assert np.array_equal(bins.get(), np.bincount(data, minlength=256))


def test_scan(launch):
    y = gpuarray.empty(512, float32)
    launch("scan", y, gpuarray.to_gpu(X[:512]), int32(512), block=(512, 1, 1), shared=4096)
    assert np.array_equal(y.get(), np.cumsum(X[:512]))


def test_saxpy(launch):
    y = gpuarray.to_gpu(X)
    launch("saxpy", int32(4096), float32(3), gpuarray.to_gpu(X), y, block=(128, 1, 1), grid=(7, 1))
    assert np.array_equal(y.get(), 4 * X)
