"""Run a kernel on the emulator from its text, as the tests of the emulator do."""

import numpy as np
import pytest

from fusedref.emulator import SourceModule, gpuarray
from fusedref.emulator import driver as drv


def run(source, name, *arguments, block=(1, 1, 1), grid=(1, 1), shared=0, **options):
    """Compile the source and launch its kernel ``name``."""
    SourceModule(source, **options).get_function(name)(*arguments, block=block, grid=grid, shared=shared)


def result(source, size, dtype=np.int32, *arguments, name="k", **options):
    """Return what the kernel k(out, ...) writes to an array of ``size`` elements that starts as zeros."""
    out = gpuarray.zeros(size, dtype)
    run(source, name, out, *arguments, **options)
    return out.get()


def refused(source, *arguments, **options):
    """Return the finding of a launch of the kernel k that accesses memory that it may not access."""
    with pytest.raises(drv.MemoryAccessError) as raised:
        run(source, "k", *arguments, **options)
    return raised.value.finding
