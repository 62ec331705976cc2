"""Declarations of __constant__, __device__ and __shared__ variables as nvcc takes them."""

import numpy as np
import pytest

from fusedref.emulator import SourceModule, gpuarray
from fusedref.emulator import driver as drv
from tests.emulated import refused, result

VALUES = {
    "string": ('__constant__ char c[4] = "con";', "out[0] = c[0]; out[1] = c[3];", [99, 0]),
    "characters": ("__constant__ char c[4] = {'c', 'o', 'n', 0};", "out[0] = c[0]; out[1] = c[2];", [99, 110]),
    "string-unsized": ('__device__ char c[] = "con";', "out[0] = sizeof(c); out[1] = c[2];", [4, 110]),
    "typedef-string": (
        'typedef char Name[4]; __constant__ Name a = "abc", b[2] = {"de", "f"};',
        "out[0] = a[1]; out[1] = b[1][0];",
        [98, 102],
    ),
    "wide-string": (
        '__constant__ wchar_t a[] = L"ab"; __constant__ char b[8] = "a" "bc", c[] = R"(x"y)";',
        "out[0] = a[1]; out[1] = b[2]; out[2] = c[1];",
        [98, 99, 34],
    ),
    "names": (
        '__device__ const char* a[] = {"a", "b"}; __constant__ const char* const b[2] = {"a,", "{b"};',
        "out[0] = a[1][0]; out[1] = sizeof(a); out[2] = b[0][1]; out[3] = b[1][0];",
        [98, 16, 44, 123],
    ),
    "operators": (
        "__device__ int a = 1 << 4 | 3, b = 7 >> 1, c = 3 == 3, d = !(4 >= 5) && 1, e = ~0, f = - -3, g = (1, 2);",
        "out[0] = a; out[1] = b; out[2] = c; out[3] = d; out[4] = e; out[5] = f; out[6] = g;",
        [19, 3, 1, 1, -1, 3, 2],
    ),
    "narrowing": (
        "__constant__ unsigned a = -1; __constant__ unsigned char b = 300; __device__ int c = 3.7;",
        "out[0] = a == 0xffffffffu; out[1] = b; out[2] = c;",
        [1, 44, 3],
    ),
    "less": ("enum { N = 2 }; __device__ int a = N < 3, b = 4, c = N > 3;", "out[0] = a + b + c;", [5]),
    "booleans": ("__constant__ bool t[] = {true, 1 < 2, !(1 > 2)};", "out[0] = t[0] + t[1] + t[2];", [3]),
    "braces": (
        "__device__ int a{3}; __constant__ float b[2]{1, 2}; __device__ float c[]{5, 6};",
        "out[0] = a; out[1] = b[1]; out[2] = c[1];",
        [3, 2, 6],
    ),
    "brackets": ("__device__ int a(3); __constant__ int b(4);", "out[0] = a; out[1] = b;", [3, 4]),
    "auto": ("__device__ auto a = 3; __constant__ auto b = 2.5f;", "out[0] = a + b * 2;", [8]),
    "attributes": (
        "__device__ [[maybe_unused]] int a = 3; [[maybe_unused]] __constant__ int b = 4;",
        "__shared__ [[maybe_unused]] int s[2]; s[0] = 1; out[0] = a + b + s[0];",
        [8],
    ),
    "extern": (
        "extern __device__ int late; __device__ int get() { return late; } __device__ int late = 9;",
        "out[0] = get();",
        [9],
    ),
    "template": ("template <class T> __device__ T three = T(3);", "out[0] = three<int>;", [3]),
    "function-pointers": (
        """__device__ int add(int a, int b) { return a + b; }
        typedef int (*F)(int, int);
        __device__ F f = add, many[] = {add, add};
        __device__ int (*g)(int, int) = add;
        __constant__ int (*h)(int, int) = add;""",
        "out[0] = f(1, 2) + g(3, 4) + h(5, 6) + many[1](0, 1);",
        [22],
    ),
    "constructors": (
        """struct P { int a, b; __host__ __device__ constexpr P(int x, int y = 5) : a(x), b(y) {} };
        __constant__ P p = P(1, 2), q = {3, 4}, r{6};
        __device__ P s(7, 8);""",
        "out[0] = p.b; out[1] = q.a; out[2] = r.b; out[3] = s.b;",
        [2, 3, 5, 8],
    ),
    "struct": (
        """__device__ struct P { int a; float *b, c[2]; } p = {7}, q[3];
        __constant__ struct { int x; } r = {1}, s = {2};""",
        "out[0] = p.a; out[1] = sizeof(q) / sizeof(p); out[2] = r.x + s.x;",
        [7, 3, 3],
    ),
    "aligned-struct": (
        "__device__ struct __align__(16) P { float x; } p;",
        "__shared__ struct alignas(32) { int x; } s; s.x = 1; out[0] = sizeof(p); out[1] = sizeof(s);",
        [16, 32],
    ),
    "aligned": (
        """__device__ char pad; __device__ __align__(16) unsigned char a[16] = {0, 0, 128, 63};
        alignas(128) __constant__ unsigned char b[] = {0, 0, 128, 63, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};""",
        "out[0] = ((float4*)a)->x + ((float4*)b)->x; out[1] = (size_t)b % 128 + pad;",
        [2, 0],
    ),
    "bounds": (
        """template <int N, int M = 2> struct S { enum { v = N * M }; };
        __device__ int a[1 << 3], b[3 >= 2 && 1 != 2 ? 4 : 8], c[S<4>::v], d[S<4, 3>::v][8 >> 1], e;""",
        """__shared__ int s[1 << 3], t[S<(8 >> 1), 3>::v][2 == 2 ? 1 : 2], *u; s[7] = 3; u = s; e = u[7];
        out[0] = sizeof(a) + e; out[1] = sizeof(b); out[2] = sizeof(c); out[3] = sizeof(d);
        out[4] = sizeof(s); out[5] = sizeof(t);""",
        [35, 16, 32, 192, 32, 48],
    ),
    "dependent-bounds": (
        """template <class T> struct Of { typedef T type; static const int n = sizeof(T) << 1; };
        template <class T> __device__ int f() {
            using U = typename Of<T>::type;
            __shared__ typename Of<T>::type s[Of<T>::n];
            __shared__ U u[sizeof(T) << 1];
            s[0] = u[0] = 1;
            return sizeof(s) + sizeof(u);
        }""",
        "out[0] = f<float>(); out[1] = f<char>();",
        [64, 4],
    ),
    "constants-as-bounds": (
        """__device__ const int N = 4; __constant__ constexpr int M = 2;
        static __device__ constexpr unsigned K = 1u << 3; template <int I> __device__ int f() { return I; }""",
        "__shared__ int s[N * M], t[K]; s[0] = t[0] = 1; out[0] = sizeof(s) + sizeof(t); out[1] = f<M>();",
        [64, 2],
    ),
    "after-a-label": (
        "__device__ int f(int n) { switch (n) { default: return 0; case 1: __shared__ int s; s = 4; return s; } }",
        "out[0] = f(1);",
        [4],
    ),
}


