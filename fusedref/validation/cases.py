"""The outcome of one call: the worst element, and where y is wrong, in counts and in words."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from fusedref.problem import Problem

AXES = ("image", "channel", "row", "column")


@dataclasses.dataclass(frozen=True)
class Worst:
    """The element with the largest error: its index in y, its value, the right value, and the error / the bound."""

    index: tuple[int, int, int, int]
    got: float
    expected: float
    bounds: float

    def __str__(self) -> str:
        place = ", ".join(map(str, self.index))
        return f"y[{place}] is {self.got:.8g}, must be {self.expected:.8g}: {self.bounds:.2g} times the rounding bound"


class Errors:
    """Count wrong elements by place.

    ``plane`` [out_height, out_width] has the number at each row and column, ``channels`` [batch, out_channels] the
    number in each image and channel. ``wrong`` is the total, ``nan`` the number of NaNs in parts with wrong elements;
    ``first`` and ``last`` are the first and last wrong element in memory order.
    """

    def __init__(self, problem: Problem) -> None:
        batch, channels, height, width = problem.output_shape
        self.problem = problem
        self.plane = torch.zeros(height, width, dtype=torch.int64, device="cpu")
        self.channels = torch.zeros(batch, channels, dtype=torch.int64, device="cpu")
        self.wrong = 0
        self.nan = 0
        self.first, self.last = math.prod(problem.output_shape), -1

    def add(self, start: int, wrong: Tensor, got: Tensor) -> None:
        """Add the images from ``start`` on: ``wrong`` (bool) and ``got``, both [images, channels, height, width]."""
        if not wrong.any():
            return
        self.plane += wrong.sum((0, 1)).cpu()
        self.channels[start : start + len(wrong)] = wrong.sum((2, 3)).cpu()
        self.wrong += int(wrong.sum())
        self.nan += int(got.isnan().sum())
        # Look for indices plane by plane: nonzero() of everything would take eight times the memory of y.
        flat = wrong.reshape(-1, wrong.shape[2] * wrong.shape[3])
        planes = flat.any(1).nonzero().view(-1)
        offset = start * wrong.shape[1]
        for plane in (int(planes[0]), int(planes[-1])):
            elements = flat[plane].nonzero().view(-1) + (offset + plane) * flat.shape[1]
            self.first, self.last = min(self.first, int(elements[0])), max(self.last, int(elements[-1]))

    def by(self, axis: str) -> Tensor:
        """Return the number of wrong elements in each image, channel, row or column."""
        counts = self.channels if axis in ("image", "channel") else self.plane
        return counts.sum(1 if axis in ("image", "row") else 0)

    def in_words(self) -> list[str]:
        """Say which elements are wrong, in the simplest words that fit."""
        total = math.prod(self.problem.output_shape)
        words = ["every element is wrong"]
        if self.wrong < total:
            words = [f"{self._where(total)} ({self.wrong} of {total} elements)"]
        if self.nan:
            words.append(f"NaN, which y's memory held before the call, in {self.nan} of {total}: never written?")
        return words

    def _where(self, total: int) -> str:
        """Name the wrong elements: an element, one axis, a run in memory, the border, or where several axes meet."""
        sizes = dict(zip(AXES, self.problem.output_shape, strict=True))
        wrong = {axis: self.by(axis).nonzero().view(-1).tolist() for axis in AXES}
        limited = {axis: indices for axis, indices in wrong.items() if len(indices) < sizes[axis]}
        if self.wrong == 1:
            return f"one element is wrong: y[{', '.join(str(indices[0]) for indices in wrong.values())}]"
        whole = self.wrong == math.prod(map(len, wrong.values()))  # wrong wherever the limited axes meet
        if whole and len(limited) == 1:
            ((axis, indices),) = limited.items()
            return _named(axis, indices, sizes[axis])
        if self.last - self.first + 1 == self.wrong:
            if self.last == total - 1:
                return f"the last {self.wrong} elements in memory are wrong, from y.view(-1)[{self.first}] on"
            if self.first == 0:
                return f"the first {self.wrong} elements in memory are wrong, up to y.view(-1)[{self.last}]"
            return f"a run of elements is wrong, from y.view(-1)[{self.first}] to y.view(-1)[{self.last}]"
        border = self._border()
        if border.any() and not border.all():
            if torch.equal(self.plane > 0, border):
                return "the border is wrong: exactly the outputs whose windows reach into the padding"
            if not (self.plane > 0)[~border].any() and not whole:
                return "wrong are only outputs whose windows reach into the padding"
        if not limited:
            return "elements all over y are wrong"
        names = [_named(axis, indices, sizes[axis]) for axis, indices in limited.items()]
        return ("where these meet: " if len(names) > 1 else "") + ("" if whole else "in part, ") + "; ".join(names)

    def _border(self) -> Tensor:
        """Return [out_height, out_width]: whether the window of an output reaches into the padding."""
        problem = self.problem

        def reaches(axis: int, outputs: int, size: int) -> Tensor:
            """Return [outputs]: whether a window reaches beyond the ``size`` of the input along an axis."""
            start = torch.arange(outputs, device="cpu") * problem.strides[axis] - problem.pads[axis][0]
            return (start < 0) | (start + problem.span[axis] > size)

        rows = reaches(0, problem.out_height, problem.height)
        columns = reaches(1, problem.out_width, problem.width)
        return rows[:, None] | columns[None, :]


def _named(axis: str, indices: list[int], size: int) -> str:
    """Return 'the last column (125) is wrong', 'every second row from 1 on is wrong' and the like."""
    first, last, count = indices[0], indices[-1], len(indices)
    if count == 1:
        if first == size - 1:
            return f"the last {axis} ({first}) is wrong"
        return f"the first {axis} (0) is wrong" if first == 0 else f"{axis} {first} is wrong"
    if count == size - 1 and size > 2:
        (right,) = set(range(size)) - set(indices)
        return f"{axis} {right} is right, all others are wrong"
    if last - first + 1 == count:
        which = "the last" if last == size - 1 else "the first" if first == 0 else ""
        return f"{which} {count} {axis}s ({first} to {last}) are wrong".strip()
    step = indices[1] - first
    if indices == list(range(first, size, step)):
        ordinal = {2: "second", 3: "third"}.get(step, f"{step}th")
        return f"every {ordinal} {axis} from {first} on is wrong"
    shown = ", ".join(map(str, indices[:8])) + (", ..." if count > 8 else "")
    return f"{axis}s {shown} are wrong ({count} of {size})"


@dataclasses.dataclass(frozen=True)
class Case:
    """The outcome of one call of the candidate; right if there are no ``reasons``.

    ``relative_l2`` is |y - float64| / |float64| in the L2 norm. Where there is nothing to compare it is NaN, and
    ``worst`` and ``errors`` are None.
    """

    name: str
    problem: Problem
    relative_l2: float
    worst: Worst | None
    errors: Errors | None
    reasons: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the candidate is right in this case."""
        return not self.reasons


def rounding_of(precision: str, dtype: torch.dtype) -> str:
    """Name the format whose rounding is allowed: tf32 at that precision, else the dtype of y."""
    return "tf32" if precision == "tf32" else str(dtype).removeprefix("torch.")
