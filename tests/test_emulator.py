"""The emulator: what CUDA C it runs, what PyCUDA's names do on it, and how kernels that go wrong end."""

import os
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fusedref.emulator import SourceModule, gpuarray
from fusedref.emulator import driver as drv
from fusedref.emulator.compile import build, library
from fusedref.emulator.compile.frontend import Frontend
from tests.processes import python

KERNELS = Path(__file__).parents[1] / "kernels"
int32, float32 = np.int32, np.float32


def run(source, name, *arguments, block=(1, 1, 1), grid=(1, 1), shared=0, **options):
    SourceModule(source, **options).get_function(name)(*arguments, block=block, grid=grid, shared=shared)


def result(source, size, dtype=np.int32, *arguments, name="k", **options):
    """What the kernel k(out, ...) writes to an array of ``size`` elements that starts as zeros."""
    out = gpuarray.zeros(size, dtype)
    run(source, name, out, *arguments, **options)
    return out.get()


# ---------------------------------------------------------------------------------------------------- the language


@pytest.mark.parametrize(
    ("block", "grid"),
    [
        ((7, 1, 1), (3, 1)),
        ((4, 3, 2), (2, 3, 2)),
        ((1, 1, 64), (1, 5)),
        ((1024, 1, 1), (2, 1)),
        ((33, 31, 1), (1, 1, 3)),
    ],
)
def test_every_thread_of_every_block_runs_once_and_knows_its_place(block, grid):
    source = """
    __global__ void k(int* out) {
        int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
        int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
        int index = block * (blockDim.x * blockDim.y * blockDim.z) + thread;
        atomicAdd(&out[index], index + 1);
    }"""
    size = int(np.prod(block) * np.prod(grid))
    assert np.array_equal(result(source, size, block=block, grid=grid), np.arange(1, size + 1))


def test_static_shared_memory_and_barriers():
    source = """
    #define N 16
    __global__ void k(float* out, const float* in) {
        __shared__ float tile[N][N + 1], other;
        tile[threadIdx.y][threadIdx.x] = in[threadIdx.y * N + threadIdx.x];
        if (threadIdx.x == 3 && threadIdx.y == 2) other = 7;
        __syncthreads();
        out[threadIdx.y * N + threadIdx.x] = tile[threadIdx.x][threadIdx.y] + other;
    }"""
    x = np.arange(256, dtype=float32).reshape(16, 16)
    y = result(source, (16, 16), float32, gpuarray.to_gpu(x), block=(16, 16, 1))
    assert np.array_equal(y, x.T + 7)


@pytest.mark.parametrize(
    "declaration",
    [
        "extern __shared__ float s[];",
        "extern __shared__ __align__(16) float s[];",
        "extern __shared__ unsigned char raw[]; float* s = (float*)raw;",
        "extern volatile __shared__ float s[];",
        "extern __shared__ float2 pairs[]; float* s = (float*)pairs;",
    ],
)
def test_dynamic_shared_memory(declaration):
    source = f"""
    __global__ void k(float* out) {{
        {declaration}
        s[threadIdx.x] = threadIdx.x;
        __syncthreads();
        out[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];
    }}"""
    assert np.array_equal(result(source, 100, float32, block=(100, 1, 1), shared=400), np.arange(100)[::-1])


def test_shared_memory_declared_outside_functions_and_in_templates():
    source = """
    __shared__ int everywhere[4];
    extern __shared__ int dynamic[];
    template <typename T, int N> __device__ T turn(T v) {
        __shared__ T swap[N];
        swap[threadIdx.x] = v;
        __syncthreads();
        return swap[N - 1 - threadIdx.x];
    }
    extern "C" __global__ void k(int* out) {
        everywhere[threadIdx.x] = threadIdx.x * 10;
        dynamic[threadIdx.x] = 100;
        __syncthreads();
        out[threadIdx.x] = everywhere[3 - threadIdx.x] + turn<int, 4>(threadIdx.x) + dynamic[0];
    }"""
    y = result(source, 4, block=(4, 1, 1), shared=16, no_extern_c=True)
    assert list(y) == [133, 122, 111, 100]


def test_constant_and_device_variables():
    source = """
    __constant__ float weights[2][3] = {{1, 2, 3}, {4, 5, 6}};
    __constant__ int bias, twice = 2;
    __device__ unsigned int counter;
    __device__ const float table[] = {10, 20};
    __global__ void k(float* out) {
        atomicAdd(&counter, 1u);
        out[threadIdx.x] = weights[1][threadIdx.x] * twice + bias + table[1];
    }"""
    module = SourceModule(source)
    address, size = module.get_global("weights")
    assert size == 24
    assert list(drv.from_device(address, 6, float32)) == [1, 2, 3, 4, 5, 6]
    drv.memcpy_htod(address, np.arange(6, dtype=float32))
    drv.memcpy_htod(module.get_global("bias")[0], int32(100))
    out = gpuarray.zeros(3, float32)
    module.get_function("k")(out, block=(3, 1, 1), grid=(2, 1))
    assert list(out.get()) == [126, 128, 130]
    assert drv.from_device(module.get_global("counter")[0], 1, np.uint32)[0] == 6
    with pytest.raises(drv.LogicError, match="cuModuleGetGlobal failed: named symbol not found"):
        module.get_global("nothing")


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
def test_atomic_add_loses_nothing_between_blocks(dtype):
    kind = {"float": float32, "double": np.float64, "unsigned": np.uint32, "unsigned long long": np.uint64}[dtype]
    source = f"__global__ void k({dtype}* a) {{ atomicAdd(a, ({dtype})1); }}"
    assert result(source, 1, kind, block=(128, 1, 1), grid=(200, 1))[0] == 25600


