"""The outcome of one call: the worst element, and where a result is wrong, in counts and in words."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from fusedref.problem import Problem

AXES = ("image", "channel", "row", "column")
Shape = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Worst:
    """The element with the largest error: its index, its value, the right value, and the error / the bound."""

    index: tuple[int, ...]
    got: float
    expected: float
    bounds: float
    name: str = "y"  # of the tensor

    def __str__(self) -> str:
        place = f"{self.name}[{', '.join(map(str, self.index))}]"
        return f"{place} is {self.got:.8g}, must be {self.expected:.8g}: {self.bounds:.2g} times the rounding bound"


@dataclasses.dataclass(frozen=True)
class Border:
    """The rows and columns of a tensor that are computed from fewer products than the others.

    ``where`` [rows, columns] is True there; ``meaning`` says in words which elements these are.
    """

    where: Tensor
    meaning: str


class Errors:
    """Count wrong elements of a tensor by place.

    ``plane`` [height, width] has the number at each row and column, ``channels`` [batch, channels] the number in each
    image and channel, for a tensor of the given shape whose axes have the names ``axes``. ``wrong`` is the total,
    ``nan`` the number of NaNs in parts with wrong elements; ``first`` and ``last`` are the first and last wrong element
    in memory order. A ``vector`` of channels counts as the shape (1, channels, 1, 1).
    """

    def __init__(
        self,
        shape: Shape,
        name: str = "y",
        axes: tuple[str, ...] = AXES,
        border: Border | None = None,
        vector: bool = False,
    ) -> None:
        batch, channels, height, width = shape
        self.shape, self.name, self.axes, self.border, self.vector = shape, name, axes, border, vector
        self.plane = torch.zeros(height, width, dtype=torch.int64, device="cpu")
        self.channels = torch.zeros(batch, channels, dtype=torch.int64, device="cpu")
        self.wrong = 0
        self.nan = 0
        self.first, self.last = math.prod(shape), -1

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

    @property
    def named_axes(self) -> tuple[str, ...]:
        """The axes that the tensor has."""
        return self.axes[1:2] if self.vector else self.axes

    def by(self, axis: str) -> Tensor:
        """Return the number of wrong elements in each image, channel, row or column."""
        number = self.axes.index(axis)
        counts = self.channels if number < 2 else self.plane
        return counts.sum(1 if number in (0, 2) else 0)

    def in_words(self) -> list[str]:
        """Say which elements are wrong, in the simplest words that fit."""
        total = math.prod(self.shape)
        words = ["every element is wrong"]
        if self.wrong < total:
            words = [f"{self._where(total)} ({self.wrong} of {total} elements)"]
        if self.nan:
            words.append(
                f"NaN, which {self.name}'s memory held before the call, in {self.nan} of {total}: never written?"
            )
        return words

    def _where(self, total: int) -> str:
        """Name the wrong elements: an element, one axis, a run in memory, the border, or where several axes meet."""
        sizes = dict(zip(self.axes, self.shape, strict=True))
        wrong = {axis: self.by(axis).nonzero().view(-1).tolist() for axis in self.axes}
        limited = {axis: indices for axis, indices in wrong.items() if len(indices) < sizes[axis]}
        if self.wrong == 1:
            place = [indices[0] for indices in wrong.values()]
            return f"one element is wrong: {self.name}{place[1:2] if self.vector else place}"
        whole = self.wrong == math.prod(map(len, wrong.values()))  # wrong wherever the limited axes meet
        if whole and len(limited) == 1:
            ((axis, indices),) = limited.items()
            return _named(axis, indices, sizes[axis])
        if self.last - self.first + 1 == self.wrong:
            if self.last == total - 1:
                return f"the last {self.wrong} elements in memory are wrong, from {self.name}.view(-1)[{self.first}] on"
            if self.first == 0:
                return f"the first {self.wrong} elements in memory are wrong, up to {self.name}.view(-1)[{self.last}]"
            memory = f"{self.name}.view(-1)"
            return f"a run of elements is wrong, from {memory}[{self.first}] to {memory}[{self.last}]"
        if self.border is not None and self.border.where.any() and not self.border.where.all():
            if torch.equal(self.plane > 0, self.border.where):
                return f"the border is wrong: exactly the {self.border.meaning}"
            if not (self.plane > 0)[~self.border.where].any() and not whole:
                return f"wrong are only {self.border.meaning}"
        if not limited:
            return f"elements all over {self.name} are wrong"
        names = [_named(axis, indices, sizes[axis]) for axis, indices in limited.items()]
        return ("where these meet: " if len(names) > 1 else "") + ("" if whole else "in part, ") + "; ".join(names)


def border_of_y(problem: Problem) -> Border:
    """Return where the window of an output reaches into the padding."""

    def reaches(axis: int, outputs: int, size: int) -> Tensor:
        """Return [outputs]: whether a window reaches beyond the ``size`` of the input along an axis."""
        start = torch.arange(outputs, device="cpu") * problem.strides[axis] - problem.pads[axis][0]
        return (start < 0) | (start + problem.span[axis] > size)

    rows = reaches(0, problem.out_height, problem.height)
    columns = reaches(1, problem.out_width, problem.width)
    return Border(rows[:, None] | columns[None, :], "outputs whose windows reach into the padding")


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
class Compared:
    """One tensor of a call in training, compared with float64; right if there are no ``reasons``.

    ``relative_l2`` is |error| / |float64| in the L2 norm, and ``eager`` that of PyTorch's own operators on the same
    data, None where they are not run. Where the tensor is zero but for rounding, both are relative to the magnitude of
    ``training_bounds`` instead.
    """

    name: str
    relative_l2: float
    eager: float | None
    worst: Worst
    errors: Errors
    reasons: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """The outcome of one call of the candidate; right if there are no ``reasons``.

    ``relative_l2`` is |y - float64| / |float64| in the L2 norm. Where there is nothing to compare it is NaN, and
    ``worst`` and ``errors`` are None. In training ``tensors`` has all that was compared; ``relative_l2`` and ``worst``
    are the largest of theirs, and ``errors`` those of the first that is wrong.
    """

    name: str
    problem: Problem
    relative_l2: float
    worst: Worst | None
    errors: Errors | None
    reasons: tuple[str, ...]
    tensors: tuple[Compared, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the candidate is right in this case."""
        return not self.reasons


def rounding_of(precision: str, dtype: torch.dtype) -> str:
    """Name the format whose rounding is allowed: tf32 at that precision, else the dtype of y."""
    return "tf32" if precision == "tf32" else str(dtype).removeprefix("torch.")
