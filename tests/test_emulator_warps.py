"""Threads that work together: shuffles, votes, barriers, fences and atomics."""

import numpy as np
import pytest

from fusedref.emulator import gpuarray
from tests.emulated import result, run

int32, float32 = np.int32, np.float32


def test_shuffles():
    source = """
    __global__ void k(int* out) {
        int i = threadIdx.x, n = 32;
        out[0 * n + i] = __shfl_sync(0xffffffff, i, 5);
        out[1 * n + i] = __shfl_sync(0xffffffff, i, 9, 8);
        out[2 * n + i] = __shfl_up_sync(0xffffffff, i, 3);
        out[3 * n + i] = __shfl_down_sync(0xffffffff, i, 3, 16);
        out[4 * n + i] = __shfl_xor_sync(0xffffffff, i, 7);
        out[5 * n + i] = (int)__shfl_down_sync(0xffffffff, (double)i * 2.5, 1);
    }"""
    y = result(source, (6, 32), block=(32, 1, 1))
    i = np.arange(32)
    assert np.array_equal(y[0], np.full(32, 5))
    assert np.array_equal(y[1], i // 8 * 8 + 1)
    assert np.array_equal(y[2], np.where(i < 3, i, i - 3))
    assert np.array_equal(y[3], np.where(i % 16 + 3 > 15, i, i + 3))
    assert np.array_equal(y[4], i ^ 7)
    assert np.array_equal(y[5], (np.where(i == 31, i, i + 1) * 2.5).astype(int))


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("kind", ["int", "unsigned", "long long", "float", "double"])
def test_shuffles_within_parts_of_a_warp(kind, width):
    source = f"""
    __global__ void k({kind}* out) {{
        int i = threadIdx.x, n = 32, w = {width};
        {kind} v = i;
        out[0 * n + i] = __shfl_sync(0xffffffff, v, 5, w);
        out[1 * n + i] = __shfl_up_sync(0xffffffff, v, 3, w);
        out[2 * n + i] = __shfl_down_sync(0xffffffff, v, 3, w);
        out[3 * n + i] = __shfl_xor_sync(0xffffffff, v, 3, w);
    }}"""
    dtype = {"int": np.int32, "unsigned": np.uint32, "long long": np.int64, "float": np.float32, "double": np.float64}
    y = result(source, (4, 32), dtype[kind], block=(32, 1, 1))
    i = np.arange(32)
    first = i // width * width
    assert np.array_equal(y[0], first + 5 % width)
    assert np.array_equal(y[1], np.where(i - 3 < first, i, i - 3))
    assert np.array_equal(y[2], np.where(i + 3 >= first + width, i, i + 3))
    # xor reads lanes of earlier parts, but none of later ones
    assert np.array_equal(y[3], np.where(i ^ 3 >= first + width, i, i ^ 3))


def test_reductions_of_part_of_a_warp():
    source = """
    __global__ void k(unsigned* out) {
        unsigned i = threadIdx.x, all = 0xffffffff;
        int same, n = 32;
        unsigned odd = i & 1 ? 0xaaaaaaaa : 0x55555555;
        out[0 * n + i] = __reduce_add_sync(odd, i);
        out[1 * n + i] = (unsigned)__reduce_add_sync(all, -(int)i);
        out[2 * n + i] = __reduce_min_sync(odd, i + 5);
        out[3 * n + i] = __reduce_max_sync(odd, i + 5);
        out[4 * n + i] = (unsigned)__reduce_max_sync(all, (int)i - 40);
        out[5 * n + i] = __reduce_and_sync(all, i | 0x70);
        out[6 * n + i] = __reduce_or_sync(odd, 1u << i);
        out[7 * n + i] = __reduce_xor_sync(all, i == 3 ? 9u : 5u);
        out[8 * n + i] = __match_any_sync(odd, i / 4);
        out[9 * n + i] = __match_all_sync(odd, i & 1, &same) + same;
        out[10 * n + i] = __match_any_sync(all, i < 7 ? 1.5 : -0.0);
        out[11 * n + i] = __match_all_sync(all, (long long)i << 40, &same) + same;
    }"""
    y = result(source, (12, 32), np.uint32, block=(32, 1, 1))
    i = np.arange(32)
    odd, mine = i % 2, np.where(i % 2, 0xAAAAAAAA, 0x55555555)
    assert np.array_equal(y[0], np.where(odd, 256, 240))
    assert np.all(y[1].view(int32) == -496)
    assert np.array_equal(y[2], np.where(odd, 6, 5))
    assert np.array_equal(y[3], np.where(odd, 36, 35))
    assert np.all(y[4].view(int32) == -9)
    assert np.all(y[5] == 0x70)
    assert np.array_equal(y[6], mine)
    assert np.all(y[7] == 5 ^ 9)
    assert np.array_equal(y[8], mine & (0xF << i // 4 * 4))
    assert np.array_equal(y[9], mine + 1)
    assert np.array_equal(y[10], np.where(i < 7, 0x7F, 0xFFFFFF80))
    assert np.all(y[11] == 0)


def test_votes_matches_and_reductions():
    source = """
    __global__ void k(unsigned* out) {
        unsigned i = threadIdx.x, all = 0xffffffff;
        int same;
        out[0 * 32 + i] = __ballot_sync(all, i % 3 == 0);
        out[1 * 32 + i] = __all_sync(all, i < 32) * 2 + __all_sync(all, i < 31);
        out[2 * 32 + i] = __any_sync(all, i == 40) * 2 + __any_sync(all, i == 31);
        out[3 * 32 + i] = __match_any_sync(all, i / 8);
        out[4 * 32 + i] = __match_all_sync(all, 5, &same) + same;
        out[5 * 32 + i] = __reduce_add_sync(all, i);
        out[6 * 32 + i] = (unsigned)__reduce_min_sync(all, (int)i - 7);
        out[7 * 32 + i] = __reduce_xor_sync(all, 1u << i);
        out[8 * 32 + i] = i < 16 ? __ballot_sync(0x0000ffff, 1) : __ballot_sync(0xffff0000, i & 1);
    }"""
    y = result(source, (9, 32), np.uint32, block=(32, 1, 1))
    assert np.all(y[0] == sum(1 << i for i in range(0, 32, 3)))
    assert np.all(y[1] == 2)
    assert np.all(y[2] == 1)
    assert list(y[3][::8]) == [0xFF, 0xFF00, 0xFF0000, 0xFF000000]
    assert np.all(y[4] == 0)
    assert np.all(y[5] == 496)
    assert np.all(y[6].view(int32) == -7)
    assert np.all(y[7] == 0xFFFFFFFF)
    assert np.all(y[8][:16] == 0xFFFF)
    assert np.all(y[8][16:] == 0xAAAA0000)


def test_partial_last_warp():
    source = """
    __global__ void k(int* out) {
        int v = threadIdx.x;
        for (int d = 16; d > 0; d /= 2) v += __shfl_down_sync(0xffffffff, v, d);
        if (threadIdx.x % 32 == 0) out[threadIdx.x / 32] = __popc(__ballot_sync(1, 1)) * 1000 + v;
        __syncwarp();
    }"""
    assert result(source, 2, block=(40, 1, 1))[0] == 1496


def test_barriers_that_count():
    source = """
    __global__ void k(int* out) {
        out[0 * 40 + threadIdx.x] = __syncthreads_count(threadIdx.x % 3 == 0);
        out[1 * 40 + threadIdx.x] = __syncthreads_and(threadIdx.x < 40);
        out[2 * 40 + threadIdx.x] = __syncthreads_or(threadIdx.x == 40);
    }"""
    y = result(source, (3, 40), block=(40, 1, 1))
    assert np.all(y[0] == 14)
    assert np.all(y[1] == 1)
    assert np.all(y[2] == 0)


@pytest.mark.parametrize(
    ("operation", "start", "values", "expected"),
    [
        ("atomicAdd(a, v)", 5, [1, 2, 3], 11),
        ("atomicSub(a, v)", 5, [1, 2, 3], -1),
        ("atomicMin(a, v)", 5, [7, -2, 3], -2),
        ("atomicMax(a, v)", 5, [7, -2, 3], 7),
        ("atomicAnd(a, v)", 7, [3, 6, 7], 2),
        ("atomicOr(a, v)", 0, [1, 4, 4], 5),
        ("atomicXor(a, v)", 1, [1, 4, 2], 6),
        ("atomicInc((unsigned*)a, 3u)", 2, [0, 0, 0], 1),
        ("atomicDec((unsigned*)a, 3u)", 1, [0, 0, 0], 2),
    ],
)
def test_atomics(operation, start, values, expected):
    source = f"__global__ void k(int* a, const int* in) {{ int v = in[threadIdx.x]; {operation}; }}"
    a = gpuarray.to_gpu(np.array([start], int32))
    run(source, "k", a, gpuarray.to_gpu(np.array(values, int32)), block=(3, 1, 1))
    assert a.get()[0] == expected


@pytest.mark.parametrize("dtype", ["float", "double", "unsigned", "unsigned long long"])
def test_atomic_add_between_blocks(dtype):
    kind = {"float": float32, "double": np.float64, "unsigned": np.uint32, "unsigned long long": np.uint64}[dtype]
    source = f"__global__ void k({dtype}* a) {{ atomicAdd(a, ({dtype})1); }}"
    assert result(source, 1, kind, block=(128, 1, 1), grid=(200, 1))[0] == 25600


def test_compare_and_swap():
    source = """
    __global__ void k(int* out, int* lock, float* f) {
        while (atomicCAS(lock, 0, 1) != 0) {}
        out[0] += 1;
        __threadfence();
        atomicExch(lock, 0);
        atomicExch(f, 2.5f);
    }"""
    f = gpuarray.zeros(1, float32)
    assert result(source, 1, int32, gpuarray.zeros(1, int32), f, block=(64, 1, 1), grid=(8, 1))[0] == 512
    assert f.get()[0] == 2.5


@pytest.mark.parametrize("fence", ["__threadfence_block", "__threadfence", "__threadfence_system"])
def test_fences_publish(fence):
    source = f"""
    __global__ void k(volatile int* out, volatile int* data) {{
        if (threadIdx.x == 0) {{ data[0] = 7; {fence}(); data[1] = 1; }}
        if (threadIdx.x == 32) {{ while (!data[1]) {{}} {fence}(); out[0] = data[0]; }}
    }}"""
    assert result(source, 1, int32, gpuarray.zeros(2, int32), block=(64, 1, 1))[0] == 7


@pytest.mark.parametrize(
    ("operation", "start", "value", "expected"),
    [
        ("atomicAdd", -np.inf, 1, -np.inf),
        ("atomicAdd", -np.inf, np.inf, np.nan),
        ("atomicAdd", 1, np.nan, np.nan),
        ("atomicAdd", np.nan, 1, np.nan),
        ("atomicExch", np.nan, 2, 2),
        ("atomicExch", 1, np.nan, np.nan),
        ("atomicAdd", -0.0, 0.0, 0.0),
        ("atomicAdd", 3e38, 3e38, np.inf),
    ],
)
def test_atomics_on_nan_and_infinity(operation, start, value, expected):
    y = gpuarray.to_gpu(np.array([start], float32))
    run(f"__global__ void k(float* y, float v) {{ {operation}(y, v); }}", "k", y, float32(value))
    assert np.array_equal(y.get(), [float32(expected)], equal_nan=True)
