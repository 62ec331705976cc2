"""Which candidate was the fastest: choices that ``fusedref.tune`` keeps in the cache, and those that the package has.

``measured.json`` has, for one card, the choice for each convolution of well-known networks at a few batches, in each
precision and layout that was timed. At another batch, up to eight times as large or small, the choice for the nearest
one holds; bfloat16 takes float16's choice.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fusedref.cache import cached_bytes, digest, kept_bytes
from fusedref.csrc import COMMON, INFERENCE
from fusedref.plans.candidates import Choice
from fusedref.plans.variant import KernelVariant
from fusedref.problem import Problem
from fusedref.target import Target

FILE = Path(__file__).with_name("measured.json")
MOST_TIMES = 8  # larger or smaller
PRECISIONS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


class Measured(NamedTuple):
    """The choices for one card."""

    card: str
    architecture: str
    multiprocessors: int
    choices: dict[tuple[str, str], dict[int, Choice]]  # by sizes and way, then by batch


def tuned(problem: Problem, target: Target, variant: KernelVariant) -> Choice | None:
    """Return the choice that ``remember`` was given on this card, None if there is none."""
    if not target.card:
        return None
    content = kept_bytes(_entry(problem, target, variant))
    return None if content is None else parsed(content.decode())


def remember(choice: Choice, problem: Problem, target: Target, variant: KernelVariant) -> None:
    """Keep the fastest choice for ``problem`` in the cache."""
    cached_bytes(_entry(problem, target, variant), lambda _: str(choice).encode())


def shipped(problem: Problem, target: Target, variant: KernelVariant) -> tuple[Choice, str, int] | None:
    """Return the choice of ``measured.json``, its card and its batch; None for other cards and problems."""
    measured = shipped_choices()
    if measured is None or (target.architecture, target.multiprocessors) != measured[1:3]:
        return None
    by_batch = measured.choices.get((sizes_of(problem), way_of(problem, variant).replace("bf16", "fp16")))
    if not by_batch or not problem.batch:
        return None
    batch = min(by_batch, key=lambda measured: abs(math.log(measured / problem.batch)))
    if abs(math.log(batch / problem.batch)) > math.log(MOST_TIMES):
        return None
    return by_batch[batch], measured.card, batch


@cache
def shipped_choices() -> Measured | None:
    """Return what FILE has, None where there is no file."""
    return read_choices(FILE) if FILE.exists() else None


def read_choices(path: Path) -> Measured:
    """Return the choices of a file that ``write_choices`` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    kernels = [parsed(text) for text in content["kernels"]]
    columns = [(int(batch), way) for batch, way in content["columns"]]
    choices: dict[tuple[str, str], dict[int, Choice]] = {}
    for sizes, row in content["choices"].items():
        for (batch, way), kernel in zip(columns, row, strict=True):
            if kernel is not None:
                choices.setdefault((sizes, way), {})[batch] = kernels[kernel]
    return Measured(content["card"], content["architecture"], content["multiprocessors"], choices)


def written_choices(measured: Measured, versions: dict[str, Any]) -> str:
    """Return the text of a file of choices, a line for each convolution: the number of its kernel in each column."""
    columns = sorted({(batch, way) for (_, way), by_batch in measured.choices.items() for batch in by_batch})
    kernels = sorted({choice for by_batch in measured.choices.values() for choice in by_batch.values()})
    numbers = {choice: number for number, choice in enumerate(kernels)}
    lines = []
    for sizes in sorted({sizes for sizes, _ in measured.choices}, key=lambda sizes: [*map(int, sizes.split())]):
        found = [measured.choices.get((sizes, way), {}).get(batch) for batch, way in columns]
        row = [None if choice is None else numbers[choice] for choice in found]
        lines.append(f'  "{sizes}": {json.dumps(row)}')
    head = {
        "card": measured.card,
        "architecture": measured.architecture,
        "multiprocessors": measured.multiprocessors,
        "versions": versions,
        "columns": columns,
        "kernels": [str(choice) for choice in kernels],
    }
    body = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in head.items())
    return f'{{\n{body},\n "choices": {{\n' + ",\n".join(lines) + "\n }\n}\n"


def sizes_of(problem: Problem) -> str:
    """Return everything of a convolution but batch, bias and dtype, as numbers in one line."""
    pads = [side for pair in problem.pads for side in pair]
    sizes = problem.in_channels, problem.out_channels, problem.height, problem.width, *problem.kernel
    return " ".join(map(str, (*sizes, *problem.strides, *pads, *problem.dilations, problem.groups)))


def way_of(problem: Problem, variant: KernelVariant) -> str:
    """Return precision and layout."""
    precision = "tf32" if variant.precision == "tf32" else PRECISIONS[problem.dtype]
    return f"{precision} {'channels_last' if variant.channels_last else 'NCHW'}"


def parsed(text: str) -> Choice:
    """Return the choice whose text this is."""
    kernel, *sizes = text.split()
    return Choice(kernel, tuple(map(int, sizes)))


def _entry(problem: Problem, target: Target, variant: KernelVariant) -> str:
    """Return the name of the cache's entry for a problem."""
    parts = str(problem.batch), sizes_of(problem), way_of(problem, variant), torch.__version__, _sources()
    return digest(target.card, target.architecture, str(target.multiprocessors), *parts) + ".choice"


@cache
def _sources() -> str:
    """Return a digest of the kernels: what was measured of others counts no more."""
    files = sorted([*INFERENCE.glob("*.cu*"), *COMMON.glob("*.cuh")])
    return digest(*[file.read_bytes() for file in files])