def test_compare_and_swap_and_exchange():
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


def test_reductions_and_matches_of_a_part_of_a_warp():
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
    assert np.array_equal(y[0], np.where(odd, 256, 240)) and np.all(y[1].view(int32) == -496)
    assert np.array_equal(y[2], np.where(odd, 6, 5)) and np.array_equal(y[3], np.where(odd, 36, 35))
    assert np.all(y[4].view(int32) == -9) and np.all(y[5] == 0x70) and np.array_equal(y[6], mine)
    assert np.all(y[7] == 5 ^ 9)
    assert np.array_equal(y[8], mine & (0xF << i // 4 * 4)) and np.array_equal(y[9], mine + 1)
    assert np.array_equal(y[10], np.where(i < 7, 0x7F, 0xFFFFFF80)) and np.all(y[11] == 0)


@pytest.mark.parametrize("kind", ["int", "float", "unsigned char", "double", "float2", "float4", "int4"])
def test_loads_and_stores_with_hints_for_the_caches(kind):
    loads = ("__ldg", "__ldca", "__ldcg", "__ldcs", "__ldlu", "__ldcv")
    stores = ("__stwb", "__stcg", "__stcs", "__stwt")
    pairs = [(load, stores[i % len(stores)]) for i, load in enumerate(loads)]
    lines = "".join(
        f"    {store}(y + {i} * 32 + threadIdx.x, {load}(x + threadIdx.x));\n" for i, (load, store) in enumerate(pairs)
    )
    bytes_each = {"int": 4, "float": 4, "unsigned char": 1, "double": 8, "float2": 8}.get(kind, 16)
    x = np.random.default_rng(1).integers(0, 100, 32 * bytes_each).astype(np.uint8)
    source = f"__global__ void k({kind}* y, const {kind}* x) {{\n{lines}}}"
    y = result(source, (len(pairs), x.size), np.uint8, gpuarray.to_gpu(x), block=(32, 1, 1))
    assert np.array_equal(y, np.tile(x, (len(pairs), 1)))


def test_hints_take_braces_and_are_checked():
    source = "__global__ void k(float2* y) {\n    __stcs(&y[threadIdx.x], float2{1.0f, 2.0f});\n}"
    assert np.array_equal(result(source, (4, 2), float32, block=(4, 1, 1)), np.tile(float32([1, 2]), (4, 1)))
    finding = refused(source, gpuarray.zeros(6, float32), block=(4, 1, 1))
    assert (finding.argument, finding.element, finding.line) == ("y", 3, 2)


@pytest.mark.parametrize("fence", ["__threadfence_block", "__threadfence", "__threadfence_system"])
def test_fences_publish_to_who_looks(fence):
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
def test_atomics_on_what_is_not_finite(operation, start, value, expected):
    y = gpuarray.to_gpu(np.array([start], float32))
    run(f"__global__ void k(float* y, float v) {{ {operation}(y, v); }}", "k", y, float32(value))
    assert np.array_equal(y.get(), [float32(expected)], equal_nan=True)


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
    assert np.all(y[1] == 2) and np.all(y[2] == 1)
    assert list(y[3][::8]) == [0xFF, 0xFF00, 0xFF0000, 0xFF000000]
    assert np.all(y[4] == 0) and np.all(y[5] == 496) and np.all(y[6].view(int32) == -7)
    assert np.all(y[7] == 0xFFFFFFFF)
    assert np.all(y[8][:16] == 0xFFFF) and np.all(y[8][16:] == 0xAAAA0000)


def test_the_last_warp_may_be_partial():
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
    assert np.all(y[0] == 14) and np.all(y[1] == 1) and np.all(y[2] == 0)


def test_vector_types():
    source = """
    __global__ void k(float4* out, const float4* in, const float3* three, const int2* two) {
        float4 v = in[threadIdx.x];
        float3 t = three[threadIdx.x];
        int2 d = two[0];
        out[threadIdx.x] = make_float4(v.w, t.z, (float)d.y, v.x);
    }"""
    x, t = np.arange(8, dtype=float32), np.arange(10, 16, dtype=float32)
    y = result(
        source,
        8,
        float32,
        gpuarray.to_gpu(x),
        gpuarray.to_gpu(t),
        gpuarray.to_gpu(np.array([1, 9], int32)),
        block=(2, 1, 1),
    )
    assert list(y) == [3, 12, 9, 0, 7, 15, 9, 4]


def test_multiply_adds_are_contracted_as_nvcc_contracts_them():
    if not build.has_fma() and sys.platform != "darwin":
        pytest.skip("this processor has no FMA instruction")
    source = """
    __global__ void k(float* out, float a, float b, float c) {
        out[0] = a * b + c;
        out[1] = __fadd_rn(__fmul_rn(a, b), c);
        out[2] = fmaf(a, b, c);
    }"""
    a = float32(1 + 2**-12)
    y = result(source, 3, float32, a, a, float32(-1), block=(1, 1, 1))
    fused = float32(np.float64(a) * np.float64(a) - 1)
    assert y[0] == fused and y[2] == fused and y[1] == float32(a * a) - float32(1) != fused


def test_mathematics():
    source = """
    __global__ void k(float* out, float x, int n) {
        out[0] = rsqrtf(x); out[1] = __expf(x); out[2] = __fdividef(1.0f, x); out[3] = fminf(x, 2.0f);
        out[4] = max(n, 3); out[5] = min(x, 0.5f); out[6] = __int_as_float(0x3fc00000); out[7] = __popc(n);
        out[8] = __clz(n); out[9] = __ffs(n); out[10] = sqrtf(x); out[11] = fabsf(-x);
        out[12] = __brev(1u) == 0x80000000u;
        out[13] = __ldg(&x); out[14] = abs(-n); out[15] = __float2int_rn(2.5f);
    }"""
    y = result(source, 16, float32, float32(4), int32(6), block=(1, 1, 1))
    expected = [0.5, np.exp(float32(4)), 0.25, 2, 6, 0.5, 1.5, 2, 29, 2, 2, 4, 1, 4, 6, 2]
    assert np.allclose(y, expected, rtol=1e-7, atol=0)


def test_structs_as_arguments():
    source = """
    struct Size { int height, width; float scale; };
    __global__ void k(float* out, Size size, double d) { out[0] = size.height * size.width * size.scale + d; }"""
    size = np.zeros((), np.dtype([("height", "i4"), ("width", "i4"), ("scale", "f4")]))
    size["height"], size["width"], size["scale"] = 3, 4, 0.5
    assert result(source, 1, float32, size[()], np.float64(1), block=(1, 1, 1))[0] == 7


def test_templates_instantiated_and_functions_of_the_device():
    source = """
    template <typename T> __global__ void twice(T* out, int n) { if (threadIdx.x < n) out[threadIdx.x] *= 2; }
    template __global__ void twice<float>(float*, int);
    namespace inner { struct Square { __device__ int operator()(int v) const { return v * v; } }; }
    __device__ __forceinline__ int apply(int v) { return inner::Square()(v); }
    extern "C" __global__ void k(int* out) { auto f = [] __device__ (int v) { return apply(v); }; out[0] = f(7); }"""
    assert result(source, 1, block=(1, 1, 1), no_extern_c=True)[0] == 49
    module = SourceModule(source, no_extern_c=True)
    x = gpuarray.to_gpu(np.ones(4, float32))
    module.get_function("_Z5twiceIfEvPT_i")(x, int32(2), block=(4, 1, 1))
    assert list(x.get()) == [2, 2, 1, 1]


@pytest.mark.parametrize(
    "source",
    [
        "// __global__ void no() {\n/* __shared__ */ __global__ void k(int*out){out[0]=1;}",
        '__global__ void k(int* out) { const char* s = "__shared__ int x; { \\" } __global__"; out[0] = s[0] == 95; }',
        "__global__ void k(int* out) { char c = '{'; out[0] = c == 123; }",
        "#define KERNEL(name) __global__ void name\nKERNEL(k)(int* out)\n{\n out[0] = 1; }",
        "__global__\nvoid\n__launch_bounds__(32)\nk(\n  int* out  // where, [1]\n)\n{ out[0] = 1; }\n",
        "__global__ void k(int* __restrict__ out) { #pragma unroll\n}".replace("{ #", "{\n#").replace(
            "}", "out[0] = 1; }"
        ),
        "static __global__ void k(int* out) { out[0] = 1; }".replace("static ", ""),
        "typedef int T; __global__ void k(T out[]) { out[0] = 1; }",
        "__global__ void k(int* out);\n__global__ void k(int* out) { out[0] = 1; }",
        "inline __host__ __device__ int one() { return 1; }\n__global__ void k(int* out) { out[0] = one(); }",
        "enum { A = 1 }; __global__ void k(int* out) { if constexpr (A == 1) { out[0] = A; } }",
        "__global__ void k(int* out) {\r\n out[0] = 1;\r\n}\r\n",
    ],
)
def test_odd_but_valid_sources(source):
    assert result(source, 1, block=(1, 1, 1))[0] == 1


def test_printf_and_assert(capsys):
    run('__global__ void k(int n) { printf("%d of %s\\n", n + threadIdx.x, "x"); }', "k", int32(3), block=(2, 1, 1))
    assert capsys.readouterr().out == "3 of x\n4 of x\n"
    with pytest.raises(drv.LogicError, match=r"device-side assert triggered.*kernel.cu:1: k: .*`n == 3` failed"):
        run("__global__ void k(int n) { assert(n == 3); }", "k", int32(2))


def test_fresh_memory_is_poisoned():
    source = """__global__ void k(int* out) {
        __shared__ int s[2];
        extern __shared__ int d[];
        out[0] = s[1];
        out[1] = d[0];
    }"""
    assert list(result(source, 2, block=(1, 1, 1), shared=4)) == [-1, -1]
    assert np.isnan(gpuarray.empty(3, float32).get()).all()


# ------------------------------------------------------------------------------------------------------ the rungs


def test_the_rungs_run_unmodified():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 7)).astype(float32)
    y = np.empty_like(x)
    text = (KERNELS / "03_scale.cu").read_text()
    run(
        text, "scale", drv.In(x), float32(3), drv.Out(y), int32(x.size), block=(16, 1, 1), grid=(3, 1), no_extern_c=True
    )
    assert np.array_equal(y, x * float32(3))


