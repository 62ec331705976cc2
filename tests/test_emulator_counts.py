"""What a watch counts: requests, sectors, bank conflicts, copies and barriers."""

from pathlib import Path

import numpy as np
import pytest

from fusedref.csrc import COMMON
from fusedref.emulator import SourceModule, gpuarray, watch

ROOT = Path(__file__).parents[1]
int32, float32 = np.int32, np.float32


def watched(source, *arguments, block, grid=(1, 1), shared=0, name="k"):
    with watch() as seen:
        SourceModule(source).get_function(name)(*arguments, block=block, grid=grid, shared=shared)
    assert seen.findings == []
    return seen.counters[name]


@pytest.mark.parametrize(
    ("index", "size", "sectors"),
    [
        ("i", 32, 4),
        ("i + 1", 33, 5),
        ("2 * i", 64, 8),
        ("8 * i", 256, 32),
        ("0", 1, 1),
        ("31 - i", 32, 4),
        ("i / 8", 4, 1),
        ("i ^ 5", 32, 4),
        ("32 * i", 1024, 32),
    ],
)
def test_sectors_of_a_load(index, size, sectors):
    source = f"""__global__ void k(float* y, const float* x) {{
    int i = threadIdx.x;
    float v = x[{index}];
    y[i] = v;
}}"""
    counters = watched(source, gpuarray.zeros(32, float32), gpuarray.zeros(size, float32), block=(32, 1, 1))
    assert (counters.global_load_requests, counters.global_load_sectors) == (1, sectors)
    assert counters.global_load_bytes_moved == 32 * sectors
    assert (counters.global_store_requests, counters.global_store_sectors) == (1, 4)
    assert counters.by_line["kernel.cu", 3].global_load_sectors == sectors
    assert counters.by_line["kernel.cu", 4].global_store_sectors == 4


@pytest.mark.parametrize(("kind", "width"), [("char", 1), ("short", 2), ("float", 4), ("float2", 8), ("float4", 16)])
def test_wide_loads_are_one_request(kind, width):
    source = f"__global__ void k({kind}* y, const {kind}* x) {{ y[threadIdx.x] = x[threadIdx.x]; }}"
    x, y = gpuarray.zeros(32 * width, np.int8), gpuarray.zeros(32 * width, np.int8)
    counters = watched(source, y, x, block=(32, 1, 1))
    assert (counters.global_load_requests, counters.global_load_sectors) == (1, width)
    assert counters.bytes_used == 2 * 32 * width


@pytest.mark.parametrize(
    ("index", "conflicts"),
    [
        ("i", 0),
        ("2 * i", 1),
        ("4 * i", 3),
        ("32 * i", 31),
        ("33 * i", 0),
        ("0", 0),
        ("i / 2", 0),
        ("i % 2 * 32", 1),
        ("i ^ 9", 0),
        ("3 * i", 0),
        ("16 * i", 15),
    ],
)
def test_bank_conflicts_of_a_load(index, conflicts):
    source = f"""__global__ void k(float* y) {{
    __shared__ float s[1056];
    int i = threadIdx.x;
    for (int j = i; j < 1056; j += 32) s[j] = j;
    __syncthreads();
    y[i] = s[{index}];
}}"""
    counters = watched(source, gpuarray.zeros(32, float32), block=(32, 1, 1))
    assert (counters.shared_load_requests, counters.shared_load_bank_conflicts) == (1, conflicts)
    assert (counters.shared_store_requests, counters.shared_store_bank_conflicts) == (33, 0)
    assert counters.barriers == 1


