"""Memory that the launches of one call write for each other, and that nobody sees afterwards."""

from __future__ import annotations

from collections.abc import Sequence

ALIGNMENT = 256  # bytes; as the driver aligns what it allocates


class Scratch:
    """Says how large blocks of memory are, in bytes. A backend's ``allocate`` makes them."""

    __slots__ = ("offsets", "sizes", "total")

    def __init__(self, sizes: Sequence[int]) -> None:
        """Place the blocks one after the other in ``total`` bytes."""
        self.sizes, self.total = tuple(sizes), 0
        offsets = []
        for size in sizes:
            offsets.append(self.total)
            self.total += -(-size // ALIGNMENT) * ALIGNMENT
        self.offsets = tuple(offsets)
