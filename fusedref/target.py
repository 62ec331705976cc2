"""The GPU that kernels are planned and compiled for."""

from __future__ import annotations

from typing import NamedTuple

SHARED_KILOBYTES = {80: 163, 86: 99, 87: 163, 89: 99, 120: 99, 121: 99}  # limit of a block; 227 if not listed


class Target(NamedTuple):
    """The properties of a GPU that plans depend on."""

    architecture: str  # nvcc's name: "sm_80", "sm_90a"
    multiprocessors: int
    bandwidth: float = 4.8e12  # bytes a second that the data sheet promises from memory
    card: str = ""  # its name, if it is one of this machine: what ``fusedref.tune`` measured of it counts then

    @property
    def compute_capability(self) -> int:
        """Return 80 for ``"sm_80"``, 90 for ``"sm_90a"``."""
        return int("".join(filter(str.isdigit, self.architecture)))

    @property
    def shared_limit(self) -> int:
        """Return the bytes of shared memory that a block can have."""
        return 1024 * SHARED_KILOBYTES.get(self.compute_capability, 227)


EMULATED = Target("sm_90a", 132)  # the emulator stands for an H200
