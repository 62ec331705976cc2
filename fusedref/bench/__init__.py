"""Time the floor, PyTorch's ways to compute the operator, and this package, all in one run on a GPU.

A time is the median over many calls. Each call is timed by two CUDA events, after the L2 cache has been overwritten, so
that it finds its data in memory. All calls are queued before the device begins with the first one, so that the host's
time does not count, however small the problem is. The floor is the time that the device takes to copy as many bytes as
the operator must move. Each time comes with the error against float64 of the same call.

The host's time for a call is measured separately, on a tiny input, in rows whose names begin with "host:".
"""

from fusedref.bench.command import bench_all
from fusedref.bench.measure import compile_ours, host_rows, relative_l2, run
from fusedref.bench.peers import OURS, PEERS, PEERS_AT_OTHER_PROBLEMS, Peer, eager, folded, ours
from fusedref.bench.problems import OTHER_PROBLEMS, describe, in_family
from fusedref.bench.rows import FLOOR, Row, load, rows_file, save, versions
from fusedref.bench.tables import fastest, other_problems_table, picture, speedup, table
from fusedref.bench.timing import arithmetic, host_samples, microseconds, samples

__all__ = [
    "FLOOR",
    "OTHER_PROBLEMS",
    "OURS",
    "PEERS",
    "PEERS_AT_OTHER_PROBLEMS",
    "Peer",
    "Row",
    "arithmetic",
    "bench_all",
    "compile_ours",
    "describe",
    "eager",
    "fastest",
    "folded",
    "host_rows",
    "host_samples",
    "in_family",
    "load",
    "microseconds",
    "other_problems_table",
    "ours",
    "picture",
    "relative_l2",
    "rows_file",
    "run",
    "samples",
    "save",
    "speedup",
    "table",
    "versions",
]
