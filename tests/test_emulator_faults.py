"""Faulty kernels: each ends with an error that names the thread, the line and the element."""

import os
import threading

import numpy as np
import pytest

from fusedref.emulator import SourceModule, gpuarray
from fusedref.emulator import driver as drv
from tests.emulated import refused, result, run

int32, float32 = np.int32, np.float32


def test_access_past_the_end():
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
def test_bounds_are_exact(dtype, kind, size, element):
    for statement in ("a[i] = 1", "keep[0] = (int)a[i]"):
        source = f"__global__ void k({kind}* a, int i, int* keep) {{ {statement}; }}"
        keep = gpuarray.zeros(1, int32)
        run(source, "k", gpuarray.zeros(size, dtype), int32(size - 1), keep)
        finding = refused(source, gpuarray.zeros(size, dtype), int32(element), keep)
        assert (finding.argument, finding.element) == ("a", element)


def test_vector_access():
    source = "__global__ void k(float* a, int i) { *(float4*)(a + i) = make_float4(1, 2, 3, 4); }"
    run(source, "k", gpuarray.zeros(8, float32), int32(4))
    assert refused(source, gpuarray.zeros(7, float32), int32(4)).element == 4
    finding = refused(source, gpuarray.zeros(8, float32), int32(2))
    assert (finding.kind, finding.argument, finding.element, finding.line) == ("misaligned", "a", 2, 1)


def test_shared_constant_and_dynamic_memory():
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
def test_invalid_pointer(pointer):
    finding = refused("__global__ void k(int* a) { a[1] = 1; }", np.intp(pointer // 4 * 4))
    assert (finding.argument, finding.element) == ("a", 1)
    assert "a is not live device memory" in finding.message


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
def test_deadlock(body):
    with pytest.raises(drv.DeadlockError, match=r"kernel k \(kernel.cu:2\): .* thread \(0,0,0\) waits at a warp oper"):
        run(f"__global__ void k() {{\n {body}\n}}", "k", block=(32, 1, 1))
    assert issubclass(drv.DeadlockError, drv.LaunchError)


@pytest.mark.parametrize("look", ["*(volatile unsigned*)n", "atomicAdd(n, 0)", "atomicCAS(n, 0, 0)"])
def test_barrier_over_the_grid(look, monkeypatch):
    """A barrier over the grid works if all blocks run at once; if they cannot, it is an error instead of a hang."""
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
    with pytest.raises(drv.DeadlockError, match=r"\(kernel.cu:\d\): thread .* polls memory .* 3 of 4 blocks have"):
        result(source, 128, np.uint32, gpuarray.zeros(1, np.uint32), block=(32, 1, 1), grid=(4, 1))


def test_barrier_after_a_return():
    source = "__global__ void k(int* out) { if (threadIdx.x > 2) return; __syncthreads(); out[threadIdx.x] = 1; }"
    assert list(result(source, 3, block=(64, 1, 1))) == [1, 1, 1]


def test_mask_without_its_caller():
    with pytest.raises(drv.LaunchError, match="lane 1 calls a warp operation whose mask 0x00000001 leaves it out"):
        run("__global__ void k() { __syncwarp(1); }", "k", block=(2, 1, 1))


def test_launch_after_an_error():
    source = "__global__ void k(int* a, int n) { __syncthreads(); a[threadIdx.x + n] = 1; __syncthreads(); }"
    for _ in range(5):
        refused(source, gpuarray.zeros(64, int32), int32(1), block=(64, 1, 1), grid=(50, 1))
        run(source, "k", gpuarray.zeros(64, int32), int32(0), block=(64, 1, 1), grid=(50, 1))


def test_many_launches_at_once(monkeypatch):
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
