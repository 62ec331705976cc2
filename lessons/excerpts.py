"""Show the source of a kernel, or a part of it, in a lesson."""

from __future__ import annotations

import itertools
from pathlib import Path

from IPython.display import Markdown


def listing(source: str) -> Markdown:
    """Return the source of a kernel as Markdown."""
    return Markdown(f"```c++\n{source.strip()}\n```")


def excerpt(path: Path, first: str, last: str = "") -> Markdown:
    """Return a part of a kernel's source as Markdown: from the line with `first` to before the next line with `last`.

    Without `last`, to the end. A part of a block ends with the block, and is moved to the left as a whole. Raise
    ValueError if the source does not contain them.
    """
    source = path.read_text(encoding="utf-8")
    if first not in source or last not in source[source.index(first) :]:
        raise ValueError(f"{path.name} has no {first!r} followed by {last!r}")
    begin = source.rfind("\n", 0, source.index(first)) + 1
    end = source.rfind("\n", 0, source.index(last, source.index(first) + 1)) + 1 if last else len(source)
    lines = source[begin:end].splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    shown = list(itertools.takewhile(lambda line: line.startswith("#") or not line[:indent].strip(), lines))
    while shown[-1].lstrip().startswith("#pragma"):  # it belongs to the line after the part
        shown.pop()
    return listing("\n".join(line if line.startswith("#") else line[indent:] for line in shown))
