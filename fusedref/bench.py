"""Times on a card: the floor, what PyTorch offers for the same operator, and this package, all in one run.

A time is the median over many calls, each between two CUDA events and each after the L2 cache has been overwritten, so
that every call finds its data in memory. All calls are queued before the device begins with the first, so that the
host's time does not enter, however small the problem. The floor is the time that the device needs to copy as many bytes
as the operator must move. Beside every time stands the error against float64 of the very call that was timed.

What the host spends on a call is measured apart, on a tiny input, in rows whose names begin with "host:".
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fusedref import cuda, folding, fused
from fusedref.fused import fused_conv_bn_scale
from fusedref.module import FusedConvBnScale
from fusedref.problem import KERNELBENCH_73, Problem
from fusedref.reference import ConvBnScale, conv_bn_scale, oracle
from fusedref.validator import draw

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LAYOUTS = "NCHW", "channels_last"
FLOOR = "device copy"
HOST = "host: "  # begins the name of a row that is the host's time

# Layers of other sizes: the first edition of problem 73, and what networks have.
OTHERS = [
    Problem(128, 3, 16, 32, 32, 3),
    Problem(32, 3, 64, 224, 224, 7, stride=2, padding=3),
    Problem(32, 64, 256, 56, 56, 1),
    Problem(32, 64, 64, 56, 56, 3, padding=1),
    Problem(32, 256, 256, 14, 14, 3, padding=1),
    Problem(32, 128, 128, 56, 56, 3, stride=2, padding=1),
    Problem(8, 64, 64, 64, 64, 3, padding=2, dilation=2),
    Problem(32, 64, 64, 56, 56, 3, padding=1, groups=4),
    Problem(32, 128, 128, 56, 56, 3, padding=1, groups=128),
    Problem(32, 16, 32, 64, 64, 5, padding=2),
    Problem(7, 5, 33, 61, 47, 3, padding=1),
    Problem(1, 32, 64, 112, 112, 3, stride=2, padding=1),
]
TINY = Problem(1, 8, 8, 10, 10, 3)  # on which the device spends less than the host


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement: a line of the JSON file."""

    name: str
    mode: str  # of BatchNorm: "eval"
    precision: str  # of the arithmetic and, for fp16 and bf16, of every tensor
    layout: str  # of x and y: "NCHW" or "channels_last"
    problem: str  # describe(problem)
    us: float | None  # median, in microseconds; None for what cannot run
    us_spread: float | None  # from the first to the third quartile, in microseconds
    relative_l2: float | None  # ||y - oracle|| / ||oracle||, both in float64
    floor_us: float  # time of a copy that moves problem.least_bytes


@dataclasses.dataclass(frozen=True)
class Peer:
    """A way to compute the operator: ``prepare(inputs, options)`` does what is done once and returns what is timed.

    ``options`` are the convolution's: stride, padding, dilation and groups.
    """

    name: str
    precision: str
    layout: str
    prepare: Callable[[tuple, dict], Callable[[], torch.Tensor]]


def options_of(problem: Problem) -> dict:
    """stride, padding, dilation and groups of a problem."""
    return {name: getattr(problem, name) for name in ("stride", "padding", "dilation", "groups")}


def eager(inputs: tuple, options: dict) -> Callable[[], torch.Tensor]:
    """PyTorch's three operators."""
    return lambda: conv_bn_scale(*inputs, **options)


def compiled(mode: str) -> Callable[[tuple, dict], Callable[[], torch.Tensor]]:
    """The three operators through ``torch.compile`` in this mode."""

    def prepare(inputs: tuple, options: dict) -> Callable[[], torch.Tensor]:
        """The compiled call of these inputs."""
        torch._dynamo.reset()  # or a kernel compiled for another precision would be found again
        function = torch.compile(conv_bn_scale, mode=mode, dynamic=False)
        return lambda: function(*inputs, **options)

    return prepare


def folded(inputs: tuple, options: dict) -> Callable[[], torch.Tensor]:
    """One library convolution whose filters BatchNorm and scale were folded into beforehand."""
    x, weight, *vectors, scaling_factor, eps = inputs
    a, b = folding.affine(*vectors, scaling_factor, eps)
    filters = folding.fold(weight, a)  # keeps the layout of weight
    return lambda: F.conv2d(x, filters, b, **options)


def ours(inputs: tuple, options: dict, precision: str = "fp32") -> Callable[[], torch.Tensor]:
    """This package, from raw parameters at every call."""
    return lambda: fused_conv_bn_scale(*inputs, **options, precision=precision)


