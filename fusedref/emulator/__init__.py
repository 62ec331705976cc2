"""CUDA C on the CPU: PyCUDA's names, launches on the processor's cores, and a report of what each launch did."""

from .findings import Finding
from .pycuda import driver, gpuarray
from .pycuda.compiler import SourceModule
from .watching import watch

__all__ = ["Finding", "SourceModule", "driver", "gpuarray", "watch"]
