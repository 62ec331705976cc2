"""Provide what every lesson needs: its problem, random inputs, and times.

Only this module makes a lesson depend on the device. A lesson runs problem 73 on a GPU and measures its times there; on
the emulator it runs a small problem and shows committed times.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from IPython import get_ipython

from fusedref import bench, cuda
from fusedref.problem import KERNELBENCH_73, SMALL_73, Problem
from fusedref.validation import random_inputs
from kernels import ladder

# {"card": name, "us": {what: microseconds}, "cells": digests of the code cells of the lessons that measured them}
COMMITTED = Path(__file__).parent / "measured" / "lessons.json"


def lesson_problem() -> Problem:
    """Return problem 73 on a GPU, and the same layer on two small images on the emulator."""
    return KERNELBENCH_73 if on_gpu() else SMALL_73


def on_gpu() -> bool:
    """Return whether kernels run on a GPU."""
    return cuda.device() == "gpu"


def device_name() -> str:
    """Return the card's name, or "emulator"."""
    return torch.cuda.get_device_name() if on_gpu() else "emulator"


def torch_device() -> str:
    """Return the device on which torch's operators run: "cuda" or "cpu"."""
    return "cuda" if on_gpu() else "cpu"


def about() -> str:
    """Say where this lesson runs and where its times come from."""
    if on_gpu():
        return f"The kernels run on: {device_name()}. Times are measured as the cells run."
    times = (
        f"are those committed from a run on: {_committed()['card']}"
        if COMMITTED.exists()
        else "have not been measured yet"
    )
    return f"The kernels run on: the emulator, since there is no GPU here. Times {times}."


def draw(problem: Problem, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Return the validator's random x, weight, bias, running_mean, running_var, gamma and beta as NumPy arrays."""
    return tuple(tensor.numpy() for tensor in random_inputs(problem, seed)[:7])


def tensors(arrays: tuple[np.ndarray, ...]) -> list[torch.Tensor]:
    """Return the arrays as torch tensors on the device of torch's operators."""
    return [torch.from_numpy(array).to(torch_device()) for array in arrays]


def relative_l2(y: np.ndarray, expected: torch.Tensor) -> float:
    """Return ||y - expected|| / ||expected||, computed in float64."""
    expected = expected.double()
    difference = torch.from_numpy(y).to(expected.device).double() - expected
    return float(difference.norm() / expected.norm())


def variant(tiled: ladder.Tiled, *changes: tuple[str, str]) -> ladder.Tiled:
    """Return the rung with changes (old, new) in a copy of its source.

    Raise ValueError if the source does not contain an old text.
    """
    source = (ladder.KERNELS / f"{tiled.file}.cu").read_text()
    for old, new in changes:
        if old not in source:
            raise ValueError(f"{tiled.file}.cu has no {old!r}")
        source = source.replace(old, new)
    changed = Path(tempfile.mkdtemp(dir=_variants().name)) / tiled.file
    changed.with_suffix(".cu").write_text(source)
    return dataclasses.replace(tiled, file=str(changed))


@contextmanager
def changed_kernels(file: str, *changes: tuple[str, str]) -> Iterator[None]:
    """Let the ladder run a copy of its kernels with changes (old, new) in `file`, such as "13_backward.cu".

    Raise ValueError if the file does not contain an old text.
    """
    before, changed = ladder.KERNELS, Path(tempfile.mkdtemp(dir=_variants().name))
    for path in before.glob("*.cu"):
        shutil.copy(path, changed)
    source = (changed / file).read_text()
    for old, new in changes:
        if old not in source:
            raise ValueError(f"{file} has no {old!r}")
        source = source.replace(old, new)
    (changed / file).write_text(source)
    ladder.KERNELS = changed
    try:
        yield
    finally:
        ladder.KERNELS = before


@cache
def _variants() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()  # removed when Python exits


def us(what: str, call: Callable[[], object]) -> float:
    """Return the time of `call` in microseconds: measured on a GPU, else the recorded time of that name.

    Without a GPU, the time of a cell that was changed is not known: return NaN, and say so. On a GPU with
    FUSEDREF_RECORD set, as lessons.execute sets it, also record the time in measured/lessons.json.
    """
    if not on_gpu():
        if not COMMITTED.exists():
            return math.nan
        cell = running_cell()
        if cell is not None and cell_digest(cell) not in _committed().get("cells", [cell_digest(cell)]):
            print(f"{what}: not measured, since this cell was changed and there is no GPU here")
            return math.nan
        return _committed()["us"].get(what, math.nan)
    with bench.arithmetic("fp32"), torch.no_grad():
        value = bench.microseconds(call)
    if os.environ.get("FUSEDREF_RECORD"):
        record = _committed() if COMMITTED.exists() else {"card": "", "us": {}}
        if record["card"] != device_name():
            record = {"card": device_name(), "us": {}}
        if cell := running_cell():
            record["cells"] = sorted({*record.get("cells", []), cell_digest(cell)})
        record["us"][what] = round(value, 1 if value >= 10 else 3)
        COMMITTED.parent.mkdir(exist_ok=True)
        COMMITTED.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    return value


def running_cell() -> str | None:
    """Return the source of the notebook's cell that is running; None outside a notebook."""
    shell = get_ipython()
    return shell.history_manager.input_hist_raw[-1] if shell is not None and shell.history_manager else None


def cell_digest(source: str) -> str:
    """Return a hash of a cell's source, by which a time knows the cell that measured it."""
    return hashlib.sha256(source.strip().encode()).hexdigest()[:12]


def _committed() -> dict[str, Any]:
    return json.loads(COMMITTED.read_text())
