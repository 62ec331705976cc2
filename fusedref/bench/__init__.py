"""Time the floor, PyTorch's ways to compute the operator, and this package, all in one run on a GPU.

A time is the median over many calls. Each call is timed by two CUDA events, after the L2 cache has been overwritten, so
that it finds its data in memory. All calls are queued before the device begins with the first one, so that the host's
time does not count, however small the problem is. The floor is the time that the device takes to copy as many bytes as
the operator must move. Each time comes with the error against float64 of the same call.

Training and gradients are measured by modules: ``training`` says what each step's floor moves, and each row has the
memory that the call takes beyond its data. ``kernelbench`` measures as KernelBench's harness does.

The host's time for a call is measured separately, on a tiny input, in rows whose names begin with "host:".
"""

from fusedref.bench.command import PARTS, bench_all, bench_growth, bench_models, bench_networks
from fusedref.bench.growth import SERIES, growth_picture, growth_table
from fusedref.bench.kernelbench import agrees, kernelbench_rows, made
from fusedref.bench.layers import MODELS, model_problems
from fusedref.bench.measure import compile_ours, host_rows, relative_l2, run
from fusedref.bench.model_tables import kind_of, models_picture, models_table, ratios
from fusedref.bench.models import BATCHES, model_rows
from fusedref.bench.network_tables import networks_markdown, networks_table
from fusedref.bench.networks import NETWORKS, network_rows
from fusedref.bench.peers import DTYPES, LAYOUTS, OURS, PEERS, PEERS_AT_OTHER_PROBLEMS, Peer, eager, folded, ours
from fusedref.bench.problems import OTHER_PROBLEMS, describe, in_family
from fusedref.bench.rows import FLOOR, Row, load, rows_file, save, versions
from fusedref.bench.tables import (
    fastest,
    kernelbench_table,
    other_problems_table,
    other_problems_training_table,
    picture,
    speedup,
    table,
    training_speedups,
    training_table,
)
from fusedref.bench.timing import arithmetic, host_samples, microseconds, samples
from fusedref.bench.training import STEPS, Step, Work, peak_bytes, training_host_rows, training_rows

__all__ = [
    "BATCHES",
    "DTYPES",
    "FLOOR",
    "LAYOUTS",
    "MODELS",
    "NETWORKS",
    "OTHER_PROBLEMS",
    "OURS",
    "PARTS",
    "PEERS",
    "PEERS_AT_OTHER_PROBLEMS",
    "SERIES",
    "STEPS",
    "Peer",
    "Row",
    "Step",
    "Work",
    "agrees",
    "arithmetic",
    "bench_all",
    "bench_growth",
    "bench_models",
    "bench_networks",
    "compile_ours",
    "describe",
    "eager",
    "fastest",
    "folded",
    "growth_picture",
    "growth_table",
    "host_rows",
    "host_samples",
    "in_family",
    "kernelbench_rows",
    "kernelbench_table",
    "kind_of",
    "load",
    "made",
    "microseconds",
    "model_problems",
    "model_rows",
    "models_picture",
    "models_table",
    "network_rows",
    "networks_markdown",
    "networks_table",
    "other_problems_table",
    "other_problems_training_table",
    "ours",
    "peak_bytes",
    "picture",
    "ratios",
    "relative_l2",
    "rows_file",
    "run",
    "samples",
    "save",
    "speedup",
    "table",
    "training_host_rows",
    "training_rows",
    "training_speedups",
    "training_table",
    "versions",
]
