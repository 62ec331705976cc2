"""PyCUDA's objects if there is a GPU, the emulator's otherwise, under the same names.

    from fusedref.cuda import SourceModule, drv, gpuarray

``FUSEDREF_DEVICE=gpu`` or ``FUSEDREF_DEVICE=emulator`` overrides the choice. The first use of a name loads PyCUDA or
the emulator and creates a context. Importing this module does not, so a process may still fork after it.
"""

from __future__ import annotations

from fusedref.cuda import backend

__all__ = ["SourceModule", "device", "drv", "gpuarray"]


def device() -> str:
    """Return ``"gpu"`` or ``"emulator"``, the owner of this module's names; raise what ``backend.chosen`` raises."""
    return backend.chosen().name


def __getattr__(name: str) -> object:
    if name not in ("SourceModule", "drv", "gpuarray"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return backend.chosen().public_names()[name]
