"""CUDA C on the CPU: the names of PyCUDA, a launch that runs on the processor's cores, and a report of what it saw."""

from . import driver, gpuarray
from .compiler import SourceModule
from .findings import Finding
from .watching import watch

__all__ = ["Finding", "SourceModule", "driver", "gpuarray", "watch"]
