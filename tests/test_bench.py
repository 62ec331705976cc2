"""The bench: rows, files and pictures. No test asks how long anything takes."""

import dataclasses
import json

import pytest
import torch

from fusedref import KERNELBENCH_73, Problem, bench
from fusedref.reference import oracle
from fusedref.validator import draw

SMALL = Problem(2, 8, 16, 20, 24, 3)


def row(name, us=10.0, **changes):
    result = bench.Row(name, "eval", "fp32", "NCHW", "somewhere", us, 1.0, 1e-7, 5.0)
    return dataclasses.replace(result, **changes)


@pytest.fixture
def card(monkeypatch):
    """A card that is not there, for what is written into files."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Test Card")
    monkeypatch.setattr(bench, "versions", lambda: {"torch": "1"})


def test_describe():
    assert bench.describe(KERNELBENCH_73) == "128, 8->64, 128x128, 3x3"
    problem = Problem(32, 128, 128, 56, 60, (3, 5), stride=2, padding="valid", dilation=(1, 2), groups=4)
    assert bench.describe(problem) == "32, 128->128, 56x60, 3x5, stride 2, padding valid, dilation (1, 2), groups 4"


def test_a_file_gives_back_its_rows(card, tmp_path):
    path = tmp_path / "measured" / "card.json"
    bench.save(path, [row("a"), row("b")])
    assert bench.load(path) == ("Test Card", [row("a"), row("b")])
    assert list(json.loads(path.read_text())["rows"][0]) == [
        "name", "mode", "precision", "layout", "problem", "us", "us_spread", "relative_l2", "floor_us",
    ]  # fmt: skip


def test_a_second_run_replaces_its_own_rows_alone(card, tmp_path):
    path = tmp_path / "card.json"
    bench.save(path, [row("a"), row("b"), row("b", precision="tf32")])
    bench.save(path, [row("b", us=7.0), row("c")])
    assert bench.load(path)[1] == [row("a"), row("b", precision="tf32"), row("b", us=7.0), row("c")]


def test_rows_of_other_versions_do_not_stay(card, tmp_path, monkeypatch):
    path = tmp_path / "card.json"
    bench.save(path, [row("a")])
    monkeypatch.setattr(bench, "versions", lambda: {"torch": "2"})
    bench.save(path, [row("b")])
    assert bench.load(path)[1] == [row("b")]


def test_relative_l2_sees_one_wrong_image():
    inputs = draw(dataclasses.replace(SMALL, batch=40), seed=0)
    problem = dataclasses.replace(SMALL, batch=40)
    y = oracle(*inputs)
    assert bench.relative_l2(y, inputs, problem) == 0.0
    wrong = y.clone()
    wrong[33] = 0.0
    expected = (y[33].square().sum() / y.square().sum()).sqrt().item()
    assert bench.relative_l2(wrong, inputs, problem) == pytest.approx(expected)
    wrong[33] = torch.nan
    assert not bench.relative_l2(wrong, inputs, problem) <= 1e-7


def test_what_is_timed_computes_the_operator():
    inputs = draw(SMALL, seed=0)
    for prepare in (bench.eager, bench.folded, bench.ours):
        assert bench.relative_l2(prepare(inputs)(), inputs, SMALL) < 5e-7


def test_the_picture_has_a_bar_for_every_row_but_the_floor():
    rows = [row(bench.FLOOR), row("a"), row("b", precision="tf32")]
    axes = bench.picture(rows, "Test Card").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a, fp32, NCHW", "b, tf32, NCHW"]
    assert "Test Card" in axes.get_title()


def test_cudnn_uses_tf32_only_where_asked():
    before = torch.backends.cudnn.allow_tf32
    for precision, allowed in (("fp32", False), ("tf32", True), ("fp16", False)):
        with bench.arithmetic(precision):
            assert torch.backends.cudnn.allow_tf32 is allowed
    assert torch.backends.cudnn.allow_tf32 is before


@pytest.mark.gpu
def test_every_peer_runs_and_its_error_is_that_of_its_precision():
    peers = [peer for peer in bench.PEERS + bench.OURS if "max-autotune" not in peer.name]
    rows = bench.run(SMALL, peers)
    assert [row.name for row in rows if row.name != bench.FLOOR] == [peer.name for peer in peers]
    limits = {"fp32": 5e-7, "tf32": 2e-3, "fp16": 5e-3}
    for found in rows:
        assert found.us > 0 and found.floor_us > 0
        assert found.name == bench.FLOOR or found.relative_l2 < limits[found.precision]
