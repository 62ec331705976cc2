"""Measure the floor, the peers with their errors, and the host's time for a call."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from fusedref.bench.peers import DTYPES, OURS, Peer, eager, folded, ours
from fusedref.bench.problems import TINY, describe
from fusedref.bench.rows import FLOOR, HOST, Row
from fusedref.bench.timing import arithmetic, copy_samples, host_samples, samples, spread
from fusedref.commandline import progress_bar
from fusedref.module import FusedConvBnScale
from fusedref.ops.inference import compile_inference
from fusedref.parameters import Parameters
from fusedref.problem import Problem
from fusedref.reference import ConvBnScale, oracle
from fusedref.validation import random_inputs

IMAGES_AT_A_TIME = 16  # compared in float64, or not every card had the memory


def measure_floor(problem: Problem) -> Row:
    """Time the floor: a copy on the device that reads and writes problem.least_bytes altogether."""
    times = copy_samples(problem.least_bytes)
    us = statistics.median(times)
    precision = "fp32" if problem.dtype == torch.float32 else "fp16"  # also for bf16, which moves as many bytes
    return Row(FLOOR, "eval", precision, "NCHW", describe(problem), us, spread(times), None, us)


def measure(peer: Peer, problem: Problem, inputs: Parameters, floor_us: float) -> Row:
    """Time ``peer`` on ``inputs``, which are float32, and compute its error."""
    dtype = DTYPES[peer.precision]
    memory_format = torch.channels_last if peer.layout == "channels_last" else torch.contiguous_format
    converted: list[Any] = [value.to(dtype) if isinstance(value, Tensor) else value for value in inputs]
    typed = Parameters(*converted)
    given = typed._replace(
        x=typed.x.to(memory_format=memory_format), weight=typed.weight.to(memory_format=memory_format)
    )
    with arithmetic(peer.precision), torch.no_grad():
        call = peer.prepare(given, problem.conv_options)
        error = relative_l2(call(), given, problem)
        times = samples(call)
    us = statistics.median(times)
    return Row(peer.name, "eval", peer.precision, peer.layout, describe(problem), us, spread(times), error, floor_us)


def relative_l2(y: Tensor, inputs: Parameters, problem: Problem) -> float:
    """Compute ||y - oracle|| / ||oracle|| in float64."""
    difference = size = 0.0
    for first in range(0, problem.batch, IMAGES_AT_A_TIME):
        part = slice(first, first + IMAGES_AT_A_TIME)
        expected = oracle(*inputs._replace(x=inputs.x[part]), **problem.conv_options)
        difference += (y[part].double() - expected).square().sum().item()
        size += expected.square().sum().item()
    return float((difference / size) ** 0.5)


def run(work: list[tuple[Problem, list[Peer]]]) -> list[Row]:
    """Measure the floor and the peers of each problem on the current CUDA device; show progress on a terminal."""
    rows = []
    with progress_bar() as progress:
        task = progress.add_task("measuring", total=sum(len(peers) for _, peers in work))
        for problem, peers in work:
            inputs = random_inputs(problem, seed=0, device="cuda")
            floors: dict[int, float] = {}  # by the size of an element
            for peer in peers:
                progress.update(task, description=f"{describe(problem)}: {peer.name}, {peer.precision}, {peer.layout}")
                dtype = DTYPES[peer.precision]
                if dtype.itemsize not in floors:
                    rows.append(measure_floor(dataclasses.replace(problem, dtype=dtype)))
                    floors[dtype.itemsize] = rows[-1].us
                rows.append(measure(peer, problem, inputs, floors[dtype.itemsize]))
                progress.advance(task)
    return rows


def compile_ours(problems: list[Problem]) -> None:
    """Compile the kernels of ``OURS`` for all ``problems``, one a core at a time; show progress on a terminal."""
    device = torch.device("cuda", torch.cuda.current_device())

    def compile_one(problem: Problem, peer: Peer) -> None:
        """Compile the kernel that ``peer`` runs for ``problem``."""
        precision = "tf32" if peer.precision == "tf32" else "fp32"
        typed = dataclasses.replace(problem, dtype=DTYPES[peer.precision])
        compile_inference(typed, device, precision, channels_last=peer.layout == "channels_last")

    with progress_bar() as progress, ThreadPoolExecutor() as pool:
        compilations = [pool.submit(compile_one, problem, peer) for problem in problems for peer in OURS]
        try:
            for compilation in progress.track(compilations, description="compiling"):
                compilation.result()
        finally:
            pool.shutdown(cancel_futures=True)  # so that Ctrl-C or an error does not wait for the rest


def host_rows() -> list[Row]:
    """Measure the host's time for a call on a tiny input; the floor is its time for a copy on the device."""
    inputs = random_inputs(TINY, seed=0, device="cuda")
    reference, fused = (
        kind(TINY.in_channels, TINY.out_channels, TINY.kernel, 2.0).cuda().eval()
        for kind in (ConvBnScale, FusedConvBnScale)
    )
    target = torch.empty_like(inputs.x)
    calls: dict[str, Callable[[], Tensor]] = {
        FLOOR: lambda: target.copy_(inputs.x),
        "eager PyTorch": eager(inputs, {}),
        "eager PyTorch, module": lambda: reference(inputs.x),
        "folded cuDNN": folded(inputs, {}),
        "fusedref": ours(inputs, {}),
        "fusedref, module": lambda: fused(inputs.x),
    }
    rows: list[Row] = []
    with torch.no_grad():
        for name, call in calls.items():
            times = host_samples(call)
            us = statistics.median(times)
            floor_us = rows[0].us if rows else us
            rows.append(Row(HOST + name, "eval", "fp32", "NCHW", describe(TINY), us, spread(times), None, floor_us))
    return rows
