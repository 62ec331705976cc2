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
