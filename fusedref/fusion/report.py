"""The report of ``fuse``: what was fused, what was not and why."""

from __future__ import annotations

import dataclasses
import html


@dataclasses.dataclass(frozen=True)
class Line:
    """A convolution and the BatchNorm after it, either of which may be missing (""), or a FusedConvBnScale.

    ``reason`` says why they are left alone; it is "" where they were fused. ``factor`` says what became of a
    multiplication after them; it is "" where there is none.
    """

    conv: str
    bn: str
    reason: str
    factor: str = ""

    @property
    def is_fused(self) -> bool:
        """Whether this call of ``fuse`` fused the layers."""
        return not self.reason

    @property
    def result(self) -> str:
        """What the report says: fused, or why not."""
        return self.reason or f"fused{self.factor}"


@dataclasses.dataclass(frozen=True, repr=False)
class FusionReport:
    """A line for every convolution and every BatchNorm of a model. Prints as a table, in a notebook too."""

    lines: tuple[Line, ...]
    untraced: dict[str, str]  # the modules that cannot be traced, and why

    @property
    def fused(self) -> tuple[Line, ...]:
        """The lines of the pairs that were fused."""
        return tuple(line for line in self.lines if line.is_fused)

    @property
    def left_alone(self) -> tuple[Line, ...]:
        """The lines of the layers that were not."""
        return tuple(line for line in self.lines if not line.is_fused)

    def __str__(self) -> str:
        rows = [("convolution", "BatchNorm", "")] + [(line.conv, line.bn, line.result) for line in self.lines]
        first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
        table = [f"{conv:{first}}  {bn:{second}}  {result}".rstrip() for conv, bn, result in rows]
        return "\n".join([self._summary(), *table]) if self.lines else self._summary()

    __repr__ = __str__  # a notebook keeps it beside the HTML

    def _repr_html_(self) -> str:
        head = "<tr><th>convolution</th><th>BatchNorm</th><th></th></tr>"
        cells = ("".join(_cell(text) for text in (line.conv, line.bn, line.result)) for line in self.lines)
        rows = "".join(f"<tr>{row}</tr>" for row in cells)
        return f"<b>{html.escape(self._summary())}</b>" + (f"<table>{head}{rows}</table>" if rows else "")

    def _summary(self) -> str:
        """Return the counts in a line."""
        convolutions = sum(bool(line.conv) for line in self.lines)
        if not self.lines:
            return "no convolution and no BatchNorm to fuse"
        already = sum(line.reason == ALREADY for line in self.lines)
        text = f"fused {len(self.fused)} of {convolutions} convolutions with the BatchNorm after them"
        return f"{text}; {already} were fused already" if already else text


ALREADY = "already fused"


def _cell(text: str) -> str:
    """Return a cell of the table for a notebook."""
    return f"<td style='text-align:left'>{html.escape(text)}</td>"