# ------------------------------------------------------------------------------------------------- PyCUDA's names


def test_in_out_and_inout():
    source = "__global__ void k(const int* a, int* b, int* c) { b[0] = a[0] + 1; c[0] += a[0]; }"
    a, b, c = np.array([5], int32), np.zeros(1, int32), np.array([10], int32)
    run(source, "k", drv.In(a), drv.Out(b), drv.InOut(c))
    assert (a[0], b[0], c[0]) == (5, 6, 15)


def test_prepared_calls():
    function = SourceModule(
        "__global__ void k(float* out, float v, int i, long long w) { out[i] = v + w; }"
    ).get_function("k")
    out = gpuarray.zeros(4, float32)
    assert function.prepare([np.intp, float32, "i", np.int64]) is function
    function.prepared_call((1, 1), (1, 1, 1), out.gpudata, 1.5, 2, 10)
    function.prepared_async_call((1, 1), (1, 1, 1), None, out.gpudata, 1.5, 3, 20)
    seconds = function.prepared_timed_call((1, 1), (1, 1, 1), out.gpudata, 1.5, 0, 30)
    assert seconds() > 0
    assert list(out.get()) == [31.5, 0, 11.5, 21.5]
    function.prepare("PfiQ".replace("Q", "q"))
    with pytest.raises(struct.error):
        function.prepared_call((1, 1), (1, 1, 1), out.gpudata, 1.5)


