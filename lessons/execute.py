"""Run the lessons and keep their outputs: `python -m lessons.execute [--only 04]`.

On a GPU this also writes the times that the lessons show to lessons/measured/lessons.json, for whoever has none.
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
WATCHING = HERE / "seeing_what_a_warp_does.ipynb"  # of no rung; runs on the emulator everywhere, since that can watch


def notebooks() -> list[Path]:
    """The lessons of the rungs, in order, and the one about watching them."""
    return [*sorted(HERE.glob("[0-9][0-9]_*.ipynb")), WATCHING]


def device_of(path: Path) -> str:
    """What the outputs of this lesson come from here: the card's name, or "emulator"."""
    return "emulator" if path == WATCHING else workbench.device_name()


def digest(notebook: nbformat.NotebookNode) -> str:
    """A fingerprint of the code cells, kept beside the outputs so that outputs of other code are found out."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def execute(notebook: nbformat.NotebookNode, device: str, *, timeout: int = 600) -> nbformat.NotebookNode:
    """Run a notebook in a fresh kernel inside lessons/ and return it with its outputs. Raises CellExecutionError.

    device: what is noted as the origin of the outputs.
    """
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(HERE)}},
        config=Config({"KernelManager": {"transport_encryption": "auto"}}),  # or the kernel warns that there is none
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    # What a machine says of itself is not part of a lesson.
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "fusedref": {"device": device, "code": digest(notebook)},
    }
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="LESSON", help="a lesson, by the beginning of its name: 04")
    only = parser.parse_args().only
    chosen = [path for path in notebooks() if only is None or path.name.startswith(only)]
    if not chosen:
        parser.error(f"no lesson begins with {only}; there are {', '.join(path.stem for path in notebooks())}")
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
