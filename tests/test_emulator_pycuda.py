"""PyCUDA's names on the emulator: memory, launches, arguments, and what it refuses."""

import struct

import numpy as np
import pytest

from fusedref.emulator import SourceModule, gpuarray
from fusedref.emulator import driver as drv
from tests.emulated import run

int32, float32 = np.int32, np.float32


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


def test_freed_memory_is_reused():
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
    assert end.query()
    assert end.time_since(start) >= 0
    assert start.time_till(end) == end.time_since(start)
    drv.Context.synchronize()


def test_device():
    device = drv.Device(0)
    assert drv.Device.count() == 1
    assert device.compute_capability() == (9, 0)
    assert device.get_attribute(drv.device_attribute.WARP_SIZE) == device.warp_size == 32
    assert device.get_attributes()[drv.device_attribute.MAX_THREADS_PER_BLOCK] == 1024
    with pytest.raises(drv.LogicError):
        drv.Device(1)


def test_gpuarrays():
    x = np.arange(12, dtype=float32).reshape(3, 4)
    a = gpuarray.to_gpu(x)
    assert a.shape == (3, 4)
    assert a.strides == (16, 4)
    assert a.nbytes == 48
    assert a.ptr == int(a.gpudata)
    assert len(a) == 3
    assert np.array_equal((2 * a + a / 2 - 1).get(), (2 * x + x / 2 - 1).astype(float32))
    assert np.array_equal(a.reshape(2, -1).get(), x.reshape(2, 6))
    assert np.array_equal(a.ravel().get(), x.ravel())
    assert np.array_equal(gpuarray.to_gpu(np.asfortranarray(x)).get(), x)
    assert gpuarray.zeros_like(a).get().sum() == 0
    assert gpuarray.empty((0, 3), float32).get().shape == (0, 3)
    assert np.array_equal(a.copy().fill(3).get(), np.full((3, 4), 3))
    assert np.array_equal(a.get(), x)
    with pytest.raises(ValueError, match="same size"):
        a.set(np.zeros(5, float32))
    with pytest.raises(ValueError, match="same dtype"):
        a.set(np.zeros(12))


def test_error_classes():
    for error in (drv.LogicError, drv.LaunchError, drv.MemoryError, drv.RuntimeError, drv.CompileError):
        assert issubclass(error, drv.Error)
    assert not issubclass(drv.LogicError, drv.LaunchError)
    assert not issubclass(drv.MemoryError, MemoryError)


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
def test_sizes_must_be_ints(sizes, error, message):
    with pytest.raises(error, match=message):
        run(NOTHING, "k", **{"block": (1, 1, 1), **sizes})
    run(NOTHING, "k", block=(True, 1, 1), grid=(1,))


def test_limits_of_shared_memory():
    run(NOTHING, "k", shared=49152)
    run(NOTHING, "big", shared=49152 - 40000)
    with pytest.raises(drv.LogicError, match="cuLaunchKernel failed: invalid argument"):
        run(NOTHING, "big", shared=49152 - 40000 + 4)
    function = SourceModule(NOTHING).get_function("big")
    assert function.shared_size_bytes == 40000
    assert function.max_threads_per_block == 1024
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


def test_incomplete_calls():
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
