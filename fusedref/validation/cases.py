"""What one call showed: its worst element, and where y is wrong, in counts and in words."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from fusedref.problem import Problem

AXES = ("image", "channel", "row", "column")


@dataclasses.dataclass(frozen=True)
class Worst:
    """The element farthest off: its place in y, what it is, what it must be, and its error in units of the bound."""

    index: tuple[int, int, int, int]
    got: float
    expected: float
    bounds: float

    def __str__(self) -> str:
        place = ", ".join(map(str, self.index))
        return f"y[{place}] is {self.got:.8g}, must be {self.expected:.8g}: {self.bounds:.2g} times the rounding bound"


class Errors:
    """Where y is wrong, counted by place: ``plane`` [out_height, out_width] and ``channels`` [batch, out_channels]."""

    def __init__(self, problem: Problem) -> None:
        batch, channels, height, width = problem.output_shape
        self.problem = problem
        self.plane = torch.zeros(height, width, dtype=torch.int64)
        self.channels = torch.zeros(batch, channels, dtype=torch.int64)
        self.wrong = 0
        self.nan = 0
        self.first, self.last = math.prod(problem.output_shape), -1  # of the wrong elements, in memory order

    def add(self, start: int, wrong: Tensor, got: Tensor) -> None:
        """Count a part of y: the images from ``start`` on, ``wrong`` and ``got`` [images, channels, height, width]."""
        if not wrong.any():
            return
        self.plane += wrong.sum((0, 1)).cpu()
        self.channels[start : start + len(wrong)] = wrong.sum((2, 3)).cpu()
        self.wrong += int(wrong.sum())
        self.nan += int(got.isnan().sum())
        # A wrong element's index is found from its plane: nonzero() of all would need eight times y's memory.
        flat = wrong.reshape(-1, wrong.shape[2] * wrong.shape[3])
        planes = flat.any(1).nonzero().view(-1)
        offset = start * wrong.shape[1]
        for plane in (int(planes[0]), int(planes[-1])):
            elements = flat[plane].nonzero().view(-1) + (offset + plane) * flat.shape[1]
            self.first, self.last = min(self.first, int(elements[0])), max(self.last, int(elements[-1]))

    def by(self, axis: str) -> Tensor:
        """The number of wrong elements in each image, channel, row or column."""
        counts = self.channels if axis in ("image", "channel") else self.plane
        return counts.sum(1 if axis in ("image", "row") else 0)

    def in_words(self) -> list[str]:
        """Which elements are wrong, in the simplest words that fit."""
        total = math.prod(self.problem.output_shape)
        words = ["every element is wrong"]
        if self.wrong < total:
            words = [f"{self._where(total)} ({self.wrong} of {total} elements)"]
        if self.nan:
            words.append(f"NaN, which y's memory held before the call, in {self.nan} of {total}: never written?")
        return words

    def _where(self, total: int) -> str:
        sizes = dict(zip(AXES, self.problem.output_shape))
        wrong = {axis: self.by(axis).nonzero().view(-1).tolist() for axis in AXES}
        limited = {axis: indices for axis, indices in wrong.items() if len(indices) < sizes[axis]}
        if self.wrong == 1:
            return f"one element is wrong: y[{', '.join(str(indices[0]) for indices in wrong.values())}]"
        whole = self.wrong == math.prod(map(len, wrong.values()))  # all of the places where the limited axes meet
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
        """[out_height, out_width]: whether an output's window reaches into the padding."""
        problem = self.problem

        def reaches(axis: int, outputs: int, size: int) -> Tensor:
            """[outputs]: whether a window reaches beyond the input's ``size`` along an axis."""
            start = torch.arange(outputs) * problem.strides[axis] - problem.pads[axis][0]
            return (start < 0) | (start + problem.span[axis] > size)

        rows = reaches(0, problem.out_height, problem.height)
        columns = reaches(1, problem.out_width, problem.width)
        return rows[:, None] | columns[None, :]


def _named(axis: str, indices: list[int], size: int) -> str:
    """'the last column (125) is wrong', 'every second row from 1 on is wrong', ..."""
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
    """One call of the candidate, or why there is nothing to compare (then ``worst`` and ``errors`` are None)."""

    name: str
    problem: Problem
    relative_l2: float
    worst: Worst | None
    errors: Errors | None
    reasons: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against the candidate in this case."""
        return not self.reasons