@pytest.mark.parametrize(("declarations", "body", "expected"), VALUES.values(), ids=VALUES.keys())
def test_kernel_reads_the_declared_values(declarations, body, expected):
    source = f'{declarations}\nextern "C" __global__ void k(int* out) {{ {body} }}'
    assert list(result(source, len(expected), no_extern_c=True)) == expected


def test_variable_as_long_as_its_initialiser_is_guarded():
    source = """__device__ int a[] = {1, 2}, b = 3;
    __global__ void k(int* out, int i) { out[0] = a[i] + b; }"""
    assert result(source, 1, np.int32, np.int32(1))[0] == 5
    finding = refused(source, gpuarray.zeros(1, np.int32), np.int32(2))
    assert (finding.argument, finding.element) == ("a", 2)


def test_host_may_write_every_variable():
    source = """__constant__ const int a = 4; __device__ constexpr float b[2] = {1, 2};
    __device__ const int c[] = {5, 6};
    __global__ void k() {}"""
    module = SourceModule(source)
    for name, before in (("a", [4]), ("b", [1, 2]), ("c", [5, 6])):
        address, size = module.get_global(name)
        dtype = np.float32 if name == "b" else np.int32
        assert size == 4 * len(before)
        assert list(drv.from_device(address, len(before), dtype)) == before
        drv.memcpy_htod(address, np.full(len(before), 7, dtype))
        assert list(drv.from_device(address, len(before), dtype)) == [7] * len(before)
