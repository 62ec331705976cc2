"""The report of ``validate``: the verdict, figures for each call, and reasons in plain words."""

from __future__ import annotations

import dataclasses
import html
import math

from fusedref.problem import Problem
from fusedref.validation.bounds import UNIT
from fusedref.validation.cases import Case, Errors, Worst, rounding_of
from fusedref.validation.picture import picture_of


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """The result of ``validate``; true if the candidate is right. Prints as text, in a notebook with a picture."""

    problem: Problem
    precision: str
    device: str
    seed: int
    cases: tuple[Case, ...]
    mode: str = "eval"

    @property
    def ok(self) -> bool:
        """Whether the candidate is right in every case."""
        return all(case.ok for case in self.cases)

    def __bool__(self) -> bool:
        return self.ok

    @property
    def relative_l2(self) -> float:
        """|y - float64| / |float64| in the L2 norm at the problem itself; NaN where there is nothing to compare."""
        return self.cases[0].relative_l2

    @property
    def worst(self) -> Worst | None:
        """The element with the largest error of all cases; None where there is nothing to compare."""
        found = [case.worst for case in self.cases if case.worst is not None]
        return max(found, key=lambda worst: worst.bounds, default=None)

    @property
    def beside_eager(self) -> tuple[float, str]:
        """The largest ratio of an error to that of PyTorch's operators, and where it is.

        PyTorch's counts as 2**-24 at least, which is one rounding. (0, "") where there is none, as in mode "eval".
        """
        ratios = [
            (compared.relative_l2 / max(compared.eager, UNIT), f"{compared.name}, {case.name}")
            for case in self.cases
            for compared in case.tensors
            if compared.eager is not None and math.isfinite(compared.eager)  # fp16 may overflow in z
        ]
        return max(ratios, default=(0.0, ""))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the candidate is refused: each reason with the cases that show it; empty if it is right."""
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
        if self.mode != "eval":
            lines += [
                "  relative L2 error / that of PyTorch's operators on the same data; the worst element's error / bound"
            ]
            lines += [f"  {'':24}{''.join(f'{name:<16}' for name in self._columns())}worst"]
        for case in self.cases:
            found = "nothing to compare"
            if self.mode != "eval":
                lines.append(f"  {'ok ' if case.ok else 'BAD'} {case.name:20} {self._figures(case)}")
                continue
            if case.worst is not None:
                found = f"relative L2 {case.relative_l2:.1e}, worst {case.worst.bounds:.2g} of the bound"
            shapes = f"{_by(case.problem.input_shape)} -> {_by(case.problem.output_shape)}"
            lines.append(f"  {'ok ' if case.ok else 'BAD'} {case.name:20} {shapes}: {found}")
        if self.beside_eager[1]:
            ratio, where = self.beside_eager
            lines.append(f"  largest error beside that of PyTorch's operators: {ratio:.2f} times ({where})")
        lines += [f"  - {reason}" for reason in self.reasons]
        if not self.ok and self.worst is not None:
            lines.append(f"  {self.worst}")
        shown = self._shown()
        if shown is not None and shown.errors is not None:
            of = f" {shown.errors.name} is wrong" if self.mode != "eval" else ""
            lines.append(f"  where{of} ({shown.name}): . right, + some wrong, # all wrong")
            width = 8 if self.mode == "eval" else 14
            lines += [f"    {axis:{width}}{_strip(shown.errors, axis)}" for axis in shown.errors.named_axes]
        return "\n".join(lines)

    __repr__ = __str__  # a notebook keeps it beside the HTML

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr>{_html_cells(case)}</tr>" for case in self.cases)
        head = "".join(f"<th>{title}</th>" for title in ("", "case", "x → y", "relative L2", "worst / bound"))
        reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in self.reasons)
        shown = self._shown()
        picture = ""
        if shown is not None and shown.errors is not None:
            png = picture_of(shown.name, shown.errors)
            picture = f"<img alt='where y is wrong' src='data:image/png;base64,{png}'>"
        return (
            f"<b>{html.escape(self._verdict())}</b> ({self.precision}, {html.escape(self.device)}, seed {self.seed})"
            f"<table><tr>{head}</tr>{rows}</table><ul>{reasons}</ul>{picture}"
        )

    def _verdict(self) -> str:
        return f"right to {rounding_of(self.precision, self.problem.dtype)} rounding" if self.ok else "REFUSED"

    def _columns(self) -> list[str]:
        """Return the names of the tensors that the table of a report on training shows."""
        names = dict.fromkeys(compared.name for case in self.cases for compared in case.tensors)
        return [name for name in names if self.mode == "train" or not name.startswith("running")]

    def _figures(self, case: Case) -> str:
        """Return a line of that table."""
        if case.worst is None:
            return "refused, as it must be" if case.ok else "nothing to compare"
        found = {compared.name: compared for compared in case.tensors}
        cells = []
        for name in self._columns():
            compared = found.get(name)
            if compared is None:
                cells.append("-")
            elif compared.eager is None:
                cells.append(_short(compared.relative_l2))
            else:
                cells.append(f"{_short(compared.relative_l2)}/{_short(compared.eager)}")
        return f"{''.join(f'{cell:<16}' for cell in cells)}{case.worst.bounds:.2g}"

    def _shown(self) -> Case | None:
        """Return the first case with wrong elements: the one to draw."""
        return next((case for case in self.cases if case.errors is not None and case.errors.wrong), None)


def _short(number: float) -> str:
    """Write 1.2e-07 as 1.2e-7."""
    return f"{number:.1e}".replace("e-0", "e-").replace("e+0", "e+")


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _html_cells(case: Case) -> str:
    shapes = " → ".join(_by(shape) for shape in (case.problem.input_shape, case.problem.output_shape))
    figures = (f"{case.relative_l2:.1e}", f"{case.worst.bounds:.2g}") if case.worst else ("", "")
    cells = ("✓" if case.ok else "✗", case.name, shapes, *figures)
    return "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in cells)


def _strip(errors: Errors, axis: str) -> str:
    """Draw one character for each image, channel, row or column, or for several if there are more than 64."""
    counts = errors.by(axis)
    each = math.prod(errors.shape) // len(counts)
    group = math.ceil(len(counts) / 64)
    cells = [counts[start : start + group] for start in range(0, len(counts), group)]
    return "".join("." if not cell.any() else "#" if bool((cell == each).all()) else "+" for cell in cells)
