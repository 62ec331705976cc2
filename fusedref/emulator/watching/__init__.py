"""Watch kernels: find their faults and count their memory accesses.

    with watch() as seen:
        kernel(x, y, np.int32(n), block=(256, 1, 1), grid=(4, 1))
    seen.findings           # a list of Finding
    seen.counters["kernel"]  # Counters, also by line

``watch=True`` watches every launch of a module, and ``FUSEDREF_WATCH=1`` every launch of the process. A finding is then
raised as ``driver.FindingError``, unless a ``watch()`` around the launch collects it.

Watched launches run their blocks one after another, so the report is the same in every run.

A watch does not find:

- faults in arrays of a thread's local memory, or in accesses that the compiler resolves before the kernel runs, such as
  a misaligned vector at a constant index of a ``__constant__`` or ``__device__`` array;
- a race on a word of global memory with a third reader of one block, or a second one of another block;
- a missing barrier between the threads of a block after an atomic by which another block passed data to one of them;
- a missing fence between ``cp.async`` and a bulk copy or wgmma that reads what it wrote.

With clang instead of g++ an access may be reported with a neighbouring line.
"""

from .collect import WatchResult, watch
from .counters import Counters, KernelCounters

__all__ = ["Counters", "KernelCounters", "WatchResult", "watch"]
