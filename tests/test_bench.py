"""The bench: rows, files and pictures; no test depends on a time."""

import dataclasses
import json
import statistics
import time

import pytest
import torch

from fusedref import KERNELBENCH_73, ConvBnScale, Problem, bench
from fusedref.reference import oracle
from fusedref.validation import random_inputs
from kernels.__main__ import ladder_rows

SMALL = Problem(2, 8, 16, 20, 24, 3)


def row(name, us=10.0, **changes):
    result = bench.Row(name, "eval", "fp32", "NCHW", "somewhere", us, 1.0, 1e-7, 5.0)
    return dataclasses.replace(result, **changes)


@pytest.fixture
def card(monkeypatch):
    """Make up a card and versions, for files."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Test Card")
    monkeypatch.setattr(bench.rows, "versions", lambda: {"torch": "1"})


def test_describe():
    assert bench.describe(KERNELBENCH_73) == "128, 8->64, 128x128, 3x3"
    problem = Problem(32, 128, 128, 56, 60, (3, 5), stride=2, padding="valid", dilation=(1, 2), groups=4)
    assert bench.describe(problem) == "32, 128->128, 56x60, 3x5, stride 2, padding valid, dilation (1, 2), groups 4"


def test_save_and_load(card, tmp_path):
    path = tmp_path / "measured" / "card.json"
    bench.save(path, [row("a"), row("b")])
    assert bench.load(path) == ("Test Card", [row("a"), row("b")])
    assert list(json.loads(path.read_text())["rows"][0]) == [
        "name", "mode", "precision", "layout", "problem", "us", "us_spread", "relative_l2", "floor_us", "peak_mib",
        "passed", "kernel",
    ]  # fmt: skip


def test_rows_from_before_training_was_measured(card, tmp_path):
    path = tmp_path / "card.json"
    bench.save(path, [row("a")])
    text = json.loads(path.read_text())
    for name in ("peak_mib", "passed", "kernel"):
        del text["rows"][0][name]
    path.write_text(json.dumps(text))
    assert bench.load(path)[1] == [row("a")]


def test_save_replaces_rows_of_the_same_key(card, tmp_path):
    path = tmp_path / "card.json"
    bench.save(path, [row("a"), row("b"), row("b", precision="tf32")])
    bench.save(path, [row("b", us=7.0), row("c")])
    assert bench.load(path)[1] == [row("a"), row("b", precision="tf32"), row("b", us=7.0), row("c")]


def test_save_drops_rows_of_other_versions(card, tmp_path, monkeypatch):
    path = tmp_path / "card.json"
    bench.save(path, [row("a")])
    monkeypatch.setattr(bench.rows, "versions", lambda: {"torch": "2"})
    bench.save(path, [row("b")])
    assert bench.load(path)[1] == [row("b")]


@pytest.mark.parametrize("content", ["my notes", "{}", '{"card": "Test Card", "versions": {}, "rows": [{}]}'])
def test_save_leaves_a_file_of_other_content(card, tmp_path, content):
    path = tmp_path / "card.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"card\.json does not hold rows of this bench"):
        bench.save(path, [row("a")])
    assert path.read_text() == content
    assert list(tmp_path.iterdir()) == [path]


def test_relative_l2_sees_one_wrong_image():
    inputs = random_inputs(dataclasses.replace(SMALL, batch=40), seed=0)
    problem = dataclasses.replace(SMALL, batch=40)
    y = oracle(*inputs)
    assert bench.relative_l2(y, inputs, problem) == 0.0
    wrong = y.clone()
    wrong[33] = 0.0
    expected = (y[33].square().sum() / y.square().sum()).sqrt().item()
    assert bench.relative_l2(wrong, inputs, problem) == pytest.approx(expected)
    wrong[33] = torch.nan
    assert not bench.relative_l2(wrong, inputs, problem) <= 1e-7


def test_peers_compute_the_operator():
    inputs = random_inputs(SMALL, seed=0)
    for prepare in (bench.eager, bench.folded, bench.ours):
        assert bench.relative_l2(prepare(inputs, {})(), inputs, SMALL) < 5e-7


@pytest.mark.parametrize("problem", bench.OTHER_PROBLEMS, ids=bench.describe)
def test_peers_use_the_options(problem):
    problem = dataclasses.replace(problem, batch=1, in_channels=problem.groups * 2, out_channels=problem.groups * 2)
    inputs, options = random_inputs(problem, seed=0), problem.conv_options
    for prepare in (bench.eager, bench.folded):
        assert bench.relative_l2(prepare(inputs, options)(), inputs, problem) < 5e-7


def test_other_problems_and_the_family():
    assert len({bench.describe(problem) for problem in bench.OTHER_PROBLEMS}) == 12
    outside = [bench.describe(problem) for problem in bench.OTHER_PROBLEMS if not bench.in_family(problem)]
    assert outside == [
        "32, 256->256, 14x14, 3x3, padding 1",
        "32, 128->128, 56x56, 3x3, stride 2, padding 1",
        "32, 64->64, 56x56, 3x3, padding 1, groups 4",
        "32, 128->128, 56x56, 3x3, padding 1, groups 128",
    ]
    assert bench.in_family(KERNELBENCH_73)
    assert not bench.in_family(Problem(1, 8, 8, 20, 20, 8))


def test_peers_of_every_precision():
    for precision in ("fp32", "tf32", "fp16", "bf16"):
        names = [(peer.name, peer.layout) for peer in bench.PEERS + bench.OURS if peer.precision == precision]
        assert names == [
            ("eager PyTorch", "NCHW"),
            ("torch.compile", "NCHW"),
            ("torch.compile max-autotune", "NCHW"),
            ("folded cuDNN", "NCHW"),
            ("folded cuDNN", "channels_last"),
            ("fusedref", "NCHW"),
            ("fusedref", "channels_last"),
        ]
    assert not any("max-autotune" in peer.name for peer in bench.PEERS_AT_OTHER_PROBLEMS)


def test_speedup_is_over_the_fastest_peer():
    rows = [
        row(bench.FLOOR, us=1.0),
        row("eager PyTorch", us=90.0),
        row("folded cuDNN", us=40.0),
        row("folded cuDNN", us=5.0, precision="tf32"),
        row("fusedref", us=10.0),
        row("fusedref", us=99.0, layout="channels_last"),
        row("folded cuDNN", us=3.0, problem="elsewhere"),
        row("fusedref", us=3.0, problem="elsewhere"),
    ]
    assert bench.fastest(rows[:6], "fp32", ours=False).name == "folded cuDNN"
    assert bench.speedup(rows) == pytest.approx(2.0)  # of 4 and 1


def test_table_of_other_problems():
    rows = [
        row(name, us=us, precision=precision)
        for precision in ("fp32", "tf32", "fp16")
        for name, us in (("folded cuDNN", 20.0), ("fusedref", 8.0))
    ]
    cells = [next(iter(column.cells)) for column in bench.other_problems_table(rows, "Test Card").columns]
    assert cells == ["somewhere", "5.0", "20.0", "8.0", "2.50", "20.0, 8.0", "20.0, 8.0"]


def test_picture_has_a_bar_for_each_row():
    rows = [row(bench.FLOOR), row("a"), row("b", precision="tf32")]
    axes = bench.picture(rows, "Test Card").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a, fp32, NCHW", "b, tf32, NCHW"]
    assert "Test Card" in axes.get_title()


def test_floors_of_training():
    """In units of x and y: what a pass reads or writes."""
    bytes_of = {step.mode: step.floor_bytes(KERNELBENCH_73) for step in bench.STEPS}
    x, y = 4 * 128 * 8 * 128 * 128, 4 * 128 * 64 * 126 * 126
    assert bytes_of == {
        "train": 2 * x + y,
        "train, gradients enabled": 2 * x + y,
        "train, gradients of parameters": 2 * x + y + y + x,
        "train, gradients of x too": 2 * x + y + y + x + x + 3 * x,
        "eval, gradients enabled": x + y,
        "eval, gradients of x too": x + y + y + x + x,
    }
    half = dataclasses.replace(KERNELBENCH_73, dtype=torch.float16)
    assert bench.STEPS[0].floor_bytes(half) == x + y // 2


@pytest.mark.parametrize("step", bench.STEPS, ids=lambda step: step.mode)
def test_steps_return_what_they_are_for(step):
    work = bench.Work(step, SMALL, "fp32", device="cpu")
    model = ConvBnScale(8, 16, 3, 2.0)
    call = work.call_of(model)
    results = call()
    assert {"y", *step.needs} == set(results)
    assert results["y"].requires_grad == (step.mode != "train")
    assert model.training == step.mode.startswith("train")
    assert work.error(results) < 1e-6
    again = call()
    for name, value in results.items():
        assert torch.equal(value, again[name])  # gradients are not added to those of the call before
    for name in {"y", *step.needs} - {"dbias"}:
        assert work.error({**results, name: results[name] * 1.001}) == pytest.approx(1e-3, rel=0.01)


def test_kernelbench_check():
    model, same = (bench.made(ConvBnScale, SMALL, True, torch.device("cpu")) for _ in range(2))
    for one, other in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(one, other)
    assert all(parameter.requires_grad for parameter in same.parameters())
    assert bench.agrees(model, same, SMALL, torch.device("cpu"))
    same.conv.weight.data[0] += 1e-3
    assert not bench.agrees(model, same, SMALL, torch.device("cpu"))


def test_the_ladder_shows_evaluation_mode_alone():
    evaluation, training = (
        row("eager PyTorch", mode=mode, problem=bench.describe(KERNELBENCH_73)) for mode in ("eval", "train")
    )
    assert ladder_rows([evaluation, training]) == [evaluation]


def cells_of(table):
    return [list(cells) for cells in zip(*(column.cells for column in table.columns), strict=True)]


def test_table_of_training():
    rows = [row(bench.FLOOR, us=5.0, relative_l2=None), row("fusedref", mode="train", peak_mib=20.25)]
    assert cells_of(bench.training_table(rows, "Test Card")) == [
        ["eval", "device copy", "fp32", "5.0", "1.0", "1.00", "", ""],
        ["train", "fusedref", "fp32", "10.0", "1.0", "2.00", "1.0e-07", "20"],
    ]


def test_table_of_training_at_other_problems():
    rows = [
        row(name, us=us, mode="train")
        for name, us in ((bench.FLOOR, 1.0), ("eager PyTorch", 30.0), ("torch.compile", 16.0), ("fusedref", 8.0))
    ]
    table = bench.other_problems_training_table(rows, "Test Card")
    assert cells_of(table) == [["somewhere", "1.0", "30.0", "16.0", "8.0", "3.75", "2.00"]]
    assert bench.training_speedups(rows, "torch.compile") == {"somewhere": 2.0}


def test_table_of_kernelbench():
    rows = [
        row(name, us=us, mode="KernelBench, train", precision=precision, passed=precision == "fp32")
        for precision in ("fp32", "tf32")
        for name, us in (("eager PyTorch", 40.0), ("fusedref", 5.0))
    ]
    assert cells_of(bench.kernelbench_table(rows, "Test Card")) == [
        ["train", "fp32", "40.0", "5.0", "8.00", "yes"],
        ["train", "tf32", "40.0", "5.0", "8.00", "NO"],
    ]


def test_cudnn_uses_tf32_only_where_asked():
    before = torch.backends.cudnn.allow_tf32
    for precision, allowed in (("fp32", False), ("tf32", True), ("fp16", False)):
        with bench.arithmetic(precision):
            assert torch.backends.cudnn.allow_tf32 is allowed
    assert torch.backends.cudnn.allow_tf32 is before


@pytest.mark.gpu
def test_device_times_exclude_a_late_host():
    """Two launches, between which the host rests longer than the device works."""
    x = torch.zeros(8, device="cuda")

    def slow():
        x.add_(1)
        time.sleep(5e-4)
        x.add_(1)

    assert statistics.median(bench.samples(slow)) < 100
    begin = time.perf_counter()
    times = bench.host_samples(slow, repeats=2, calls=3)
    assert len(times) == 2
    assert min(times) > 500
    assert time.perf_counter() - begin < 60


@pytest.mark.gpu
def test_host_rows():
    rows = bench.host_rows()
    assert [found.name for found in rows] == [
        f"host: {name}"
        for name in (
            bench.FLOOR, "eager PyTorch", "eager PyTorch, module", "folded cuDNN", "fusedref", "fusedref, module",
        )
    ]  # fmt: skip
    assert all(found.us > 0 and found.floor_us == rows[0].us for found in rows)


@pytest.mark.gpu
def test_training_on_a_gpu():
    names = ("eager PyTorch", "fusedref")
    rows = list(bench.training_rows([SMALL], precisions=("fp32", "bf16"), names=names))
    assert [found.name for found in rows] == [bench.FLOOR, *names] * 12
    for found in rows:
        assert found.us > 0
        assert found.name == bench.FLOOR or found.relative_l2 < {"fp32": 2e-6, "bf16": 4e-2}[found.precision]
        assert found.name == bench.FLOOR or found.peak_mib > 0
    assert [found.mode for found in bench.training_host_rows()] == [step.mode for step in bench.STEPS for _ in names]


@pytest.mark.gpu
def test_kernelbench_on_a_gpu():
    rows = bench.kernelbench_rows(SMALL)
    assert [(found.name, found.mode, found.precision) for found in rows] == [
        (name, f"KernelBench, {mode}", precision)
        for mode in ("train", "eval")
        for precision in ("fp32", "tf32")
        for name in ("eager PyTorch", "fusedref")
    ]
    assert all(found.passed for found in rows if found.precision == "fp32")


@pytest.mark.gpu
def test_every_peer_runs_within_its_precision():
    peers = [peer for peer in bench.PEERS + bench.OURS if "max-autotune" not in peer.name]
    bench.compile_ours([SMALL])
    rows = bench.run([(SMALL, peers)])
    assert [row.name for row in rows if row.name != bench.FLOOR] == [peer.name for peer in peers]
    limits = {"fp32": 5e-7, "tf32": 2e-3, "fp16": 5e-3, "bf16": 4e-2}
    for found in rows:
        assert found.us > 0
        assert found.floor_us > 0
        assert found.name == bench.FLOOR or found.relative_l2 < limits[found.precision]
