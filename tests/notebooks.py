"""Read the lessons' notebooks."""

from pathlib import Path

import nbformat

from lessons import execute

LESSONS = execute.notebooks()


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code(notebook: nbformat.NotebookNode) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def takes_times(path: Path) -> bool:
    """Whether the lesson measures times, which a card's outputs must show; one that only counts may run anywhere."""
    return any("workbench.us(" in cell.source for cell in code(read(path)))
