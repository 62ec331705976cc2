"""Watches and modules in several threads at once."""

import gc
import threading

import numpy as np
import pytest

from fusedref.emulator import SourceModule, gpuarray, watch
from fusedref.emulator import driver as drv

HALF = "__global__ void k(int* y, int n) { if (threadIdx.x < n) y[threadIdx.x] = 1; }"


def in_threads(count, work):
    """Run ``work(number)`` in ``count`` threads that start together; raise what one of them raised."""
    together = threading.Barrier(count)
    errors = []

    def run(number):
        together.wait()
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_each_watch_gets_the_findings_of_its_own_launches():
    function = SourceModule(HALF).get_function("k")

    def work(number):
        for round_ in range(40):
            missing = (number + round_) % 3
            y = gpuarray.empty(32, np.int32)
            with watch() as seen:
                function(y, np.int32(32 - missing), block=(32, 1, 1))
                if round_ % 2:
                    y.get()  # what is missing is found here, or else at the end of the watch
            assert [(finding.kind, finding.element) for finding in seen.findings] == (
                [("unwritten", 32 - missing)] if missing else []
            )
            assert seen.counters["k"].launches == 1

    in_threads(8, work)


def test_memory_of_one_thread_is_freed_in_another():
    function = SourceModule(HALF).get_function("k")
    with watch() as seen:
        arrays = [gpuarray.empty(32, np.int32) for _ in range(8)]
        for array in arrays:
            function(array, np.int32(30), block=(32, 1, 1))
        in_threads(8, lambda number: arrays[number].gpudata.free())
    assert [finding.kind for finding in seen.findings] == ["unwritten"] * 8


def test_nested_watches_keep_their_findings_apart():
    function = SourceModule(HALF).get_function("k")
    first, second = gpuarray.empty(32, np.int32), gpuarray.empty(32, np.int32)
    with watch() as outer:
        function(first, np.int32(31), block=(32, 1, 1))
        with watch() as inner:
            function(second, np.int32(30), block=(32, 1, 1))
        assert [finding.element for finding in inner.findings] == [30]
        assert outer.findings == []
    assert [finding.element for finding in outer.findings] == [31]


def test_watch_left_by_an_error_expects_nothing():
    function = SourceModule(HALF).get_function("k")
    y = gpuarray.empty(32, np.int32)

    def leave():
        with watch() as seen:
            results.append(seen)
            function(y, np.int32(30), block=(32, 1, 1))
            raise ZeroDivisionError

    results = []
    with pytest.raises(ZeroDivisionError):
        leave()
    y.get()
    assert results[0].findings == []


def test_modules_are_made_and_dropped_in_threads():
    def work(number):
        for round_ in range(10):
            module = SourceModule(
                f"__device__ int d = {number}; __global__ void k(int* y) {{ y[0] = d + {round_ % 2}; }}"
            )
            y = gpuarray.zeros(1, np.int32)
            module.get_function("k")(y, block=(1, 1, 1))
            assert y.get()[0] == number + round_ % 2
            address, size = module.get_global("d")
            assert drv.from_device(address, 1, np.int32)[0] == number
            assert size == 4
            del module
            gc.collect()

    gc.freeze()  # the objects of other tests, which would take most of the time of a collection
    try:
        in_threads(4, work)
    finally:
        gc.unfreeze()
