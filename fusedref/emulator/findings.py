"""Findings: each describes one fault of a kernel, in a sentence for learners."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("out-of-bounds", "misaligned", "uninitialised", "race", "divergent-barrier", "missing-wait", "unwritten")


@dataclass(frozen=True, repr=False)
class Finding:
    """One fault of a kernel.

    Attributes:
        kind: one of ``KINDS``.
        kernel: the kernel's name.
        argument: the parameter, shared, constant or device variable that it concerns, or None.
        element: index of the element, counted from where the argument points, or None.
        thread: ``(x, y, z)`` of the thread in its block.
        block: ``(x, y, z)`` of the block in its grid.
        line: line in the .cu.
        source: the .cu's name, as the compiler was given it.
        message: the whole finding as a sentence.
        other_thread, other_block, other_line: the second thread's, if two threads conflict.
    """

    kind: str
    kernel: str
    argument: str | None
    element: int | None
    thread: tuple[int, int, int] | None
    block: tuple[int, int, int] | None
    line: int | None
    source: str | None
    message: str
    other_thread: tuple[int, int, int] | None = None
    other_block: tuple[int, int, int] | None = None
    other_line: int | None = None

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return f"<{self.kind}: {self.message}>"
