"""Watch kernels: what is wrong with them, and what their memory accesses cost.

    with watch() as seen:
        kernel(x, y, np.int32(n), block=(256, 1, 1), grid=(4, 1))
    seen.findings           # a list of Finding
    seen.counters["kernel"]  # Counters, also by line

Every launch of a module made with ``watch=True`` is watched, and every launch at all where ``FUSEDREF_WATCH=1`` is set;
a finding is then raised as ``driver.FindingError``, unless a ``watch()`` around the launch collects it.

Watched launches run their blocks one after another, so the report is the same in every run.

The watch does not see:

- arrays in a thread's local memory, nor accesses that the compiler resolves before the kernel runs: it does not check
  the alignment of a vector at a constant index of a ``__constant__`` or ``__device__`` array;
- of a word of global memory, more than two readers of one block and one reader of another: a race with a further one;
- which thread of a block took part in an atomic: what other blocks published by it counts as known to the whole block;
- what ``cp.async`` wrote and bulk copies or wgmma read without a fence between.

With clang instead of g++ an access may be reported with a neighbouring line.
"""

from .collect import WatchResult, watch
from .counters import Counters, KernelCounters

__all__ = ["Counters", "KernelCounters", "WatchResult", "watch"]
