"""Measurements, and the JSON files that keep them."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from fusedref.commandline import output_file, written_whole

FLOOR = "device copy"  # the name of the row that has the floor
HOST = "host: "  # the names of rows with the host's time begin so


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement: a line of the JSON file."""

    name: str
    mode: str  # "eval", of BatchNorm without gradients; or what else is measured, such as "train"
    precision: str  # of the arithmetic and, for fp16 and bf16, of every tensor
    layout: str  # of x and y: "NCHW" or "channels_last"
    problem: str  # describe(problem)
    us: float  # median, in microseconds
    us_spread: float  # from the first to the third quartile, in microseconds
    relative_l2: float | None  # ||y - oracle|| / ||oracle||, both in float64; None where there is no y
    floor_us: float  # time of a copy that moves problem.least_bytes, or the bytes of a step in training
    peak_mib: float | None = None  # memory during the call beyond x, dy and the parameters; None: not measured
    passed: bool | None = None  # KernelBench's check against the model; None: not checked
    kernel: str | None = None  # of the plan that ran; None: not noted

    @property
    def key(self) -> tuple[str, ...]:
        """What is measured: a later row with the same key replaces this one in a file."""
        return self.name, self.mode, self.precision, self.layout, self.problem


def versions() -> dict[str, str | None]:
    """Return the versions that affect timings."""
    import pycuda
    import pycuda.driver as drv

    driver = drv.get_driver_version()
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]  # torch has no type hints for it
        "driver": f"{driver // 1000}.{driver % 1000 // 10}",
        "pycuda": pycuda.VERSION_TEXT,
    }


def rows_file(text: str) -> Path:
    """Return the path of a file that ``save`` can write, for argparse.

    Raises argparse.ArgumentTypeError where it cannot be written or holds anything else than rows.
    """
    path = output_file(text)
    if _has_content(path):
        try:
            load(path)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{error}: name another file") from None
    return path


def save(path: Path, rows: list[Row]) -> None:
    """Write ``rows`` to a JSON file, beside the rows with other keys that it has from the same card and versions.

    Raises ValueError where the file holds anything else than rows; it stays as it is then.
    """
    measured = {"card": torch.cuda.get_device_name(), "versions": versions()}
    kept: list[Row] = []
    if _has_content(path):
        before, kept = _read(path)
        if any(before[name] != value for name, value in measured.items()):
            kept = []
    fresh = {row.key for row in rows}
    kept = [row for row in kept if row.key not in fresh]
    content = {**measured, "rows": [dataclasses.asdict(row) for row in kept + rows]}
    with written_whole(path) as aside:
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> tuple[str, list[Row]]:
    """Return (card, rows) of a file that ``save`` wrote; raise ValueError for any other file."""
    measured, rows = _read(path)
    return str(measured["card"]), rows


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _read(path: Path) -> tuple[dict[str, object], list[Row]]:
    try:
        measured = json.loads(path.read_text(encoding="utf-8"))
        rows = [Row(**row) for row in measured["rows"]]
        return {name: measured[name] for name in ("card", "versions")}, rows
    except (KeyError, TypeError, ValueError):  # ValueError: not UTF-8, not JSON
        raise ValueError(f"{path} does not hold rows of this bench") from None