def test_memory_calls():
    a = drv.mem_alloc(16)
    drv.memset_d32(a, 7, 4)
    assert list(drv.from_device(a, 4, int32)) == [7] * 4
    drv.memset_d8(int(a) + 4, 1, 4)
    b = drv.mem_alloc(np.int64(16))
    drv.memcpy_dtod(b, a, 16)
    assert list(drv.from_device(b, 4, np.uint32)) == [7, 0x01010101, 7, 7]
    free, total = drv.mem_get_info()
    assert 0 < free < total
    a.free()
    with pytest.raises(drv.LogicError):
        drv.memcpy_htod(a, np.zeros(4, int32))
    with pytest.raises(drv.LogicError):
        a.free()
    with pytest.raises(drv.LogicError, match="cuMemcpyHtoD failed: invalid argument"):
        drv.memcpy_htod(b, np.zeros(5, int32))
    with pytest.raises(drv.LogicError, match="cuMemAlloc failed: invalid argument"):
        drv.mem_alloc(0)
    with pytest.raises(drv.MemoryError, match="cuMemAlloc failed: out of memory"):
        drv.mem_alloc(1 << 60)
    with pytest.raises(ValueError, match="not contiguous"):
        drv.memcpy_htod(b, np.zeros((4, 4), np.int8)[:, ::2])


def test_freed_memory_is_used_again():
    free = drv.mem_get_info()[0]
    for _ in range(2000):
        drv.mem_alloc(1 << 20).free()
    assert drv.mem_get_info()[0] == free


def test_events_and_streams():
    start, end, stream = drv.Event(), drv.Event(), drv.Stream()
    with pytest.raises(drv.LogicError):
        end.time_since(start)
    start.record(stream)
    end.record()
    end.synchronize()
    assert end.query() and end.time_since(start) >= 0 and start.time_till(end) == end.time_since(start)
    drv.Context.synchronize()


def test_the_device():
    device = drv.Device(0)
    assert drv.Device.count() == 1 and device.compute_capability() == (9, 0)
    assert device.get_attribute(drv.device_attribute.WARP_SIZE) == device.warp_size == 32
    assert device.get_attributes()[drv.device_attribute.MAX_THREADS_PER_BLOCK] == 1024
    with pytest.raises(drv.LogicError):
        drv.Device(1)


def test_gpuarrays():
    x = np.arange(12, dtype=float32).reshape(3, 4)
    a = gpuarray.to_gpu(x)
    assert a.shape == (3, 4) and a.strides == (16, 4) and a.nbytes == 48 and a.ptr == int(a.gpudata) and len(a) == 3
    assert np.array_equal((2 * a + a / 2 - 1).get(), (2 * x + x / 2 - 1).astype(float32))
    assert np.array_equal(a.reshape(2, -1).get(), x.reshape(2, 6)) and np.array_equal(a.ravel().get(), x.ravel())
    assert np.array_equal(gpuarray.to_gpu(np.asfortranarray(x)).get(), x)
    assert gpuarray.zeros_like(a).get().sum() == 0 and gpuarray.empty((0, 3), float32).get().shape == (0, 3)
    assert np.array_equal(a.copy().fill(3).get(), np.full((3, 4), 3)) and np.array_equal(a.get(), x)
    with pytest.raises(ValueError, match="same size"):
        a.set(np.zeros(5, float32))
    with pytest.raises(ValueError, match="same dtype"):
        a.set(np.zeros(12))


def test_error_classes_are_related_as_pycudas_are():
    for error in (drv.LogicError, drv.LaunchError, drv.MemoryError, drv.RuntimeError, drv.CompileError):
        assert issubclass(error, drv.Error)
    assert not issubclass(drv.LogicError, drv.LaunchError) and not issubclass(drv.MemoryError, MemoryError)


# ------------------------------------------------------------------------------------------------ refused launches


NOTHING = "__global__ void k() {} __global__ void big() { __shared__ int s[10000]; s[threadIdx.x] = 0; }"


