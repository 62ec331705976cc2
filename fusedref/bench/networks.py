"""Time whole networks of torchvision's: eager PyTorch, torch.compile, and ``fusedref.fuse``.

A CUDA graph holds one forward pass, or one training step (forward, backward and SGD), so that the host's time does not
count. bf16 is autocast's. The floor moves x and the parameters once, and in a training step the parameters' gradients.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedref.bench.peers import LAYOUTS
from fusedref.bench.rows import Row
from fusedref.bench.timing import arithmetic, copy_samples, samples, spread
from fusedref.bench.training import MIB
from fusedref.commandline import progress_bar
from fusedref.fusion import fuse
from fusedref.module import FusedConvBnScale

NETWORKS = "resnet50", "mobilenet_v2"
PRECISIONS = "fp32", "bf16"
INFERENCE, TRAINING = "network, inference", "network, training step"
BATCH, SIZE, CLASSES = 32, 224, 1000
COMPARED = 4  # images, in float64


def _compiled(model: nn.Module) -> nn.Module:
    torch._dynamo.reset()  # forget what was compiled for another network
    return torch.compile(model, dynamic=False)  # type: ignore[return-value]


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "eager PyTorch": lambda model: model,
    "torch.compile": _compiled,
    "fusedref": fuse,
}


def network_rows(
    networks: Sequence[str] = NETWORKS,
    modes: Iterable[str] = (INFERENCE, TRAINING),
    precisions: Sequence[str] = PRECISIONS,
    layouts: Sequence[str] = LAYOUTS,
    ways: Sequence[str] = tuple(WAYS),
) -> Iterator[Row]:
    """Yield a row for each way to run each network; show progress on a terminal."""
    work = [
        (name, mode, precision, layout, way)
        for name in networks
        for mode in modes
        for precision in precisions
        for layout in layouts
        for way in ways
    ]
    with progress_bar() as progress:
        task = progress.add_task("networks", total=len(work))
        for name, mode, precision, layout, way in work:
            progress.update(task, description=", ".join((name, mode, precision, layout, way)))
            yield measure_network(name, mode, precision, layout, way)
            progress.advance(task)


def measure_network(name: str, mode: str, precision: str, layout: str, way: str, device: str = "cuda") -> Row:
    """Time one way to run one network."""
    format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    torch.manual_seed(0)
    x = torch.randn(BATCH, 3, SIZE, SIZE, device=device).to(memory_format=format)
    with arithmetic("fp32"):
        built: Any = build(name)
        plain = with_statistics(built.to(device, memory_format=format), x).train(mode == TRAINING)
        model = WAYS[way](plain)
        if way == "fusedref":
            compile_pairs(plain, x, precision)
        call = (training_step if mode == TRAINING else inference)(model, x, precision)
        error = None
        if mode == INFERENCE:
            part = x[:COMPARED].double()
            with torch.no_grad():
                expected = copy.deepcopy(plain).double()(part)
            error = float((call()[:COMPARED].double() - expected).norm() / expected.norm())
        peak = peak_mib(call)
        times = samples(captured(call).replay, repeats=20)
    parameters = sum(parameter.nbytes for parameter in plain.parameters())
    floor = statistics.median(copy_samples(x.nbytes + (2 if mode == TRAINING else 1) * parameters))
    us = statistics.median(times)
    return Row(way, mode, precision, layout, f"{name}, {BATCH}", us, spread(times), error, floor, peak)


def build(name: str) -> nn.Module:
    """Return a network of torchvision's without trained weights; raise ModuleNotFoundError without torchvision."""
    models: Any = import_module("torchvision.models")
    model: nn.Module = models.get_model(name, weights=None, num_classes=CLASSES)
    return model


def with_statistics(model: nn.Module, x: Tensor) -> nn.Module:
    """Give BatchNorm the statistics of ``x``, so that numbers keep their size through all layers."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model


def autocast(precision: str) -> AbstractContextManager[Any]:
    """Return the context of a precision: autocast for bf16."""
    return torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def inference(model: nn.Module, x: Tensor, precision: str) -> Callable[[], Tensor]:
    """Return the call that computes the network's output."""

    def call() -> Tensor:
        """Return the output."""
        with torch.no_grad(), autocast(precision):
            y: Tensor = model(x)
        return y

    return call


def training_step(model: nn.Module, x: Tensor, precision: str) -> Callable[[], Tensor]:
    """Return the call that trains for a step on random labels."""
    labels = torch.randint(CLASSES, (x.shape[0],), device=x.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, foreach=True)

    def call() -> Tensor:
        """Return the loss."""
        optimizer.zero_grad(set_to_none=True)
        with autocast(precision):
            loss = F.cross_entropy(model(x), labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no type hints for it
        optimizer.step()
        return loss

    return call


def peak_mib(call: Callable[[], object]) -> float:
    """Return the MiB that a call takes beyond what is there before it, after two calls that warm up."""
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Return a CUDA graph of a call that was made before."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no type hints for it
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def compile_pairs(model: nn.Module, x: Tensor, precision: str) -> None:
    """Compile the kernels of every pair that ``fuse`` finds in ``model``, one a core at a time."""
    fused: Any = fuse(model)
    inputs: dict[str, Tensor] = {}
    for line in fused.fusion_report.fused:  # with a hook, the two layers run as in the model
        fused.get_submodule(line.conv).register_forward_pre_hook(partial(_keep_input, inputs, line.conv))
    with torch.no_grad(), autocast(precision):
        fused(x)
    distinct: dict[str, tuple[nn.Conv2d, nn.BatchNorm2d, Tensor]] = {}
    for line in fused.fusion_report.fused:
        conv, bn, given = model.get_submodule(line.conv), model.get_submodule(line.bn), inputs[line.conv]
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(bn, nn.BatchNorm2d)
        distinct[f"{conv} {given.shape}"] = conv, bn, given

    def call(conv: nn.Conv2d, bn: nn.BatchNorm2d, given: Tensor) -> None:
        """Run a copy of a pair once."""
        pair = FusedConvBnScale.from_modules(copy.deepcopy(conv), copy.deepcopy(bn), 1.0)
        own = torch.zeros_like(given).requires_grad_(model.training)
        with torch.set_grad_enabled(model.training), autocast(precision):
            y = pair(own)
        if model.training:
            y.sum().backward()

    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(call, *pair) for pair in distinct.values()]:
            done.result()
    torch.cuda.synchronize()


def _keep_input(inputs: dict[str, Tensor], name: str, layer: nn.Module, given: tuple[Tensor]) -> None:
    """Keep what a layer takes."""
    inputs[name] = given[0].detach()