@pytest.mark.parametrize(("kind", "conflicts"), [("float2", 0), ("float4", 0)])
def test_wide_shared_accesses_are_served_by_parts_of_a_warp(kind, conflicts):
    source = f"""__global__ void k({kind}* y) {{
    __shared__ {kind} s[32];
    s[threadIdx.x] = {kind}();
    __syncthreads();
    y[threadIdx.x] = s[31 - threadIdx.x];
}}""".replace(f"{kind}()", f"make_{kind}({', '.join('1' * int(kind[-1]))})")
    counters = watched(source, gpuarray.zeros(128, float32), block=(32, 1, 1))
    assert (counters.shared_load_requests, counters.bank_conflicts) == (1, conflicts)


def test_lanes_reconverge_after_a_branch():
    source = """__global__ void k(int* y, const int* x) {
    int i = threadIdx.x, sum = 0;
    for (int tap = 0; tap < 3; tap++) {
        int at = i + tap - 1;
        if (at >= 0 && at < 32)
            sum += x[at];
    }
    y[i] = sum;
}"""
    counters = watched(source, gpuarray.zeros(32, int32), gpuarray.zeros(32, int32), block=(32, 1, 1))
    line = counters.by_line["kernel.cu", 6]
    assert (line.global_load_requests, line.global_load_sectors) == (3, 12)  # 31, 32 and 31 lanes, always 4 sectors


def test_lanes_with_loops_of_different_lengths():
    source = """__global__ void k(int* y, const int* x) {
    int sum = 0;
    for (int j = 0; j < threadIdx.x; j++)
        sum += x[j * 32 + threadIdx.x];
    y[threadIdx.x] = sum;
}"""
    counters = watched(source, gpuarray.zeros(32, int32), gpuarray.zeros(1024, int32), block=(32, 1, 1))
    assert counters.by_line["kernel.cu", 4].global_load_requests == 31
    assert counters.global_store_requests == 1


def test_atomics_and_launches_are_counted():
    source = "__global__ void k(int* y) { atomicAdd(y, 1); }"
    function = SourceModule(source).get_function("k")
    y = gpuarray.zeros(1, int32)
    with watch() as seen:
        function(y, block=(64, 1, 1), grid=(3, 1))
        function(y, block=(64, 1, 1), grid=(3, 1))
    assert (seen.counters["k"].atomic_requests, seen.counters["k"].launches) == (12, 2)
    assert y.get()[0] == 384


COPIES = """#include "ptx.cuh"
extern "C" __global__ void k(int* y, const int* x) {
    __shared__ __align__(128) int s[256];
    __shared__ uint64_t full;
    ptx::cp_async_16(&s[4 * threadIdx.x], &x[4 * threadIdx.x], threadIdx.x != 31);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    if (threadIdx.x == 0) { ptx::mbarrier_init(&full, 1); ptx::mbarrier_init_fence(); }
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::mbarrier_arrive_expect_tx(&full, 16);
        ptx::bulk_load(s + 252, x + 252, 16, &full);
        ptx::bulk_store(y, s, 896);
        ptx::bulk_commit();
        ptx::bulk_wait_read<0>();
    }
    ptx::mbarrier_wait(&full, 0);
    if (threadIdx.x < 32) y[224 + threadIdx.x] = 0;
}"""


def test_copies_do_not_count_as_stores():
    x, y = gpuarray.zeros(256, int32), gpuarray.zeros(256, int32)
    include = [str(COMMON)]
    with watch() as seen:
        SourceModule(COPIES, no_extern_c=True, include_dirs=include).get_function("k")(y, x, block=(64, 1, 1))
    assert seen.findings == []
    counters = seen.counters["k"]
    assert (counters.global_load_requests, counters.global_load_sectors) == (2, 32)
    assert counters.global_load_bytes_used == 63 * 16
    assert (counters.shared_load_requests, counters.shared_store_requests, counters.atomic_requests) == (0, 0, 0)
    assert counters.bulk_bytes == 16 + 896
    assert counters.bytes_moved == 32 * (32 + counters.global_store_sectors) + 912
    assert counters.by_line["kernel.cu", 12].bulk_bytes == 16
    assert counters.by_line["kernel.cu", 13].bulk_bytes == 896