@pytest.mark.parametrize(
    ("block", "grid", "shared", "message"),
    [
        ((1025, 1, 1), (1, 1), 0, "cuFuncSetBlockShape failed: invalid argument"),
        ((126, 126, 1), (1, 1), 0, "cuFuncSetBlockShape failed: invalid argument"),
        ((1, 1, 65), (1, 1), 0, "cuFuncSetBlockShape failed: invalid argument"),
        ((0, 1, 1), (1, 1), 0, "cuFuncSetBlockShape failed: invalid argument"),
        ((1, 1, 1), (1, 65536), 0, "cuLaunchKernel failed: invalid argument"),
        ((1, 1, 1), (1, 1, 65536), 0, "cuLaunchKernel failed: invalid argument"),
        ((1, 1, 1), (0, 1), 0, "cuLaunchKernel failed: invalid argument"),
        ((1, 1, 1), (1 << 31, 1), 0, "cuLaunchKernel failed: invalid argument"),
        ((1, 1, 1), (1, 1), 49153, "cuLaunchKernel failed: invalid argument"),
        (
            (1, 1, 1),
            (1, 1, 1, 1),
            0,
            "function::launch_kernel failed: invalid resource handle - too many grid dimensions in kernel launch",
        ),
    ],
)
def test_limits_of_a_launch(block, grid, shared, message):
    with pytest.raises(drv.LogicError) as raised:
        run(NOTHING, "k", block=block, grid=grid, shared=shared)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ({"block": (8.0, 1, 1)}, TypeError, r"block must be a tuple of three ints, got \(8.0, 1, 1\)"),
        ({"block": (np.int64(8), 1, 1)}, TypeError, "block must be a tuple of three ints, got "),
        ({"block": (8, 1)}, TypeError, r"block must be a tuple of three ints, got \(8, 1\)"),
        ({"block": [8, 1, 1]}, TypeError, "block must be a tuple of three ints"),
        ({"block": 8}, TypeError, "block must be a tuple of three ints, got 8"),
        ({"grid": (1, 2.0)}, TypeError, r"grid must be a tuple of one to three ints, got \(1, 2.0\)"),
        ({"grid": 2}, TypeError, "grid must be a tuple of one to three ints, got 2"),
        ({"grid": ()}, TypeError, "grid must be a tuple of one to three ints"),
        ({"shared": 4.0}, TypeError, "shared must be an int, got 4.0"),
        ({"shared": -4}, OverflowError, "can't convert negative value"),
        ({"grid": (-1, 1)}, OverflowError, "can't convert negative value"),
    ],
)
def test_sizes_are_ints_as_pycuda_wants_them(sizes, error, message):
    with pytest.raises(error, match=message):
        run(NOTHING, "k", **{"block": (1, 1, 1), **sizes})
    run(NOTHING, "k", block=(True, 1, 1), grid=(1,))


def test_limits_of_shared_memory():
    run(NOTHING, "k", shared=49152)
    run(NOTHING, "big", shared=49152 - 40000)
    with pytest.raises(drv.LogicError, match="cuLaunchKernel failed: invalid argument"):
        run(NOTHING, "big", shared=49152 - 40000 + 4)
    function = SourceModule(NOTHING).get_function("big")
    assert function.shared_size_bytes == 40000 and function.max_threads_per_block == 1024
    function.set_attribute(drv.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, 227 * 1024 - 40000)
    function(block=(1, 1, 1), shared=227 * 1024 - 40000)
    with pytest.raises(drv.LogicError, match="cuFuncSetAttribute failed: invalid argument"):
        function.set_attribute(drv.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, 227 * 1024 - 40000 + 1)
    with pytest.raises(drv.CompileError, match=r"uses too much shared data \(0xc004 bytes, 0xc000 max\)"):
        SourceModule("__global__ void k() { __shared__ int s[12289]; s[0] = 0; }")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1, float32(1)), TypeError, r"invalid type on parameter #0 \(0-based\)"),
        ((int32(1), 1.0), TypeError, r"invalid type on parameter #1 \(0-based\)"),
        ((int32(1),), drv.LogicError, r"k\(count, factor\) takes 2 arguments, 1 given"),
        ((int32(1), float32(1), int32(1)), drv.LogicError, "takes 2 arguments, 3 given"),
        ((np.int64(1), float32(1)), drv.LogicError, "'count' of .* needs an integer of 4 bytes, given an integer of 8"),
        ((float32(1), float32(1)), drv.LogicError, "parameter 'count' .* given a floating-point number of 4 bytes"),
        ((int32(1), np.float64(1)), drv.LogicError, "'factor' .* needs a floating-point number of 4 bytes, given"),
        ((object(), float32(1)), TypeError, "invalid type on parameter #0"),
    ],
)
def test_arguments_that_do_not_fit(arguments, error, message):
    with pytest.raises(error, match=message):
        run("__global__ void k(int count, float factor) {}", "k", *arguments)


def test_calls_without_what_they_need():
    function = SourceModule(NOTHING).get_function("k")
    with pytest.raises(ValueError, match="must specify block size"):
        function()
    with pytest.raises(ValueError, match="extra keyword arguments: size"):
        function(block=(1, 1, 1), size=1)
    with pytest.raises(drv.LogicError, match="cuModuleGetFunction failed: named symbol not found"):
        SourceModule(NOTHING).get_function("other")
    with pytest.raises(drv.LogicError, match="named symbol not found"):
        SourceModule("__global__ void k() {}", no_extern_c=True).get_function("k")
    with pytest.raises(AttributeError, match="no attribute 'colour' in Function"):
        function.colour  # noqa: B018


