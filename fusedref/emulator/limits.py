"""The limits of the emulated device, which are those of a Hopper card."""

from __future__ import annotations

import os

MAX_THREADS_PER_BLOCK = 1024
MAX_BLOCK = (1024, 1024, 64)
MAX_GRID = (2**31 - 1, 65535, 65535)
SHARED_DEFAULT = 48 << 10  # bytes of shared memory that a block may have
SHARED_OPT_IN = 227 << 10  # the same, once MAX_DYNAMIC_SHARED_SIZE_BYTES is set
CONSTANT_MEMORY = 64 << 10
COMPUTE_CAPABILITY = (9, 0)


def workers() -> int:
    """Return how many blocks run at a time: one for each processor that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