PEERS = [
    *[Peer("eager PyTorch", precision, "NCHW", eager) for precision in DTYPES],
    *[Peer("torch.compile", precision, "NCHW", compiled("default")) for precision in DTYPES],
    # Without CUDA graphs, which would copy every input into place before each call.
    *[
        Peer("torch.compile max-autotune", precision, "NCHW", compiled("max-autotune-no-cudagraphs"))
        for precision in DTYPES
    ],
    *[Peer("folded cuDNN", precision, layout, folded) for precision in DTYPES for layout in LAYOUTS],
]
OURS = [
    Peer("fusedref", precision, layout, partial(ours, precision="tf32" if precision == "tf32" else "fp32"))
    for precision in DTYPES
    for layout in LAYOUTS
]
# At the other problems: whom fp32 is compared with, and the best that there is in less.
PEERS_OF_OTHERS = [
    peer
    for peer in PEERS
    if peer.name == "folded cuDNN" or (peer.precision == "fp32" and peer.name in ("eager PyTorch", "torch.compile"))
]


def describe(problem: Problem) -> str:
    """Sizes in one line: batch, in_channels -> out_channels, height x width, kernel and whatever is not the default."""
    text = f"{problem.batch}, {problem.in_channels}->{problem.out_channels}, {problem.height}x{problem.width}"
    text += f", {'x'.join(map(str, problem.kernel))}"
    for name, default in (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)):
        if getattr(problem, name) != default:
            text += f", {name} {getattr(problem, name)}"
    return text


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Inside, cuDNN multiplies in tf32 only where ``precision`` says so, and picks its algorithms by timing them."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=precision == "tf32"):
        yield


def samples(call: Callable[[], object], repeats: int = 30) -> list[float]:
    """Device times of ``call`` in microseconds, one for each of ``repeats`` calls after a warm-up.

    Before each call more than the L2 cache is overwritten. The device sleeps until all calls are queued: it waits for
    nothing that the host is late with.
    """
    flush = torch.empty(4 * torch.cuda.get_device_properties().L2_cache_size, dtype=torch.uint8, device="cuda")
    for _ in range(5):
        call()
    starts = [torch.cuda.Event(enable_timing=True) for _ in range(repeats)]
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(repeats)]
    for cycles in (2**24, 2**26, 2**28):  # from about 10 ms on
        torch.cuda.synchronize()
        torch.cuda._sleep(cycles)
        for start, end in zip(starts, ends):
            flush.zero_()
            start.record()
            call()
            end.record()
        queued_in_time = not starts[0].query()
        torch.cuda.synchronize()
        if queued_in_time:
            break
    return [1000 * start.elapsed_time(end) for start, end in zip(starts, ends)]


def host_samples(call: Callable[[], object], repeats: int = 30, calls: int = 100) -> list[float]:
    """Microseconds that the host spends on a call, each of ``repeats`` the mean of ``calls`` that follow each other."""
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        times.append(1e6 * (time.perf_counter() - begin) / calls)
    torch.cuda.synchronize()
    return times[1:]  # the first was the warm-up


def microseconds(call: Callable[[], object]) -> float:
    """The median of ``samples(call)``."""
    return statistics.median(samples(call))


def spread(times: list[float]) -> float:
    """From the first quartile to the third."""
    first, _, third = statistics.quantiles(times, n=4)
    return third - first


def copy(problem: Problem) -> Row:
    """The floor: a copy on the device that reads and writes problem.least_bytes altogether."""
    source = torch.empty(problem.least_bytes // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = samples(lambda: target.copy_(source))
    us = statistics.median(times)
    precision = "fp32" if problem.dtype == torch.float32 else "fp16"  # or bf16, of which as many bytes are moved
    return Row(FLOOR, "eval", precision, "NCHW", describe(problem), us, spread(times), None, us)


def measure(peer: Peer, problem: Problem, inputs: tuple, floor_us: float) -> Row:
    """Times ``peer`` on ``inputs`` (as ``draw`` gives them, float32) and takes its error."""
    dtype = DTYPES[peer.precision]
    memory_format = torch.channels_last if peer.layout == "channels_last" else torch.contiguous_format
    x, weight, *rest = [value.to(dtype) if isinstance(value, torch.Tensor) else value for value in inputs]
    given = (x.to(memory_format=memory_format), weight.to(memory_format=memory_format), *rest)
    with arithmetic(peer.precision), torch.no_grad():
        call = peer.prepare(given, options_of(problem))
        error = relative_l2(call(), given, problem)
        times = samples(call)
    us = statistics.median(times)
    return Row(peer.name, "eval", peer.precision, peer.layout, describe(problem), us, spread(times), error, floor_us)


def relative_l2(y: torch.Tensor, inputs: tuple, problem: Problem) -> float:
    """||y - oracle|| / ||oracle|| in float64, sixteen images at a time: the whole would not fit every card."""
    difference = size = 0.0
    for first in range(0, problem.batch, 16):
        part = slice(first, first + 16)
        expected = oracle(inputs[0][part], *inputs[1:], **options_of(problem))
        difference += (y[part].double() - expected).square().sum().item()
        size += expected.square().sum().item()
    return (difference / size) ** 0.5


def run(work: list[tuple[Problem, list[Peer]]]) -> list[Row]:
    """Measures, for each problem, the floor and its peers on the current CUDA device, with a progress bar."""
    rows = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=sum(len(peers) for _, peers in work))
        for problem, peers in work:
            inputs, floors = draw(problem, seed=0, device="cuda"), {}
            for peer in peers:
                progress.update(task, description=f"{describe(problem)}: {peer.name}, {peer.precision}, {peer.layout}")
                dtype = DTYPES[peer.precision]
                if dtype.itemsize not in floors:
                    rows.append(copy(dataclasses.replace(problem, dtype=dtype)))
                    floors[dtype.itemsize] = rows[-1].us
                rows.append(measure(peer, problem, inputs, floors[dtype.itemsize]))
                progress.advance(task)
    return rows


