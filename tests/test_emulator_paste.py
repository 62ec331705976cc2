"""Code as people paste it: the headers that it includes, and the operators that projects such as llm.c define."""

import numpy as np
import pytest

from fusedref.emulator import SourceModule, gpuarray
from fusedref.emulator import driver as drv

HEADERS = [
    "cuda_runtime.h",
    "cuda_runtime_api.h",
    "cuda.h",
    "device_launch_parameters.h",
    "math_constants.h",
    "cstdio",
    "stdio.h",
    "cassert",
    "assert.h",
    "iostream",
    "stdint.h",
    "cstdint",
    "cmath",
    "math.h",
    "cstring",
    "string.h",
    "ctime",
    "time.h",
]
USES = """
__global__ void k(float* y) {
    assert(y[1] == 2);
    long long start = clock64();
    int now = clock();
    memset(y, 0, 4);
    memcpy(y + 2, y + 1, 4);
    y[0] = start > 0 && now != 0;
    printf("%g\\n", y[2]);
}
"""


@pytest.mark.parametrize("header", HEADERS)
def test_header(header, capsys):
    y = gpuarray.to_gpu(np.array([1, 2, 3], np.float32))
    kernel = SourceModule(f"#include <{header}>\n{USES}").get_function("k")
    kernel(y, block=(1, 1, 1))
    assert list(y.get()) == [1, 2, 2]
    assert capsys.readouterr().out == "2\n"
    with pytest.raises(drv.LogicError, match=r"device-side assert triggered - kernel.cu:4: k: .*`y\[1\] == 2` failed"):
        kernel(gpuarray.zeros(3, np.float32), block=(1, 1, 1))


def test_headers_together_without_extern_c():
    includes = "".join(f'#include "{header}"\n' for header in [*HEADERS, "vector", "algorithm", *HEADERS])
    kernel = SourceModule(f'{includes}using namespace std;\nextern "C"{USES.strip()}', no_extern_c=True).get_function(
        "k"
    )
    y = gpuarray.to_gpu(np.array([1, 2, 3], np.float32))
    kernel(y, block=(1, 1, 1))
    assert list(y.get()) == [1, 2, 2]


def test_assert_without_ndebug_and_with_it():
    source = "#define NDEBUG\n#include <cassert>\n__global__ void k() { assert(false); }\n"
    SourceModule(source).get_function("k")(block=(1, 1, 1))
    again = source + "#undef NDEBUG\n#include <assert.h>\n__global__ void l() { assert(false); }\n"
    with pytest.raises(drv.LogicError, match=r"device-side assert triggered - kernel.cu:6: l: .*`false` failed"):
        SourceModule(again).get_function("l")(block=(1, 1, 1))
    SourceModule("__global__ void k() { assert(false); }", options=["-DNDEBUG"]).get_function("k")(block=(1, 1, 1))


def test_math_constants():
    source = """#include <math_constants.h>
    __global__ void k(double* y) {
        y[0] = CUDART_INF_F; y[1] = CUDART_NAN_F; y[2] = CUDART_PI_F; y[3] = CUDART_MAX_NORMAL_F; y[4] = CUDART_INF;
        y[5] = CUDART_PI; y[6] = CUDART_SQRT_HALF; y[7] = CUDART_MIN_DENORM_F;
    }"""
    y = gpuarray.empty(8, np.float64)
    SourceModule(source).get_function("k")(y, block=(1, 1, 1))
    f = np.float32
    expected = [np.inf, np.nan, f(np.pi), np.finfo(f).max, np.inf, np.pi, np.sqrt(0.5), np.finfo(f).smallest_subnormal]
    assert np.array_equal(y.get(), np.array(expected, np.float64), equal_nan=True)


def test_functions_of_the_c_library_by_their_other_names(capsys):
    source = """#include <cstdio>
    #include <cstring>
    struct Log { int printf; __device__ int clock() const { return printf; } };
    extern "C" __global__ void k(int* y) {
        Log log{5};
        std::memset(y, 0, 4);
        y[0] += log.clock() + (&log)->clock();
        if (y[0]) std::printf("%d\\n", y[0]); else ::printf("nothing\\n");
    }"""
    y = gpuarray.empty(1, np.int32)
    SourceModule(source, no_extern_c=True).get_function("k")(y, block=(1, 1, 1))
    assert y.get()[0] == 10
    assert capsys.readouterr().out == "10\n"


def test_operators():
    source = """
    struct Matrix {
        float* data;
        int width;
        __device__ float& operator[](int i) { return data[i]; }
        __device__ __forceinline__ const float& operator[](int i) const { return data[i]; }
        __host__ __device__ float operator()(int i, int j) const { return data[i * width + j]; }
        __device__ Matrix& operator+=(float v) { data[0] += v; return *this; }
        __device__ operator float() const { return data[0]; }
    };
    template <class T> struct Pack { T values[2]; __device__ T& operator[](int i) { return values[i]; } };
    __device__ bool operator==(const Matrix& a, const Matrix& b) { return a.data == b.data; }
    __device__ float operator<(const Matrix& a, int b) { return a.width < b; }
    extern "C"__global__ void k(float* y) {
        Matrix m{y, 2};
        m[0] = 1;
        m[1] = m(0, 0) + (m == m);
        m += 3;
        Pack<float> pack;
        pack[1] = m < 5;
        y[2] = pack[1] + (float)m;
    }"""
    y = gpuarray.zeros(3, np.float32)
    SourceModule(source, no_extern_c=True).get_function("k")(y, block=(1, 1, 1))
    assert list(y.get()) == [4, 2, 5]


def test_users_header_in_a_folder_with_headers_beside_it(tmp_path):
    (tmp_path / "lib" / "inner").mkdir(parents=True)
    (tmp_path / "lib" / "tile.cuh").write_text('#include "inner/size.h"\n#include "other.h"\n')
    (tmp_path / "lib" / "inner" / "size.h").write_text("#define SIZE 4\n")
    (tmp_path / "lib" / "other.h").write_text("#define OTHER 5\n")
    source = '#include "lib/tile.cuh"\n__global__ void k(int* y) { y[0] = SIZE * OTHER; }'
    y = gpuarray.zeros(1, np.int32)
    SourceModule(source, include_dirs=[str(tmp_path)]).get_function("k")(y, block=(1, 1, 1))
    assert y.get()[0] == 20