# ----------------------------------------------------------------------------------------- source that does not compile


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("__global__ void k(int* a)\n{\n    a[0] = undefined_name;\n}", r"kernel.cu\(3\): error: .*undefined_name"),
        ('#line 1 "mine.cu"\n__global__ void k(int* a)\n{ a[0] = nothing; }', r"mine.cu\(2\): error: .*nothing"),
        ('__global__ void k() { asm volatile("bar.sync 0;"); }', r"kernel.cu\(1\): error: inline PTX"),
        ("__global__ void k() { __shared__ int s = 3; }", "shared variable 's' cannot have an initialiser"),
        ("\n__global__ void k() {", r"kernel.cu\(2\): error: '\{' is never closed"),
        ('#include "nowhere.cuh"\n', "nowhere.cuh"),
        ("#error stop here\n", "stop here"),
        ("__global__ void k() { exit(3); }", r'calling a __host__ function\("exit"\) from device code is not allowed'),
        ("__global__ void k() { abort(); }", r'__host__ function\("abort"\)'),
        ('__global__ void k() { system("true"); }', r'__host__ function\("system"\)'),
    ],
)
def test_errors_of_the_compiler_name_the_line(source, message):
    with pytest.raises(drv.CompileError, match=r"nvcc compilation of (kernel|mine)\.cu failed") as raised:
        SourceModule(source)
    assert raised.match(message)


def test_included_files_are_translated_too(tmp_path):
    (tmp_path / "tile.cuh").write_text(
        '#pragma once\n#include "size.h"\n__device__ int turn(int v) {\n'
        "    __shared__ int s[SIZE];\n    s[threadIdx.x] = v;\n    __syncthreads();\n"
        "    return s[SIZE - threadIdx.x];\n}\n"
    )
    (tmp_path / "size.h").write_text("#define SIZE 4\n")
    source = '#include "tile.cuh"\n__global__ void k(int* out) { out[threadIdx.x] = turn(threadIdx.x); }'
    with pytest.raises(drv.MemoryAccessError) as raised:
        result(source, 4, block=(4, 1, 1), include_dirs=[str(tmp_path)])
    finding = raised.value.finding
    assert (finding.source, finding.line, finding.argument, finding.element) == ("tile.cuh", 7, "s", 4)
    (tmp_path / "size.h").write_text("#define SIZE 5\n")  # another text, so another library
    with pytest.raises(drv.MemoryAccessError, match="reads s.5., but s has 5 elements"):
        result(source, 4, block=(4, 1, 1), include_dirs=[str(tmp_path)])


def test_options(tmp_path):
    source = "__global__ void k(int* out) { out[0] = VALUE + __CUDA_ARCH__; }"
    assert result(source, 1, block=(1, 1, 1), options=["-DVALUE=5", "-O3", "--use_fast_math"], arch="sm_80")[0] == 805
    assert result(source, 1, block=(1, 1, 1), options=["-D", "VALUE=6"])[0] == 906
    same = ["--define-macro=VALUE=7", "-arch", "sm_80", "-lineinfo", "-std=c++17", "-Xptxas", "-v", "--restrict"]
    assert result(source, 1, block=(1, 1, 1), options=same)[0] == 807


def test_products_are_contracted_unless_fmad_is_false():
    source = "__global__ void k(float* y, float x) { y[0] = x * x - (1 + 1.0f / 2048); }"
    x = float32(1 + 2**-12)  # its square, 1 + 2^-11 + 2^-24, rounds to 1 + 2^-11
    assert result(source, 1, float32, x)[0] == 2.0**-24
    assert result(source, 1, float32, x, options=["-fmad=false"])[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-foo"], "Unknown option '-foo'"),
        (["--lineinfo"], "Unknown option '--lineinfo'"),  # of short names there is but one form
        (["-DA=1", "-I"], "'-I': expected an argument"),
        (["-std=c++99"], "Value 'c++99' is not defined for option 'std'"),
        (["-arch=sm_1"], "Unsupported gpu architecture 'sm_1'"),
        (["other.cu"], "A single input file is required"),
        (["-fmad=3"], "'3': expected true or false"),
        (["-use_fast_math=true"], "no argument expected after '-use_fast_math'"),
    ],
)
def test_options_that_nvcc_refuses(options, message):
    with pytest.raises(drv.CompileError, match="nvcc fatal   : ") as raised:
        SourceModule("__global__ void k() {}", options=options)
    assert message in raised.value.stderr and raised.value.command_line == ["nvcc", *options]


@pytest.mark.parametrize("options", ["-DA=1", ["-DA=1", 3], [None]])
def test_options_are_a_list_of_texts(options):
    with pytest.raises(TypeError, match="options must be a list of str"):
        SourceModule("__global__ void k() {}", options=options)


@pytest.mark.parametrize("source", [3, None, b"__global__ void k() {}", Path("k.cu")])
def test_a_source_is_a_text(source):
    with pytest.raises(TypeError, match="source must be CUDA C as a str, got "):
        SourceModule(source)


# --------------------------------------------------------------------------------------------- kernels that go wrong


def refused(source, *arguments, **options):
    with pytest.raises(drv.MemoryAccessError) as raised:
        run(source, "k", *arguments, **options)
    return raised.value.finding


def test_one_element_past_the_end_names_all_there_is_to_name():
    source = """__global__ void k(const float* x, float* y, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = x[i];
}"""
    x, y = gpuarray.to_gpu(np.zeros(10, float32)), gpuarray.zeros(11, float32)
    finding = refused(source, x, y, int32(10), block=(4, 1, 1), grid=(3, 1))
    assert (finding.kind, finding.kernel, finding.argument, finding.element) == ("out-of-bounds", "k", "x", 10)
    assert (finding.thread, finding.block, finding.line, finding.source) == ((2, 0, 0), (2, 0, 0), 4, "kernel.cu")
    assert finding.message == (
        "kernel.cu:4: kernel k: thread (2, 0, 0) of block (2, 0, 0) reads x[10], but x has 10 elements"
    )
    assert issubclass(drv.MemoryAccessError, drv.LogicError)


