"""The door to a device: PyCUDA's own objects where there is a GPU, the emulator's otherwise, under the same names.

    from fusedref.cuda import SourceModule, drv, gpuarray

``FUSEDREF_DEVICE=gpu`` or ``FUSEDREF_DEVICE=emulator`` decides it by hand. Importing this module makes no context and
loads neither PyCUDA nor the emulator, so a process may still fork; using one of the names does.
"""

from __future__ import annotations

from fusedref.cuda import backend

__all__ = ["SourceModule", "device", "drv", "gpuarray"]


def device() -> str:
    """Return ``"gpu"`` or ``"emulator"``: what the names of this module belong to; raise as ``backend.chosen``."""
    return backend.chosen().name


def __getattr__(name: str) -> object:
    if name not in ("SourceModule", "drv", "gpuarray"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return backend.chosen().public_names()[name]
