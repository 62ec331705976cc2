"""A loaded kernel, ready to be launched again and again."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

Geometry = tuple[int, int, int]
POINTERS = ("in", "out", "inout")  # to a tensor that the kernel reads, writes whole, or both


class Kernel:
    """A loaded function with everything that its launches have in common.

    ``kinds`` has, for each argument, one of POINTERS or the name of a number's NumPy dtype. ``places`` has each
    argument's index among the values of a launch: its tensors, then its numbers.
    """

    __slots__ = ("function", "read", "start", "written")

    def __init__(
        self,
        function: Any,
        kinds: Sequence[str],
        places: Sequence[int],
        grid: Geometry,
        block: Geometry,
        shared: int = 0,
    ) -> None:
        """Prepare the packing of the arguments."""
        self.function = function
        self.read = frozenset(place for place, kind in zip(places, kinds, strict=True) if kind in ("in", "inout"))
        self.written = frozenset(place for place, kind in zip(places, kinds, strict=True) if kind in ("out", "inout"))
        types = "".join("P" if kind in POINTERS else np.dtype(kind).char for kind in kinds)
        # Private to PyCUDA; it takes a third of the time of the public call.
        launch_kernel = getattr(function, "_launch_kernel", None)
        select, pack = _select(places), struct.Struct(types).pack
        if launch_kernel is None:
            function.prepare(types)

        def start(values: Sequence[Any], stream: Any) -> None:
            """Launch with ``values`` (tensors as addresses) in ``stream`` of PyCUDA; None is the default stream."""
            if launch_kernel is not None:
                launch_kernel(grid, block, pack(*select(values)), shared, stream)
            else:
                function.prepared_async_call(grid, block, stream, *select(values), shared_size=shared)

        self.start = start  # its variables are found faster than attributes


def _select(places: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """Return the function that picks the values at ``places``."""
    if len(places) > 1:  # an itemgetter of one place returns no tuple
        return itemgetter(*places)
    return lambda values: tuple(values[place] for place in places)
