"""Run the lessons and save their outputs: `python -m lessons.execute [--only 04]`.

On a GPU, also write the times that the lessons show to lessons/measured/lessons.json. Without a GPU, the lessons show
those committed times.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from traitlets.config import Config

from lessons import workbench

HERE = Path(__file__).parent
WATCHING = HERE / "seeing_what_a_warp_does.ipynb"  # belongs to no rung; always runs on the emulator


def notebooks() -> list[Path]:
    """Return the lessons of the rungs in order, followed by the lesson on watching kernels."""
    return [*sorted(HERE.glob("[0-9][0-9]_*.ipynb")), WATCHING]


def device_of(path: Path) -> str:
    """Return where this machine runs the lesson: the card's name, or "emulator"."""
    return "emulator" if path == WATCHING else workbench.device_name()


def digest(notebook: nbformat.NotebookNode) -> str:
    """Return a hash of the code cells. It is saved with the outputs, to detect outputs of other code."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def execute(notebook: nbformat.NotebookNode, device: str, *, timeout: int = 600) -> nbformat.NotebookNode:
    """Run a notebook in a fresh kernel in lessons/ and return it with its outputs.

    device: the origin of the outputs, saved in the notebook's metadata. timeout: seconds allowed for each cell.
    Raise CellExecutionError if a cell fails.
    """
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(HERE)}},
        config=Config({"KernelManager": {"transport_encryption": "auto"}}),  # avoids a warning
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    # Metadata about this machine does not belong in a lesson.
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "fusedref": {"device": device, "code": digest(notebook)},
    }
    return notebook


def main() -> None:
    """Run the lessons named on the command line, or all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="LESSON", help="run only the lessons whose names begin with this, such as 04")
    only = parser.parse_args().only
    chosen = [path for path in notebooks() if only is None or path.name.startswith(only)]
    if not chosen:
        parser.error(
            f"no lesson's name begins with {only}; the lessons are {', '.join(path.stem for path in notebooks())}"
        )
    os.environ["FUSEDREF_RECORD"] = "1"
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns) as progress:
        task = progress.add_task("lessons", total=len(chosen))
        for path in chosen:
            progress.update(task, description=path.stem)
            start = time.perf_counter()
            notebook = execute(nbformat.read(path, as_version=4), device_of(path))
            nbformat.write(notebook, path)
            progress.console.print(
                f"{path.name}: {time.perf_counter() - start:.1f} s on {notebook.metadata.fusedref.device}"
            )
            progress.advance(task)


if __name__ == "__main__":
    main()
