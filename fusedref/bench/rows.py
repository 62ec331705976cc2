"""Measurements, and the JSON files that keep them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch

FLOOR = "device copy"
HOST = "host: "  # begins the name of a row that is the host's time


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


def _key(row: dict) -> tuple:
    return tuple(row[name] for name in ("name", "mode", "precision", "layout", "problem"))
