"""Launch the small kernels of lessons 07 and 10; of lesson 10's five, each adds one thing to the one before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fusedref.cuda.compile import source_module
from fusedref.cuda.launch import Out, launch

FOLDER = Path(__file__).parent
ROW = 1024  # numbers of a row of bulk_store, handover and stages


Changes = Sequence[tuple[str, str]]  # (old, new) in a copy of the source


def chain(x: Tensor, numbers: int, links: int) -> Tensor:
    """Return y after `links` times y = y / 2 + 1 from x on, of lesson 07: with so many numbers for each thread."""
    y = torch.empty_like(x)
    options = f"-DNUMBERS={numbers}", f"-DLINKS={links}"
    function = source_module(FOLDER / "chain.cu", options, x.device).get_function("chain")
    factors, size = (np.float32(0.5), np.float32(1)), np.int32(x.numel())
    blocks = -(-x.numel() // numbers // 256)
    launch(function, x, Out(y), *factors, size, block=(256, 1, 1), grid=(blocks, 1, 1))
    return y


def bulk_store(x: Tensor, factor: float, blocks: int, changes: Changes = ()) -> Tensor:
    """Return factor * x, for x [rows, ROW], by step a: the copy engine writes the rows."""
    return _by_rows("bulk_store", x, factor, blocks, 128, changes)


def handover(x: Tensor, factor: float, blocks: int, changes: Changes = ()) -> Tensor:
    """Return factor * x, for x [rows, ROW], by step b: a loading warp hands its buffer to a storing warp."""
    return _by_rows("handover", x, factor, blocks, 64, changes)


def stages(x: Tensor, factor: float, blocks: int, count: int) -> Tensor:
    """Return factor * x, for x [rows, ROW], by step c: step b with so many buffers."""
    return _by_rows("stages", x, factor, blocks, 64, (), f"-DSTAGES={count}")


def product(x: Tensor, w: Tensor, blocks: int) -> Tensor:
    """Return w @ x, for x [16, pixels] and w [64, 16], by step d; pixels is a multiple of 32."""
    y = x.new_empty(64, x.shape[1])
    function = source_module(FOLDER / "product.cu", device=x.device).get_function("product")
    launch(function, x, w, Out(y), np.int32(x.shape[1]), block=(192, 1, 1), grid=(blocks, 1, 1))
    return y


def sectors(x: Tensor, factor: float, blocks: int, whole: bool) -> Tensor:
    """Return factor * x, for x [runs, numbers], by step e: in whole sectors, or run by run as they come."""
    return _by_rows("sectors", x, factor, blocks, 128, (), f"-DRUN={x.shape[1]}", f"-DWHOLE={int(whole)}")


def _by_rows(name: str, x: Tensor, factor: float, blocks: int, threads: int, changes: Changes, *options: str) -> Tensor:
    """Launch a step on x by rows. Raise ValueError if its source does not contain an old text of `changes`."""
    source = f'#line 1 "{name}.cu"\n' + (FOLDER / f"{name}.cu").read_text(encoding="utf-8")
    for old, new in changes:
        if old not in source:
            raise ValueError(f"{name}.cu has no {old!r}")
        source = source.replace(old, new)
    y = torch.empty_like(x)
    function = source_module(source, options, x.device).get_function(name)
    numbers = np.float32(factor), np.int32(x.shape[0])
    launch(function, x, Out(y), *numbers, block=(threads, 1, 1), grid=(blocks, 1, 1))
    return y
