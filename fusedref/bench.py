"""Times on a card: the floor, what PyTorch offers for the same operator, and this package, all in one run.

A time is the median over many calls, each between two CUDA events and each after the L2 cache has been overwritten, so
that every call finds its data in memory. The floor is the time that the device needs to copy as many bytes as the
operator must move. Beside every time stands the error against float64 of the very call that was timed.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fusedref import cuda, folding
from fusedref.fused import fused_conv_bn_scale
from fusedref.problem import KERNELBENCH_73, Problem
from fusedref.reference import conv_bn_scale, oracle
from fusedref.validator import draw

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16}
FLOOR = "device copy"


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement: a line of the JSON file."""

    name: str
    mode: str  # of BatchNorm: "eval"
    precision: str  # of the arithmetic and, for fp16, of every tensor
    layout: str  # of x and y: "NCHW" or "channels_last"
    problem: str  # describe(problem)
    us: float | None  # median, in microseconds; None for what cannot run
    us_spread: float | None  # from the first to the third quartile, in microseconds
    relative_l2: float | None  # ||y - oracle|| / ||oracle||, both in float64
    floor_us: float  # time of a copy that moves problem.least_bytes


@dataclasses.dataclass(frozen=True)
class Peer:
    """A way to compute the operator: ``prepare(inputs)`` does what is done once and returns the call that is timed."""

    name: str
    precision: str
    layout: str
    prepare: Callable[[tuple], Callable[[], torch.Tensor]]


def eager(inputs: tuple) -> Callable[[], torch.Tensor]:
    """PyTorch's three operators."""
    return lambda: conv_bn_scale(*inputs)


def compiled(mode: str) -> Callable[[tuple], Callable[[], torch.Tensor]]:
    """The three operators through ``torch.compile`` in this mode."""

    def prepare(inputs: tuple) -> Callable[[], torch.Tensor]:
        torch._dynamo.reset()  # or a kernel compiled for another precision would be found again
        function = torch.compile(conv_bn_scale, mode=mode, dynamic=False)
        return lambda: function(*inputs)

    return prepare


def folded(inputs: tuple) -> Callable[[], torch.Tensor]:
    """One library convolution whose filters BatchNorm and scale were folded into beforehand."""
    x, weight, *vectors, scaling_factor, eps = inputs
    a, b = folding.affine(*vectors, scaling_factor, eps)
    filters = folding.fold(weight, a)  # keeps the layout of weight
    return lambda: F.conv2d(x, filters, b)


def ours(inputs: tuple) -> Callable[[], torch.Tensor]:
    """This package, from raw parameters at every call."""
    return lambda: fused_conv_bn_scale(*inputs)


PEERS = [
    *[Peer("eager PyTorch", precision, "NCHW", eager) for precision in DTYPES],
    *[Peer("torch.compile", precision, "NCHW", compiled("default")) for precision in DTYPES],
    # Without CUDA graphs, which would copy every input into place before each call.
    *[
        Peer("torch.compile max-autotune", precision, "NCHW", compiled("max-autotune-no-cudagraphs"))
        for precision in DTYPES
    ],
    *[
        Peer("folded cuDNN", precision, layout, folded)
        for precision in DTYPES
        for layout in ("NCHW", "channels_last")
    ],
]
OURS = [Peer("fusedref", "fp32", "NCHW", ours)]


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

    Before each call more than the L2 cache is overwritten, which also lets the host run ahead, so that its own time
    does not enter.
    """
    flush = torch.empty(4 * torch.cuda.get_device_properties().L2_cache_size, dtype=torch.uint8, device="cuda")
    for _ in range(5):
        call()
    starts = [torch.cuda.Event(enable_timing=True) for _ in range(repeats)]
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(repeats)]
    for start, end in zip(starts, ends):
        flush.zero_()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [1000 * start.elapsed_time(end) for start, end in zip(starts, ends)]


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
    precision = "fp16" if problem.dtype == torch.float16 else "fp32"
    return Row(FLOOR, "eval", precision, "NCHW", describe(problem), us, spread(times), None, us)


def measure(peer: Peer, problem: Problem, inputs: tuple, floor_us: float) -> Row:
    """Times ``peer`` on ``inputs`` (as ``draw`` gives them, float32) and takes its error."""
    dtype = DTYPES[peer.precision]
    memory_format = torch.channels_last if peer.layout == "channels_last" else torch.contiguous_format
    x, weight, *rest = [value.to(dtype) if isinstance(value, torch.Tensor) else value for value in inputs]
    given = (x.to(memory_format=memory_format), weight.to(memory_format=memory_format), *rest)
    with arithmetic(peer.precision), torch.no_grad():
        call = peer.prepare(given)
        error = relative_l2(call(), given, problem)
        times = samples(call)
    us = statistics.median(times)
    return Row(peer.name, "eval", peer.precision, peer.layout, describe(problem), us, spread(times), error, floor_us)


def relative_l2(y: torch.Tensor, inputs: tuple, problem: Problem) -> float:
    """||y - oracle|| / ||oracle|| in float64, sixteen images at a time: the whole would not fit every card."""
    options = {name: getattr(problem, name) for name in ("stride", "padding", "dilation", "groups")}
    difference = size = 0.0
    for first in range(0, problem.batch, 16):
        part = slice(first, first + 16)
        expected = oracle(inputs[0][part], *inputs[1:], **options)
        difference += (y[part].double() - expected).square().sum().item()
        size += expected.square().sum().item()
    return (difference / size) ** 0.5


def run(problem: Problem = KERNELBENCH_73, peers: list[Peer] | None = None) -> list[Row]:
    """Measures the floor and ``peers`` (all, and this package) on the current CUDA device, with a progress bar."""
    peers = PEERS + OURS if peers is None else peers
    inputs = draw(problem, seed=0, device="cuda")
    rows, floors = [], {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=len(peers))
        for peer in peers:
            progress.update(task, description=f"{peer.name}, {peer.precision}, {peer.layout}")
            dtype = DTYPES[peer.precision]
            if dtype not in floors:
                rows.append(copy(dataclasses.replace(problem, dtype=dtype)))
                floors[dtype] = rows[-1].us
            rows.append(measure(peer, problem, inputs, floors[dtype]))
            progress.advance(task)
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
    colours = {"fp32": "tab:blue", "tf32": "tab:orange", "fp16": "tab:green"}
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
    rows, card = run(), torch.cuda.get_device_name()
    console.print(table(rows, card))
    if json_file is not None:
        save(json_file, rows)
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        picture(rows, card).savefig(plot, dpi=150)
    return 0


def _key(row: dict) -> tuple:
    return tuple(row[name] for name in ("name", "mode", "precision", "layout", "problem"))