def compile_ours(problems: list[Problem]) -> None:
    """Compiles the kernels of ``OURS`` for all ``problems``, as many at a time as there are cores."""
    device = torch.device("cuda", torch.cuda.current_device())

    def one(problem: Problem, peer: Peer) -> None:
        """Compiles what ``peer`` runs for ``problem``."""
        precision = "tf32" if peer.precision == "tf32" else "fp32"
        typed = dataclasses.replace(problem, dtype=DTYPES[peer.precision])
        fused.prepare(typed, device, precision, channels_last=peer.layout == "channels_last")

    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(one, problem, peer) for problem in problems for peer in OURS]:
            done.result()


def host_rows() -> list[Row]:
    """What the host spends on one call, on a tiny input; the floor is its time for a copy on the device."""
    inputs = draw(TINY, seed=0, device="cuda")
    modules = [
        kind(TINY.in_channels, TINY.out_channels, TINY.kernel_size, 2.0).cuda().eval()
        for kind in (ConvBnScale, FusedConvBnScale)
    ]
    target = torch.empty_like(inputs.x)
    calls = {
        FLOOR: lambda: target.copy_(inputs.x),
        "eager PyTorch": eager(inputs, {}),
        "eager PyTorch, module": lambda: modules[0](inputs.x),
        "folded cuDNN": folded(inputs, {}),
        "fusedref": ours(inputs, {}),
        "fusedref, module": lambda: modules[1](inputs.x),
    }
    rows = []
    with torch.no_grad():
        for name, call in calls.items():
            times = host_samples(call)
            us = statistics.median(times)
            floor_us = rows[0].us if rows else us
            rows.append(Row(HOST + name, "eval", "fp32", "NCHW", describe(TINY), us, spread(times), None, floor_us))
    return rows


def versions() -> dict[str, str]:
    """Of everything that the times depend on."""
    import pycuda
    import pycuda.driver as drv

    driver = drv.get_driver_version()
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": str(torch.backends.cudnn.version()),
        "driver": f"{driver // 1000}.{driver % 1000 // 10}",
        "pycuda": pycuda.VERSION_TEXT,
    }


def save(path: Path, rows: list[Row]) -> None:
    """Writes ``rows`` to a JSON file. Rows that a file of the same card and versions has of other names stay."""
    measured = {"card": torch.cuda.get_device_name(), "versions": versions(), "rows": []}
    if path.exists():
        before = json.loads(path.read_text())
        if (before["card"], before["versions"]) == (measured["card"], measured["versions"]):
            measured["rows"] = before["rows"]
    fresh = [dataclasses.asdict(row) for row in rows]
    keys = [_key(row) for row in fresh]
    measured["rows"] = [row for row in measured["rows"] if _key(row) not in keys] + fresh
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(measured, indent=1) + "\n")


def load(path: Path) -> tuple[str, list[Row]]:
    """(card, rows) of a file that ``save`` wrote."""
    measured = json.loads(path.read_text())
    return measured["card"], [Row(**row) for row in measured["rows"]]


def in_family(problem: Problem) -> bool:
    """Whether the fast kernels are meant for such a problem."""
    small = problem.in_channels <= 64 and max(problem.kernel) <= 7
    return small and max(problem.strides) <= 2 and problem.groups == 1


def best(rows: list[Row], precision: str, ours: bool) -> Row:
    """The fastest row of a precision, among this package's or among all others."""
    found = [row for row in rows if row.precision == precision and row.name != FLOOR]
    return min((row for row in found if (row.name == "fusedref") == ours), key=lambda row: row.us)


