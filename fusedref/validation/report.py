"""What the validator found: figures, and reasons in plain words."""

from __future__ import annotations

import dataclasses
import html
import math

import torch

from fusedref.problem import Problem
from fusedref.validation.cases import AXES, Case, Errors, Worst
from fusedref.validation.picture import picture_of


def rounding_of(precision: str, dtype: torch.dtype) -> str:
    """Which format the errors are those of: of the products where they may be rounded, of y otherwise."""
    return "tf32" if precision == "tf32" else str(dtype).removeprefix("torch.")


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """What ``validate`` found. True where the candidate is right."""

    problem: Problem
    precision: str
    device: str
    seed: int
    cases: tuple[Case, ...]

    @property
    def ok(self) -> bool:
        """Whether the candidate is right in every case."""
        return all(case.ok for case in self.cases)

    def __bool__(self) -> bool:
        return self.ok

    @property
    def relative_l2(self) -> float:
        """|y - float64| / |float64| in the L2 norm, of the problem itself."""
        return self.cases[0].relative_l2

    @property
    def worst(self) -> Worst | None:
        """The element farthest off in all cases; None where nothing could be compared."""
        found = [case.worst for case in self.cases if case.worst is not None]
        return max(found, key=lambda worst: worst.bounds, default=None)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the candidate is refused, in plain words, each with the cases that show it; empty where it is right."""
        names: dict[str, list[str]] = {}
        for case in self.cases:
            for reason in case.reasons:
                names.setdefault(reason, []).append(case.name)
        return tuple(
            f"{'every case' if len(shown) == len(self.cases) else ', '.join(shown)}: {reason}"
            for reason, shown in names.items()
        )

    def __str__(self) -> str:
        lines = [f"{self._verdict()} ({self.precision}, {self.device}, seed {self.seed})"]
        for case in self.cases:
            found = "nothing to compare"
            if case.worst is not None:
                found = f"relative L2 {case.relative_l2:.1e}, worst {case.worst.bounds:.2g} of the bound"
            shapes = f"{_times(case.problem.input_shape)} -> {_times(case.problem.output_shape)}"
            lines.append(f"  {'ok ' if case.ok else 'BAD'} {case.name:20} {shapes}: {found}")
        lines += [f"  - {reason}" for reason in self.reasons]
        if not self.ok and self.worst is not None:
            lines.append(f"  {self.worst}")
        shown = self._shown()
        if shown is not None:
            lines.append(f"  where ({shown.name}): . right, + some wrong, # all wrong")
            lines += [f"    {axis:8}{_strip(shown.errors, axis)}" for axis in AXES]
        return "\n".join(lines)

    __repr__ = __str__  # what a notebook keeps beside the HTML

    def _repr_html_(self) -> str:
        rows = "".join(
            "<tr>"
            + "".join(
                f"<td style='text-align:left'>{html.escape(cell)}</td>"
                for cell in (
                    "✓" if case.ok else "✗",
                    case.name,
                    " → ".join(_times(shape) for shape in (case.problem.input_shape, case.problem.output_shape)),
                    f"{case.relative_l2:.1e}" if case.worst else "",
                    f"{case.worst.bounds:.2g}" if case.worst else "",
                )
            )
            + "</tr>"
            for case in self.cases
        )
        head = "".join(f"<th>{title}</th>" for title in ("", "case", "x → y", "relative L2", "worst / bound"))
        reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in self.reasons)
        shown = self._shown()
        picture = (
            "" if shown is None else f"<img alt='where y is wrong' src='data:image/png;base64,{picture_of(shown)}'>"
        )
        return (
            f"<b>{html.escape(self._verdict())}</b> ({self.precision}, {html.escape(self.device)}, seed {self.seed})"
            f"<table><tr>{head}</tr>{rows}</table><ul>{reasons}</ul>{picture}"
        )

    def _verdict(self) -> str:
        return f"right to {rounding_of(self.precision, self.problem.dtype)} rounding" if self.ok else "REFUSED"

    def _shown(self) -> Case | None:
        """The case to draw: the first with wrong elements."""
        return next((case for case in self.cases if case.errors is not None and case.errors.wrong), None)


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _strip(errors: Errors, axis: str) -> str:
    """One character for each image, channel, row or column, or for several where there are more than 64."""
    counts = errors.by(axis)
    each = math.prod(errors.problem.output_shape) // len(counts)
    group = math.ceil(len(counts) / 64)
    cells = [counts[start : start + group] for start in range(0, len(counts), group)]
    return "".join("." if not cell.any() else "#" if bool((cell == each).all()) else "+" for cell in cells)
