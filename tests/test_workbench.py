"""What the lessons run on: times that are measured or committed, inputs, and variants of rungs."""

import json

import numpy as np
import pytest
import torch

from fusedref import Problem
from kernels import ladder, training
from lessons import workbench


@pytest.fixture
def record(tmp_path, monkeypatch):
    monkeypatch.setattr(workbench, "COMMITTED", tmp_path / "lessons.json")
    return tmp_path / "lessons.json"


def test_without_a_gpu_a_time_is_the_committed_one(record, monkeypatch):
    monkeypatch.setattr(workbench, "on_gpu", lambda: False)
    assert np.isnan(workbench.us("x", pytest.fail))
    assert "not been measured" in workbench.about()
    record.write_text('{"card": "NVIDIA Test", "us": {"x": 2.5}}')
    assert workbench.us("x", pytest.fail) == 2.5
    assert np.isnan(workbench.us("y", pytest.fail))
    assert "NVIDIA Test" in workbench.about()


def test_without_a_gpu_a_changed_cell_has_no_time(record, monkeypatch, capsys):
    monkeypatch.setattr(workbench, "on_gpu", lambda: False)
    cell = 'workbench.us("x", run)'
    record.write_text(json.dumps({"card": "NVIDIA Test", "us": {"x": 2.5}, "cells": [workbench.cell_digest(cell)]}))
    monkeypatch.setattr(workbench, "running_cell", lambda: cell + "\n")
    assert workbench.us("x", pytest.fail) == 2.5
    monkeypatch.setattr(workbench, "running_cell", lambda: cell + "  # mine")
    assert np.isnan(workbench.us("x", pytest.fail))
    assert "x: not measured, since this cell was changed" in capsys.readouterr().out


def test_on_a_gpu_a_time_is_measured_and_recorded(record, monkeypatch):
    monkeypatch.setattr(workbench, "on_gpu", lambda: True)
    monkeypatch.setattr(workbench.torch.cuda, "get_device_name", lambda: "NVIDIA Test")
    monkeypatch.setattr(workbench.bench, "microseconds", lambda call: call())
    record.write_text('{"card": "NVIDIA Other", "us": {"x": 2.5}}')
    monkeypatch.delenv("FUSEDREF_RECORD", raising=False)
    assert workbench.us("x", lambda: 12.34) == 12.34
    assert "Other" in record.read_text()
    monkeypatch.setenv("FUSEDREF_RECORD", "1")
    workbench.us("x", lambda: 12.34)
    workbench.us("y", lambda: 0.5)
    assert json.loads(record.read_text()) == {"card": "NVIDIA Test", "us": {"x": 12.3, "y": 0.5}}
    monkeypatch.setattr(workbench, "running_cell", lambda: "a cell")
    workbench.us("y", lambda: 0.5)
    assert json.loads(record.read_text())["cells"] == [workbench.cell_digest("a cell")]


def test_inputs_are_the_validators():
    problem = workbench.lesson_problem()
    arrays = workbench.draw(problem, 3)
    shapes = [problem.input_shape, problem.weight_shape, *[(problem.out_channels,)] * 5]
    assert [array.shape for array in arrays] == shapes
    assert all(array.dtype == np.float32 for array in arrays)
    (x, *_) = workbench.tensors(arrays)
    assert workbench.relative_l2(arrays[0], x) == 0
    assert workbench.relative_l2(1.001 * arrays[0], x) == pytest.approx(1e-3, rel=1e-3)


def test_a_variant_of_a_rung_is_the_rung_with_its_changes():
    arrays = [torch.from_numpy(array) for array in workbench.draw(Problem(1, 1, 2, 4, 5, 3))]
    rung = ladder.shared_tile
    right, changed_ = rung(*arrays, 2.0, 0.5), workbench.variant(rung, ("a * sum + b;", "a * sum;"))(*arrays, 2.0, 0.5)
    assert workbench.variant(rung)(*arrays, 2.0, 0.5).equal(right)
    assert not changed_.isclose(right).any()
    with pytest.raises(ValueError, match=r"06_shared_tile.cu has no 'a \* total'"):
        workbench.variant(rung, ("a * total", "a"))


def test_changed_kernels_run_until_the_end_of_the_block():
    z = torch.rand(1, 2, 3, 4)
    before = ladder.KERNELS
    with workbench.changed_kernels("11_batch_statistics.cu", ("= all.squares / all.count", "= 7")):
        assert (training.batch_statistics(z)[1] == 7).all()
    assert before == ladder.KERNELS
    assert (training.batch_statistics(z)[1] < 1).all()
    with (
        pytest.raises(ValueError, match=r"11_batch_statistics.cu has no 'seven'"),
        workbench.changed_kernels("11_batch_statistics.cu", ("seven", "8")),
    ):
        pass