def times_as_fast(rows: list[Row]) -> float:
    """How many times as fast as the best peer this package is in fp32, the geometric mean over the rows' problems."""
    problems = {row.problem: [other for other in rows if other.problem == row.problem] for row in rows}
    ratios = [best(of_one, "fp32", False).us / best(of_one, "fp32", True).us for of_one in problems.values()]
    return math.exp(statistics.mean(map(math.log, ratios)))


def table_of_others(rows: list[Row], card: str) -> Table:
    """A line for each problem: the floor, and the best peer beside the best of ours in each precision."""
    result = Table(title=f"Other problems, microseconds on {card}")
    result.add_column("")
    for heading in ("floor", "best fp32 peer", "fusedref", "times", *[f"{p} peer, fusedref" for p in ("tf32", "fp16")]):
        result.add_column(heading, justify="right")
    for problem in dict.fromkeys(row.problem for row in rows):
        of_one = [row for row in rows if row.problem == problem]
        peer, mine = best(of_one, "fp32", False), best(of_one, "fp32", True)
        cells = [f"{mine.floor_us:.1f}", f"{peer.us:.1f}", f"{mine.us:.1f}", f"{peer.us / mine.us:.2f}"]
        for precision in ("tf32", "fp16"):
            cells.append(", ".join(f"{best(of_one, precision, ours).us:.1f}" for ours in (False, True)))
        result.add_row(problem, *cells)
    return result


def table(rows: list[Row], card: str) -> Table:
    """The rows for a terminal."""
    result = Table(title=f"{rows[0].problem}, {card}")
    for heading in ("", "precision", "layout"):
        result.add_column(heading)
    for heading in ("us", "+-", "x floor", "relative L2"):
        result.add_column(heading, justify="right")
    for row in rows:
        error = "" if row.relative_l2 is None else f"{row.relative_l2:.1e}"
        times = f"{row.us:.1f}", f"{row.us_spread:.1f}", f"{row.us / row.floor_us:.2f}"
        result.add_row(row.name, row.precision, row.layout, *times, error)
    return result


def picture(rows: list[Row], card: str):
    """A matplotlib Figure: a bar for each row, the floor as a line for each element size."""
    from matplotlib.figure import Figure

    bars = [row for row in rows if row.name != FLOOR]
    figure = Figure(figsize=(9, 0.32 * len(bars) + 1.2), layout="constrained")
    axes = figure.subplots()
    colours = {"fp32": "tab:blue", "tf32": "tab:orange", "fp16": "tab:green", "bf16": "tab:olive"}
    names = [f"{row.name}, {row.precision}, {row.layout}" for row in bars]
    axes.barh(names, [row.us for row in bars], color=[colours[row.precision] for row in bars])
    for row in rows:
        if row.name == FLOOR:
            axes.axvline(row.us, color=colours[row.precision], linestyle="--", label=f"floor, {row.precision}")
    axes.invert_yaxis()
    axes.set_xlabel("microseconds (median)")
    axes.set_title(f"{rows[0].problem}, {card}")
    axes.legend()
    return figure


def main(json_file: Path | None, plot: Path | None, console: Console) -> int:
    """What ``python -m fusedref bench`` does; returns its exit status."""
    if cuda.device() != "gpu":
        console.print(
            "Times are measured on a card alone, and here is no NVIDIA GPU with PyCUDA (or FUSEDREF_DEVICE hides it).\n"
            "Without one, `make ladder` shows what can be counted, beside the committed times of a card."
        )
        return 2
    card = torch.cuda.get_device_name()
    with console.status("compiling"):
        compile_ours([KERNELBENCH_73, *OTHERS])
    rows = run([(KERNELBENCH_73, PEERS + OURS)])
    console.print(table(rows, card))
    others = run([(problem, PEERS_OF_OTHERS + OURS) for problem in OTHERS])
    console.print(table_of_others(others, card))
    family = [describe(problem) for problem in OTHERS if in_family(problem)]
    ratio = times_as_fast([row for row in others if row.problem in family])
    console.print(
        f"fp32, the {len(family)} of them with one group and up to 64 input channels: {ratio:.2f} times as fast as the "
        "best of PyTorch's (geometric mean)"
    )
    host = host_rows()
    console.print(table(host, card))
    if json_file is not None:
        save(json_file, rows + others + host)
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        picture(rows, card).savefig(plot, dpi=150)
    return 0


def _key(row: dict) -> tuple:
    return tuple(row[name] for name in ("name", "mode", "precision", "layout", "problem"))
