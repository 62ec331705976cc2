"""The notebooks run, and their committed outputs and times belong to their code."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from jupyter_client.provisioning import local_provisioner
from nbclient.exceptions import CellExecutionError

from fusedref import cuda
from lessons import execute, workbench
from tests import processes
from tests.kernel_server import Kernel
from tests.notebooks import LESSONS, code, read, takes_times


@pytest.fixture
def quick_kernels(monkeypatch):
    """Fork kernels from a server; not on a GPU, which a fork cannot use if the server has."""
    if cuda.device() != "gpu":
        monkeypatch.setattr(local_provisioner, "launch_kernel", Kernel)


def words(cell) -> list[str]:
    """Return the words of a cell's outputs without numbers: the same on every machine."""
    said = []
    for output in cell.outputs:
        text = output["text"] if "text" in output else output["data"].get("text/markdown", "")
        text = re.sub(r"(Conv2d|BatchNorm2d)\(.*\)", r"\1", text)  # torch's versions differ in what they say of a layer
        said += re.sub(r"-?(\d[\d,.]*(e[-+]?\d+)?|nan)", "#", text).split()
    return said


def test_every_rung_has_its_lesson():
    rungs = {path.stem for path in Path("kernels").glob("[0-9][0-9]_*.cu")}
    lessons = {path.stem for path in LESSONS}
    assert rungs | {"00_the_problem", execute.WATCHING.stem} == lessons


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, quick_kernels):
    committed = read(path)
    notebook = execute.execute(read(path), execute.device_of(path), timeout=processes.LIMIT)
    for cell, before in zip(code(notebook)[1:], code(committed)[1:], strict=True):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", f"a warning in a lesson: {output.text}"
        assert words(cell) == words(before), (
            "the committed output is of another state of the repository: execute it again"
        )


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_committed_outputs(path):
    assert path.stat().st_size < 1_000_000
    notebook = read(path)
    nbformat.validate(notebook)
    claims = notebook.metadata["fusedref"]
    assert claims["code"] == execute.digest(notebook), (
        f"{path.name} was edited: python -m lessons.execute --only {path.stem}"
    )
    if takes_times(path):
        assert claims["device"].startswith("NVIDIA"), f"{path.name} was last executed on: {claims['device']}"
    elif path == execute.WATCHING:
        assert claims["device"] == "emulator"
    said = code(notebook)[0].outputs[0].text.replace("the emulator", "emulator")
    assert f"The kernels run on: {claims['device']}." in said
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    for cell in code(notebook):
        for output in cell.outputs:
            assert output.output_type != "error"
            for kind in ("image/png", "image/jpeg"):
                if kind in output.get("data", {}):
                    assert output.metadata[kind]["alt"], "a picture without alternative text"
            assert not re.search(r"\bnan (us|times|TB|TFLOP|billion)", output.get("text", "")), "a time is missing"


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_speaks_of_nothing_but_itself(path):
    text = path.read_text()
    assert not re.search(r"/root/|/work/|/home/|/tmp/", text)


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    for cell in read(path).cells:
        for target in re.findall(r"\]\(([^)#]+)\)", cell.source if cell.cell_type == "markdown" else ""):
            assert (path.parent / target).exists(), target


def test_edited_code_is_found_out():
    notebook = read(LESSONS[0])
    before = execute.digest(notebook)
    code(notebook)[-1].source += "\n1 + 1"
    assert execute.digest(notebook) != before


def test_a_failing_cell_fails_the_run():
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute.execute(broken, "emulator")


def test_times_are_committed():
    record = json.loads(workbench.COMMITTED.read_text())
    devices = {read(path).metadata["fusedref"]["device"] for path in LESSONS if takes_times(path)}
    assert devices == {record["card"]}
    for path in LESSONS:
        for cell in code(read(path)):
            for what in re.findall(r'workbench\.us\(\s*f?"([^"]+)"', cell.source):
                pattern = ".+".join(map(re.escape, re.split(r"\{.*?\}", what)))
                found = [value for name, value in record["us"].items() if re.fullmatch(pattern, name)]
                assert found, f"{path.name}: no time for {what}"
                assert all(value > 0 for value in found), f"{path.name}: no time for {what}"


def test_which_lessons_take_times():
    counting = {path.stem[:2] for path in LESSONS if not takes_times(path)}
    assert counting == {"06", "07", "08", "09", "10", "11", "12", "13", "se"}
