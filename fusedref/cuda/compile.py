"""Compile CUDA C and load it on a GPU or the emulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fusedref.csrc import COMMON, INFERENCE, TRAINING
from fusedref.cuda.backend import backend_of, chosen

INCLUDE_DIRS = [COMMON, INFERENCE, TRAINING]  # what every kernel may #include


def source_module(source: str | Path, options: tuple[str, ...] = (), device: torch.device | None = None) -> Any:
    """Return the module (``get_function``, ``get_global``) that CUDA C ``source`` compiles to, loaded on ``device``.

    ``source`` is the path of a .cu file, or the text itself. Kernels are marked ``extern "C"`` by their source.
    ``options`` are nvcc's, such as ``-DWIDTH=128``. ``device`` is a CUDA device, the CPU for the emulator, or None for
    the one that ``fusedref.cuda.device()`` names. The same source and options give the same module, without compiling
    again.

    Raise CompileError (on the emulator, the emulator's own) if the source does not compile.
    """
    text, include_dirs = source, INCLUDE_DIRS
    if isinstance(source, Path):
        text = f"#line 1 {_quoted(source.name)}\n{source.read_text(encoding='utf-8-sig')}"  # error messages name it
        if source.parent not in INCLUDE_DIRS:
            include_dirs = [source.parent, *INCLUDE_DIRS]
    backend, index = (chosen(), None) if device is None else (backend_of(device), device.index)
    return backend.load(str(text), options, include_dirs, index)


def allow_shared(function: Any, size: int, device: torch.device) -> None:
    """Allow launches of ``function`` on ``device`` with ``size`` bytes of dynamic shared memory."""
    backend_of(device).allow_shared(function, size, device.index)


def _quoted(name: str) -> str:
    """Return a file's name as a string literal of C, with "_" for each character that nvcc or ptxas cannot take."""
    plain = "".join(c if c.isprintable() and c not in '\\"' else "_" for c in name)
    return f'"{plain}"'
