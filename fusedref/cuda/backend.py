"""The choice between a GPU and the emulator."""

from __future__ import annotations

import os


def forced_to_emulator() -> bool:
    """Return whether tensors on the CPU go through CUDA kernels on the emulator."""
    return os.environ.get("FUSEDREF_DEVICE") == "emulator"
