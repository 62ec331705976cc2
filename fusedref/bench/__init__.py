"""Times on a card: the floor, what PyTorch offers for the same operator, and this package, all in one run.

A time is the median over many calls, each between two CUDA events and each after the L2 cache has been overwritten, so
that every call finds its data in memory. All calls are queued before the device begins with the first, so that the
host's time does not enter, however small the problem. The floor is the time that the device needs to copy as many bytes
as the operator must move. Beside every time stands the error against float64 of the very call that was timed.

What the host spends on a call is measured apart, on a tiny input, in rows whose names begin with "host:".
"""

from fusedref.bench.command import main
from fusedref.bench.measure import compile_ours, host_rows, relative_l2, run
from fusedref.bench.peers import DTYPES, OURS, PEERS, PEERS_OF_OTHERS, Peer, eager, folded, ours
from fusedref.bench.problems import OTHERS, describe, in_family
from fusedref.bench.rows import FLOOR, Row, load, save, versions
from fusedref.bench.tables import best, picture, table, table_of_others, times_as_fast
from fusedref.bench.timing import arithmetic, host_samples, microseconds, samples

__all__ = [
    "DTYPES",
    "FLOOR",
    "OTHERS",
    "OURS",
    "PEERS",
    "PEERS_OF_OTHERS",
    "Peer",
    "Row",
    "arithmetic",
    "best",
    "compile_ours",
    "describe",
    "eager",
    "folded",
    "host_rows",
    "host_samples",
    "in_family",
    "load",
    "main",
    "microseconds",
    "ours",
    "picture",
    "relative_l2",
    "run",
    "samples",
    "save",
    "table",
    "table_of_others",
    "times_as_fast",
    "versions",
]
