"""Measure: the floor, the peers and what the host spends, with their errors."""

from __future__ import annotations

import dataclasses
import statistics
from concurrent.futures import ThreadPoolExecutor

import torch
from rich.console import Console
from rich.progress import Progress

from fusedref.bench.peers import DTYPES, OURS, Peer, eager, folded, ours
from fusedref.bench.problems import TINY, describe
from fusedref.bench.rows import FLOOR, HOST, Row
from fusedref.bench.timing import arithmetic, host_samples, samples, spread
from fusedref.module import FusedConvBnScale
from fusedref.ops.inference import compile_inference
from fusedref.problem import Problem
from fusedref.reference import ConvBnScale, oracle
from fusedref.validation import random_inputs


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
        call = peer.prepare(given, problem.conv_options)
        error = relative_l2(call(), given, problem)
        times = samples(call)
    us = statistics.median(times)
    return Row(peer.name, "eval", peer.precision, peer.layout, describe(problem), us, spread(times), error, floor_us)


def relative_l2(y: torch.Tensor, inputs: tuple, problem: Problem) -> float:
    """||y - oracle|| / ||oracle|| in float64, sixteen images at a time: the whole would not fit every card."""
    difference = size = 0.0
    for first in range(0, problem.batch, 16):
        part = slice(first, first + 16)
        expected = oracle(inputs[0][part], *inputs[1:], **problem.conv_options)
        difference += (y[part].double() - expected).square().sum().item()
        size += expected.square().sum().item()
    return (difference / size) ** 0.5


def run(work: list[tuple[Problem, list[Peer]]]) -> list[Row]:
    """Measures, for each problem, the floor and its peers on the current CUDA device, with a progress bar."""
    rows = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=sum(len(peers) for _, peers in work))
        for problem, peers in work:
            inputs, floors = random_inputs(problem, seed=0, device="cuda"), {}
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
        compile_inference(typed, device, precision, channels_last=peer.layout == "channels_last")

    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(one, problem, peer) for problem in problems for peer in OURS]:
            done.result()


def host_rows() -> list[Row]:
    """What the host spends on one call, on a tiny input; the floor is its time for a copy on the device."""
    inputs = random_inputs(TINY, seed=0, device="cuda")
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
