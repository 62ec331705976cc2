"""A plan: the launches that compute a problem, with everything that a compiler and a GPU must be told."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

from fusedref.plans.variant import KernelVariant


class Argument(NamedTuple):
    """One parameter of a kernel: the name of its value and how the value is passed."""

    name: str
    kind: str  # "in", "out", "inout": a tensor that is read, written whole, or both; else a number's NumPy dtype


# What every kernel of inference takes.
INFERENCE_SIGNATURE = (
    *[Argument(name, "in") for name in ("x", "weight", "bias", "running_mean", "running_var", "gamma", "beta")],
    Argument("scaling_factor", "float32"),
    Argument("eps", "float32"),
    Argument("y", "out"),
    Argument("batch", "int64"),
)


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel launch: which function of which file, compiled with which macros, on how many threads."""

    source: Path  # the .cu file
    symbol: str  # the kernel's name in it
    signature: tuple[Argument, ...]
    macros: tuple[tuple[str, int], ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int = 0  # bytes of dynamic shared memory of a block

    @property
    def options(self) -> tuple[str, ...]:
        """Return the macros as options of nvcc."""
        return tuple(f"-D{name}={value}" for name, value in self.macros)

    @property
    def registers(self) -> int:
        """Return the most registers that a thread can have under the kernel's launch bounds."""
        resident = math.prod(self.block) * dict(self.macros).get("BLOCKS", 1)
        return min(255, 65536 // resident // 8 * 8)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a problem is computed: by which kernel, why, and by which launches, in order."""

    kernel: str  # its name for people
    reason: str  # what speaks for it, or against those before it
    variant: KernelVariant
    tile: (
        tuple[int, int, int] | None
    )  # (channels, rows, columns) of y that a block works on at a time; the library's: None
    predicted: dict[str, float] = dataclasses.field(hash=False)  # microseconds by resource, see ``predict``
    launches: tuple[Launch, ...]
    scratch: int = 0  # bytes that one launch writes for the next

    @property
    def limiter(self) -> str:
        """Return the resource that is needed longest."""
        return max(self.predicted, key=lambda name: self.predicted[name])

    def __str__(self) -> str:
        first, *others = sorted(self.predicted, key=lambda name: self.predicted[name], reverse=True)
        rest = ", ".join(f"{name} {self.predicted[name]:.1f}" for name in others)
        lines = [f"kernel         {self.kernel}: {self.reason}"]
        if self.tile is None:
            lines.append("convolution    torch's, before the launch")
        else:
            lines.append(f"tile           {' x '.join(map(str, self.tile))} (channels x rows x columns of y)")
        for launch in self.launches:
            lines += [
                f"launch         {math.prod(launch.grid)} blocks of {math.prod(launch.block)} threads",
                f"shared memory  {launch.shared} bytes a block",
                f"registers      at most {launch.registers} a thread",
            ]
        lines.append(f"limiter        {first}, {self.predicted[first]:.1f} us at the least on an H200 ({rest})")
        return "\n".join(lines)
