"""How long a kernel library stays loaded."""

from pathlib import Path

import numpy as np
import pytest

from fusedref.emulator import SourceModule, gpuarray
from fusedref.emulator import driver as drv

COUNTER = "__device__ int calls; __global__ void k(int* y) { y[0] = ++calls + %d; }"


def loaded(module):
    """Return whether the module's library, whose path this is, is mapped into the process."""
    return str(module) in Path("/proc/self/maps").read_text()


@pytest.fixture
def maps():
    if not Path("/proc/self/maps").exists():
        pytest.skip("this system does not list what is mapped")


def test_dropped_module_is_unloaded(maps):
    module = SourceModule(COUNTER % 10)
    path = module._image.path
    assert loaded(path)
    del module
    assert not loaded(path)


def test_function_keeps_its_module_loaded(maps):
    module = SourceModule(COUNTER % 20)
    path, function = module._image.path, module.get_function("k")
    del module
    y = gpuarray.zeros(1, np.int32)
    function(y, block=(1, 1, 1))
    assert y.get()[0] == 21
    assert loaded(path)
    del function
    assert not loaded(path)


def test_module_of_the_same_text_keeps_the_library_loaded(maps):
    first, second = SourceModule(COUNTER % 30), SourceModule(COUNTER % 30)
    path = first._image.path
    del first
    assert loaded(path)
    y = gpuarray.zeros(1, np.int32)
    second.get_function("k")(y, block=(1, 1, 1))
    assert y.get()[0] == 31


def test_reloaded_module_starts_afresh(maps):
    y = gpuarray.zeros(1, np.int32)
    for _ in range(3):
        module = SourceModule(COUNTER % 40)
        module.get_function("k")(y, block=(1, 1, 1))
        assert y.get()[0] == 41
        del module


def test_variable_of_an_unloaded_module_is_no_memory(maps):
    module = SourceModule(COUNTER % 50)
    address, size = module.get_global("calls")
    assert drv.from_device(address, 1, np.int32)[0] == 0
    del module
    with pytest.raises(drv.LogicError, match="cuMemcpyDtoH failed: invalid argument"):
        drv.from_device(address, size // 4, np.int32)