@pytest.mark.parametrize(
    ("dtype", "kind", "size", "element"),
    [
        (np.int8, "char", 3, 3),
        (np.int16, "short", 5, 5),
        (np.float64, "double", 3, 3),
        (np.int8, "char", 8, -1),
        (np.int8, "char", 9, 300),
        (float32, "float", 1, 1),
        (float32, "float", 5, -70),
        (np.float64, "double", 2, 4000),
    ],
)
def test_bounds_are_exact_to_the_byte(dtype, kind, size, element):
    for statement in ("a[i] = 1", "keep[0] = (int)a[i]"):
        source = f"__global__ void k({kind}* a, int i, int* keep) {{ {statement}; }}"
        keep = gpuarray.zeros(1, int32)
        run(source, "k", gpuarray.zeros(size, dtype), int32(size - 1), keep)
        finding = refused(source, gpuarray.zeros(size, dtype), int32(element), keep)
        assert (finding.argument, finding.element) == ("a", element)


def test_vector_accesses_are_checked_whole():
    source = "__global__ void k(float* a, int i) { *(float4*)(a + i) = make_float4(1, 2, 3, 4); }"
    run(source, "k", gpuarray.zeros(8, float32), int32(4))
    assert refused(source, gpuarray.zeros(7, float32), int32(4)).element == 4
    finding = refused(source, gpuarray.zeros(8, float32), int32(2))
    assert (finding.kind, finding.argument, finding.element, finding.line) == ("misaligned", "a", 2, 1)


def test_shared_constant_and_dynamic_memory_are_checked():
    source = """__constant__ int c[3];
    __device__ int d[2];
    __global__ void k(int which, int i, int* out) {
        __shared__ int s[5];
        extern __shared__ int dynamic[];
        if (which == 0) out[0] = c[i];
        if (which == 1) d[i] = 1;
        if (which == 2) s[i] = 1;
        if (which == 3) out[0] = dynamic[i];
        if (which == 4) out[0] = ((volatile int*)s)[i];
    }"""
    out = gpuarray.zeros(1, int32)
    for which, (name, size) in enumerate([("c", 3), ("d", 2), ("s", 5), ("dynamic", 4), ("s", 5)]):
        run(source, "k", int32(which), int32(size - 1), out, shared=16)
        finding = refused(source, int32(which), int32(size), out, shared=16)
        assert (finding.argument, finding.element, finding.line) == (name, size, 6 + which)


