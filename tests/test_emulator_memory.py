"""Freed device memory is reused, and the emulator's own memory for it goes back to the system."""

import gc
import os

import numpy as np
import pytest

from fusedref.emulator import SourceModule, gpuarray, runtime, watch
from fusedref.emulator import driver as drv
from tests import processes

MEGABYTE = 1 << 20
QUARANTINED = 2048  # allocations, as in memory.cpp


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc/self/statm")


def growth(warm_up, work):
    """Return the bytes by which ``work`` grows a new process after ``warm_up``; both are statements."""
    program = f"""
import gc, os
import numpy as np
from fusedref.emulator import SourceModule, driver as drv, watch

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def allocate(sizes):
    for size in sizes:
        drv.mem_alloc(size).free()

def call(times, watched):
    x = np.ones(32, np.float32)
    for _ in range(times):
        if watched:
            with watch() as seen:
                kernel(drv.In(x), drv.Out(np.empty_like(x)), block=(32, 1, 1))
            assert not seen.findings
        else:
            kernel(drv.In(x), drv.Out(np.empty_like(x)), block=(32, 1, 1))

source = "__global__ void k(const float* x, float* y) {{ y[threadIdx.x] = x[threadIdx.x]; }}"
kernel = SourceModule(source).get_function("k")
{warm_up}
before = resident()
{work}
print(resident() - before)
"""
    return int(processes.python(program))


@needs_proc
def test_allocations_do_not_leak():
    assert growth(f"allocate([1000] * {2 * QUARANTINED})", "allocate([1000] * 20_000)") < 5 * MEGABYTE


@needs_proc
def test_allocations_of_many_sizes_do_not_leak():
    sizes = f"[1 + 977 * i % 60_000 for i in range({4 * QUARANTINED})]"
    assert growth(f"allocate({sizes})", f"allocate({sizes}[::-1])") < 20 * MEGABYTE


@needs_proc
@pytest.mark.parametrize(("watched", "times"), [(False, 2000), (True, 200)], ids=["unwatched", "watched"])
def test_calls_do_not_leak(watched, times):
    calls = f"call({times}, {watched})"
    assert growth(calls, calls) < 5 * MEGABYTE


def test_a_freed_address_is_not_used_again_soon():
    address = int(drv.mem_alloc(1000))  # freed at once
    gc.collect()
    addresses = set()
    for _ in range(QUARANTINED - 1):
        allocation = drv.mem_alloc(1000)
        addresses.add(int(allocation))
        allocation.free()
    assert address not in addresses
    with pytest.raises(drv.MemoryAccessError, match="is not live device memory"):
        SourceModule("__global__ void k(int* a) { a[0] = 1; }").get_function("k")(np.uintp(address), block=(1, 1, 1))


def test_the_oldest_freed_address_is_used_first():
    """In a new process, because addresses that other tests freed would be used first."""
    program = f"""
        from fusedref.emulator import driver as drv
        def addresses(count):
            for _ in range(count):
                allocation = drv.mem_alloc(1000)
                yield int(allocation)
                allocation.free()
        list(addresses({2 * QUARANTINED}))  # a full quarantine of spans of this size, next to one another
        seen = list(addresses({3 * QUARANTINED}))
        print(len(set(seen)) <= {QUARANTINED + 2}, len(set(seen[:{QUARANTINED}])))
    """
    assert processes.python(program).split() == ["True", str(QUARANTINED)]


def test_reused_memory_is_fresh():
    poisoned = np.full(1000, 0xFF, np.uint8)
    for _ in range(2 * QUARANTINED):
        allocation = drv.mem_alloc(1000)
        got = np.empty(1000, np.uint8)
        drv.memcpy_dtoh(got, allocation)
        assert np.array_equal(got, poisoned)
        drv.memcpy_htod(allocation, np.zeros(1000, np.uint8))
        allocation.free()
    source = "__global__ void k(const int* a, int* b) { b[0] = a[3]; }"
    with watch() as seen:
        SourceModule(source).get_function("k")(drv.mem_alloc(1000), gpuarray.zeros(1, np.int32), block=(1, 1, 1))
    assert [finding.kind for finding in seen.findings] == ["uninitialised"]


def test_large_allocations_are_refused_and_leave_room():
    gc.collect()  # else memory of earlier tests may be freed in between
    free, _ = drv.mem_get_info()
    with pytest.raises(drv.MemoryError):
        drv.mem_alloc(free + 1)
    kept = [drv.mem_alloc(64 * MEGABYTE) for _ in range(3)]
    assert len({int(allocation) for allocation in kept}) == 3
    assert drv.mem_get_info()[0] == free - 192 * MEGABYTE
    del kept
    gc.collect()
    assert drv.mem_get_info()[0] == free


def test_an_unregistered_module_gives_back_its_variables():
    module = SourceModule(
        "__constant__ float c[5000]; __device__ int d[300]; __global__ void k(float* a) { a[0] = c[1]; }"
    )
    record = module._image.module
    before = [variable.shadow for variable in runtime.chain(record.variables)]
    for _ in range(100_000):  # 2.3 GB of addresses, where 1 GiB are reserved for variables
        runtime.unregister(record)
        runtime.register(record)
    assert [variable.shadow for variable in runtime.chain(record.variables)] == before


@pytest.mark.parametrize(
    "source",
    [
        """__device__ int f(int i) { __shared__ int big[3932160]; big[i] = i; __syncthreads(); return big[0]; }
        __global__ void k(int* a) { a[0] = f(1); }""",
        "__global__ void k(int i) { __shared__ int big[3932160]; big[i] = i; }",
    ],
    ids=["device function", "kernel"],
)
def test_a_shared_array_too_large_for_any_block_is_refused(source):
    with pytest.raises(drv.CompileError, match=r"big in [fk] has 15728640 bytes"):
        SourceModule(source)


def test_a_device_function_may_not_have_more_shared_memory_than_a_block():
    source = """__device__ int f(int i) { __shared__ int s[20000]; s[i] = i; return s[0]; }
    __global__ void k(int* a) { a[0] = f(1); }"""
    with pytest.raises(
        drv.CompileError, match=r"Function 'f.*' uses too much shared data \(0x13880 bytes, 0xc000 max\)"
    ):
        SourceModule(source)
