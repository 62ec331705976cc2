"""wgmma on the emulator: the two ways in which b lies in shared memory, and the copies that fill part of 16 bytes."""

import numpy as np
import pytest

from fusedref import emulator
from fusedref.csrc import COMMON
from fusedref.emulator import driver, watch

# One warpgroup: d[64, N] = a[64, 16] b[16, N].
WGMMA = r"""
#include "ptx.cuh"
extern "C" __global__ void multiply(const uint32_t* a, const uint4* rows, float* d)
{
    __shared__ __align__(128) uint4 tile[64];
    if (threadIdx.x < 64) tile[threadIdx.x] = rows[threadIdx.x];
    ptx::fence_async_shared();
    __syncthreads();
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, member = threadIdx.x % 4;
    uint32_t f[4];
    for (int i = 0; i < 4; i++) f[i] = a[(row + i % 2 * 8) * 8 + i / 2 * 4 + member];
    float sum[COLUMNS / 2];
    ptx::wgmma_fence();
    ptx::wgmma_f16(sum, f[0], f[1], f[2], f[3], FACTOR, false);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    for (int j = 0; j < COLUMNS / 8; j++)
        for (int i = 0; i < 4; i++)
            d[(row + i / 2 * 8) * COLUMNS + j * 8 + member * 2 + i % 2] = sum[j * 4 + i];
}
"""


@pytest.mark.parametrize("columns", [8, 24])
@pytest.mark.parametrize("factor", ["Columns", "Windows"])
def test_a_product(factor, columns):
    rng = np.random.default_rng(columns)
    a, rows = (rng.integers(-8, 9, shape).astype(np.float16) for shape in ((64, 16), (64, 8)))
    if factor == "Columns":  # 8 k in a row, the second half of k 32 rows further on
        text, b = (
            "ptx::Columns(tile).at(32, 512)",
            np.concatenate([rows[2 : 2 + columns], rows[34 : 34 + columns]], 1).T,
        )
    else:  # 8 columns in a row, the next 8 from the next row on
        text = "ptx::Windows(tile).at(32)"
        b = np.stack([rows[2 + k : 2 + k + columns // 8].reshape(-1) for k in range(16)])
    source = WGMMA.replace("COLUMNS", str(columns)).replace("FACTOR", text)
    module = emulator.SourceModule(source, no_extern_c=True, include_dirs=[str(COMMON)])
    d = np.empty((64, columns), np.float32)
    with watch() as seen:
        module.get_function("multiply")(driver.In(a), driver.In(rows), driver.Out(d), block=(128, 1, 1))
    assert [finding.message for finding in seen.findings] == []
    assert np.array_equal(d, a.astype(np.float32) @ b.astype(np.float32))


# The same with a in shared memory: row m is row m + 1 of `left`, its second half row m + 67.
SHARED_FACTORS = r"""
#include "ptx.cuh"
extern "C" __global__ void multiply(const uint4* left, const uint4* right, float* d)
{
    __shared__ __align__(128) uint4 a[132], b[2 * COLUMNS + 2];
    for (int i = threadIdx.x; i < 132; i += 128) a[i] = left[i];
    for (int i = threadIdx.x; i < 2 * COLUMNS + 2; i += 128) b[i] = right[i];
    ptx::fence_async_shared();
    __syncthreads();
    float sum[COLUMNS / 2];
    ptx::wgmma_fence();
    for (int i = 0; i < 2; i++)
        ptx::wgmma_TYPE(sum, ptx::Columns(a).at(16, 66 * 16), ptx::Columns(b).at(32, COLUMNS * 16), i > 0);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, member = threadIdx.x % 4;
    for (int j = 0; j < COLUMNS / 8; j++)
        for (int i = 0; i < 4; i++)
            d[(row + i / 2 * 8) * COLUMNS + j * 8 + member * 2 + i % 2] = sum[j * 4 + i];
}
"""


@pytest.mark.parametrize(("kind", "columns"), [("f16", 64), ("f16", 128), ("bf16", 64), ("bf16", 128)])
def test_a_product_of_two_factors_in_shared_memory(kind, columns):
    rng = np.random.default_rng(columns)
    a, b = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((132, 8), (2 * columns + 2, 8)))
    # A bfloat16 is the upper half of a float32.
    given = [t.astype(np.float16) if kind == "f16" else (t.view(np.uint32) >> 16).astype(np.uint16) for t in (a, b)]
    source = SHARED_FACTORS.replace("COLUMNS", str(columns)).replace("TYPE", kind)
    module = emulator.SourceModule(source, no_extern_c=True, include_dirs=[str(COMMON)])
    d = np.empty((64, columns), np.float32)
    with watch() as seen:
        module.get_function("multiply")(*map(driver.In, given), driver.Out(d), block=(128, 1, 1))
    assert [finding.message for finding in seen.findings] == []
    left = np.concatenate([a[1:65], a[67:131]], 1)
    right = np.concatenate([b[2 : 2 + columns], b[2 + columns : 2 + 2 * columns]], 1)
    assert np.array_equal(d, 2 * left @ right.T)


PARTLY = r"""
#include "ptx.cuh"
extern "C" __global__ void copy(const float* x, float* y)
{
    __shared__ __align__(16) float tile[128];
    ptx::cp_async_16_partly(&tile[4 * threadIdx.x], &x[4 * threadIdx.x], threadIdx.x == 31 ? 4 : 16);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncwarp();
    for (int i = 0; i < 4; i++) y[32 * i + threadIdx.x] = tile[32 * i + threadIdx.x];
}
"""


def test_a_copy_of_part_of_16_bytes_reads_no_further_and_writes_zeros():
    x, y = np.arange(1, 126, dtype=np.float32), np.empty(128, np.float32)
    module = emulator.SourceModule(PARTLY, no_extern_c=True, include_dirs=[str(COMMON)])
    with watch() as seen:
        module.get_function("copy")(driver.In(x), driver.Out(y), block=(32, 1, 1))
    assert [finding.message for finding in seen.findings] == []
    assert np.array_equal(y, [*x, 0, 0, 0])