@pytest.mark.parametrize("pointer", [0, 64, 12345])
def test_pointers_that_are_not_the_devices(pointer):
    finding = refused("__global__ void k(int* a) { a[1] = 1; }", np.intp(pointer // 4 * 4))
    assert (finding.argument, finding.element) == ("a", 1)
    assert "a is no live memory of the device" in finding.message


def test_host_and_freed_memory():
    host = np.zeros(4, int32)
    assert refused("__global__ void k(int* a) { a[0] = 1; }", np.intp(host.ctypes.data)).argument == "a"
    a = drv.mem_alloc(64)
    address = np.intp(int(a))
    a.free()
    assert refused("__global__ void k(int* a) { a[0] = 1; }", address).argument == "a"


def test_atomics_are_checked():
    finding = refused(
        "__global__ void k(int* a) {\n atomicAdd(&a[threadIdx.x], 1);\n}", gpuarray.zeros(3, int32), block=(4, 1, 1)
    )
    assert (finding.argument, finding.element, finding.thread, finding.line) == ("a", 3, (3, 0, 0), 2)


def test_division_by_zero():
    with pytest.raises(drv.LaunchError, match=r"kernel k \(kernel.cu:2\): an integer division by zero in thread"):
        run("__global__ void k(int* a, int b) {\n a[0] = 7 / b;\n}", "k", gpuarray.zeros(1, int32), int32(0))


@pytest.mark.parametrize(
    "source",
    [
        "__device__ int f(int n) { volatile int a[64]; a[n & 63] = n; return n ? f(n + 1) + a[n & 63] : 0; }"
        "__global__ void k(int* a) { a[0] = f(1); }",
        "__global__ void k(int* a) { volatile char big[1 << 20]; big[5] = 1; a[0] = big[5]; }",
    ],
)
def test_stack_overflow(source):
    with pytest.raises(drv.LaunchError, match="the stack overflowed in thread"):
        run(source, "k", gpuarray.zeros(1, int32))


@pytest.mark.parametrize(
    "body",
    [
        "if (threadIdx.x < 4) __shfl_sync(0xffffffff, 1, 0); else __syncthreads();",
        "if (threadIdx.x == 0) __syncwarp(3); else if (threadIdx.x == 1) __syncthreads();",
    ],
)
def test_deadlocks_end(body):
    with pytest.raises(drv.DeadlockError, match=r"kernel k \(kernel.cu:2\): .* thread \(0,0,0\) waits at a warp oper"):
        run(f"__global__ void k() {{\n {body}\n}}", "k", block=(32, 1, 1))
    assert issubclass(drv.DeadlockError, drv.LaunchError)


@pytest.mark.parametrize("look", ["*(volatile unsigned*)n", "atomicAdd(n, 0)", "atomicCAS(n, 0, 0)"])
def test_blocks_that_wait_for_all_blocks(look, monkeypatch):
    """A barrier over the grid holds where all blocks run at once; where they cannot, it is an error and no hang."""
    source = f"""
    __global__ void k(unsigned* y, unsigned* n) {{
        if (threadIdx.x == 0) {{ atomicAdd(n, 1);
            while ({look} < gridDim.x) __nanosleep(20); }}
        __syncthreads();
        y[blockIdx.x * 32 + threadIdx.x] = atomicAdd(n, 0);
    }}"""
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert np.all(result(source, 96, np.uint32, gpuarray.zeros(1, np.uint32), block=(32, 1, 1), grid=(3, 1)) == 3)
    with pytest.raises(drv.DeadlockError, match=r"\(kernel.cu:\d\): thread .* again and again .* 3 of 4 blocks have"):
        result(source, 128, np.uint32, gpuarray.zeros(1, np.uint32), block=(32, 1, 1), grid=(4, 1))


def test_threads_that_returned_are_not_waited_for():
    source = "__global__ void k(int* out) { if (threadIdx.x > 2) return; __syncthreads(); out[threadIdx.x] = 1; }"
    assert list(result(source, 3, block=(64, 1, 1))) == [1, 1, 1]


def test_a_mask_that_leaves_its_caller_out():
    with pytest.raises(drv.LaunchError, match="lane 1 calls a warp operation whose mask 0x00000001 leaves it out"):
        run("__global__ void k() { __syncwarp(1); }", "k", block=(2, 1, 1))


def test_an_error_leaves_the_emulator_usable():
    source = "__global__ void k(int* a, int n) { __syncthreads(); a[threadIdx.x + n] = 1; __syncthreads(); }"
    for _ in range(5):
        refused(source, gpuarray.zeros(64, int32), int32(1), block=(64, 1, 1), grid=(50, 1))
        run(source, "k", gpuarray.zeros(64, int32), int32(0), block=(64, 1, 1), grid=(50, 1))


def test_launches_from_more_threads_than_there_are_workers(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)  # 8 launches of 16 workers, where 64 is the most
    function = SourceModule("__global__ void k(int* a) { __shared__ int s; s = 1; a[blockIdx.x] += s; }").get_function(
        "k"
    )
    arrays = [gpuarray.zeros(20, int32) for _ in range(8)]

    def work(array):
        for _ in range(20):
            function(array, block=(1, 1, 1), grid=(20, 1))

    threads = [threading.Thread(target=work, args=(array,)) for array in arrays]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.all(array.get() == 20) for array in arrays)


# --------------------------------------------------------------------------------------------------------- the cache


def test_a_second_module_is_not_compiled_again(tmp_path, monkeypatch):
    source = "__global__ void k(int* a) { a[0] = 4; }"
    assert result(source, 1, block=(1, 1, 1), cache_dir=str(tmp_path))[0] == 4
    monkeypatch.setattr(library, "_build", None)
    assert result(source, 1, block=(1, 1, 1), cache_dir=str(tmp_path))[0] == 4


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_library_that_was_cut_short_is_compiled_again(tmp_path, size):
    source = f"__global__ void k(int* a) {{ a[0] = {size}; }}"
    result(source, 1, block=(1, 1, 1), cache_dir=str(tmp_path))
    (library,) = tmp_path.iterdir()
    whole = library.stat().st_size
    library.unlink()  # the loader remembers the old file by its place on the disk
    library.write_bytes(bytes(size))
    assert result(source, 1, block=(1, 1, 1), cache_dir=str(tmp_path))[0] == size
    assert library.stat().st_size == whole and len(list(tmp_path.iterdir())) == 1


def test_an_unwritable_home_and_two_processes_at_once(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")  # no directory can be made below a file
    code = """
    import numpy as np
    from fusedref.emulator import SourceModule, gpuarray
    a = gpuarray.zeros(1, np.int32)
    SourceModule("__global__ void k(int* a) { a[0] = 6; }").get_function("k")(a, block=(1, 1, 1))
    print(a.get()[0])
    """
    for cache in (blocked / "below", tmp_path / "shared"):
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(partial(python, XDG_CACHE_HOME=cache), [code] * 2))
        assert both == ["6\n", "6\n"]


def test_no_compiler_is_a_clear_error(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.NoCompiler, match="that CXX names, 'no-such-compiler', cannot be run"):
        build.compiler()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(build.NoCompiler, match="pip install ziglang"):
        build.compiler()


def test_ziglang_stands_in():
    pytest.importorskip("ziglang", reason="ziglang is not installed")
    code = """
    import numpy as np
    from fusedref.emulator import SourceModule, driver, gpuarray
    source = '''
    __constant__ float c[2] = {1, 2};
    __global__ void k(float4* out, int n) {
        __shared__ float4 s[4];
        s[threadIdx.x] = make_float4(c[1], threadIdx.x, 0, 0);
        __syncthreads();
        out[threadIdx.x + n] = s[3 - threadIdx.x];
    }'''
    k = SourceModule(source).get_function("k")
    out = gpuarray.zeros(16, np.float32)
    k(out, np.int32(0), block=(4, 1, 1))
    print(list(map(int, out.get()[1::4])))
    try:
        k(out, np.int32(1), block=(4, 1, 1))
    except driver.MemoryAccessError as error:
        print(error)
    """
    assert python(code, CXX=f"{sys.executable} -m ziglang c++").splitlines() == [
        "[3, 2, 1, 0]",
        "kernel.cu:7: kernel k: thread (3, 0, 0) of block (0, 0, 0) writes out[4], but out has 4 elements",
    ]


def test_importing_compiles_and_loads_nothing():
    python("from fusedref.emulator import runtime; assert runtime._library is None", PATH="")


def test_the_front_end_keeps_lines():
    text = '# 1 "kernel.cu"\n__global__ void k() {\n  __shared__ int\n    a,\n    b[3];\n}\n__constant__ int\n  c;\n'
    assert Frontend(text, lambda file: True).translate().count("\n") == text.count("\n")
