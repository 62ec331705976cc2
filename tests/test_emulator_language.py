"""CUDA C that the emulator runs: memory spaces, types, mathematics, odd but valid sources."""

import sys
from pathlib import Path

import numpy as np
import pytest

from fusedref.emulator import SourceModule, gpuarray
from fusedref.emulator import driver as drv
from fusedref.emulator.compile import build
from tests.emulated import refused, result, run

KERNELS = Path(__file__).parents[1] / "kernels"
int32, float32 = np.int32, np.float32


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
def test_every_thread_runs_once(block, grid):
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


def test_shared_memory_at_file_scope_and_in_templates():
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


@pytest.mark.parametrize("kind", ["int", "float", "unsigned char", "double", "float2", "float4", "int4"])
def test_cache_hints(kind):
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


def test_cache_hints_are_checked():
    source = "__global__ void k(float2* y) {\n    __stcs(&y[threadIdx.x], float2{1.0f, 2.0f});\n}"
    assert np.array_equal(result(source, (4, 2), float32, block=(4, 1, 1)), np.tile(float32([1, 2]), (4, 1)))
    finding = refused(source, gpuarray.zeros(6, float32), block=(4, 1, 1))
    assert (finding.argument, finding.element, finding.line) == ("y", 3, 2)


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


def test_multiply_add_is_contracted():
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
    assert y[0] == fused
    assert y[2] == fused
    assert y[1] == float32(a * a) - float32(1) != fused


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


def test_templates_and_device_functions():
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


def test_new_memory_is_nan():
    source = """__global__ void k(int* out) {
        __shared__ int s[2];
        extern __shared__ int d[];
        out[0] = s[1];
        out[1] = d[0];
    }"""
    assert list(result(source, 2, block=(1, 1, 1), shared=4)) == [-1, -1]
    assert np.isnan(gpuarray.empty(3, float32).get()).all()


def test_rung_runs_unmodified():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 7)).astype(float32)
    y = np.empty_like(x)
    text = (KERNELS / "03_scale.cu").read_text()
    run(
        text, "scale", drv.In(x), float32(3), drv.Out(y), int32(x.size), block=(16, 1, 1), grid=(3, 1), no_extern_c=True
    )
    assert np.array_equal(y, x * float32(3))
