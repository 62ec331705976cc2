"""What the lessons stand on: the problem they run at, its inputs, and times that are either measured here or committed.

This is the one place where a lesson's size depends on the device: problem 73 on a GPU, a small one on the emulator.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch

from fusedref import bench, cuda
from fusedref.problem import KERNELBENCH_73, SMALL_73, Problem
from fusedref.validation import random_inputs
from kernels import ladder

COMMITTED = Path(__file__).parent / "measured" / "lessons.json"  # {"card": name, "us": {what: microseconds}}


def lesson_problem() -> Problem:
    """Problem 73 on a GPU; on the emulator the same layer on two small images."""
    return KERNELBENCH_73 if on_gpu() else SMALL_73


def on_gpu() -> bool:
    return cuda.device() == "gpu"


def device_name() -> str:
    """The card's name, or "emulator"."""
    return torch.cuda.get_device_name() if on_gpu() else "emulator"


def torch_device() -> str:
    """Where torch's own operators run beside the kernels."""
    return "cuda" if on_gpu() else "cpu"


def about() -> str:
    """Where this lesson runs and where its times come from."""
    if on_gpu():
        return f"The kernels run on: {device_name()}. Times are measured as the cells run."
    times = (
        f"are those committed from a run on: {_committed()['card']}"
        if COMMITTED.exists()
        else "have not been measured yet"
    )
    return f"The kernels run on: the emulator, since there is no GPU here. Times {times}."


def draw(problem: Problem, seed: int = 0) -> tuple[np.ndarray, ...]:
    """(x, weight, bias, running_mean, running_var, gamma, beta) as the validator draws them, as NumPy arrays."""
    return tuple(tensor.numpy() for tensor in random_inputs(problem, seed)[:7])


def tensors(arrays: tuple[np.ndarray, ...]) -> list[torch.Tensor]:
    """The arrays as torch tensors, where torch's operators run."""
    return [torch.from_numpy(array).to(torch_device()) for array in arrays]


def relative_l2(y: np.ndarray, expected: torch.Tensor) -> float:
    """|y - expected| / |expected|, in float64."""
    expected = expected.double()
    difference = torch.from_numpy(y).to(expected.device).double() - expected
    return float(difference.norm() / expected.norm())


def variant(tiled: ladder.Tiled, *changes: tuple[str, str]) -> ladder.Tiled:
    """The rung with changes (old, new) made to its source; the file of the rung stays as it is.

    Raises ValueError where an old text is not there.
    """
    source = (ladder.KERNELS / f"{tiled.file}.cu").read_text()
    for old, new in changes:
        if old not in source:
            raise ValueError(f"{tiled.file}.cu has no {old!r}")
        source = source.replace(old, new)
    changed = Path(tempfile.mkdtemp(dir=_variants().name)) / tiled.file
    changed.with_suffix(".cu").write_text(source)
    return dataclasses.replace(tiled, file=str(changed))


@cache
def _variants() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()  # goes when Python ends


def us(what: str, call: Callable[[], object]) -> float:
    """Microseconds of `call`: measured now on a GPU, else the committed figure of the same name, else NaN.

    On a GPU with FUSEDREF_RECORD set (lessons.execute sets it) the figure is also committed to measured/lessons.json.
    """
    if not on_gpu():
        return _committed()["us"].get(what, math.nan) if COMMITTED.exists() else math.nan
    with bench.arithmetic("fp32"), torch.no_grad():
        value = bench.microseconds(call)
    if os.environ.get("FUSEDREF_RECORD"):
        record = _committed() if COMMITTED.exists() else {"card": "", "us": {}}
        if record["card"] != device_name():
            record = {"card": device_name(), "us": {}}
        record["us"][what] = round(value, 1 if value >= 10 else 3)
        COMMITTED.parent.mkdir(exist_ok=True)
        COMMITTED.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    return value


def _committed() -> dict:
    return json.loads(COMMITTED.read_text())
