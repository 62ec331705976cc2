"""The ladder: bytes, table, picture and README, and the refusal of a broken rung."""

import dataclasses
import json
import re

import pytest
import torch
from rich.console import Console

from fusedref import KERNELBENCH_73, bench, plan
from fusedref.bench import Work
from fusedref.problem import SMALL_73
from kernels import __main__ as command
from kernels import ladder, training, training_times

CONV2D, FUSED, FUSED_BLOCK, FOLDED = (ladder.LADDER[index] for index in (0, 4, 5, 6))
X, Y = 4 * 128 * 8 * 128 * 128, 4 * 128 * 64 * 126 * 126
PARAMETERS = 4 * (64 * 8 * 3 * 3 + 5 * 64)


@pytest.fixture
def rungs(monkeypatch, tmp_path):
    """Return ``rungs(rung, ...)``, which runs the command with these rungs and no committed times, for its status.

    ``rungs.timed`` is empty as long as nothing has been timed.
    """
    timed = []

    def run(*rungs, options=(), training=()):
        monkeypatch.setattr(command, "LADDER", list(rungs))
        monkeypatch.setattr(command, "TRAINING", list(training))
        monkeypatch.setattr(command, "MEASURED", command.ROOT / "lessons" / "measured" / "none.json")
        monkeypatch.setattr(command, "measure", lambda: timed.append(True) or [])
        monkeypatch.setattr(command.training_times, "measure", lambda: [])
        return command.main(["--plot", str(tmp_path / "plots" / "ladder.png"), *options])

    run.timed = timed
    return run


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Replace the committed file of times by one of made-up times of a made-up card; return its path."""
    times = {bench.FLOOR: 100.0, "eager PyTorch": 900.0, "torch.compile": 700.0, "folded cuDNN": 500.0}
    times |= {rung.title: 3000.0 - 100 * index for index, rung in enumerate(ladder.LADDER) if rung is not FUSED_BLOCK}
    shape = bench.describe(KERNELBENCH_73)
    precision = {rung.title: rung.precision for rung in ladder.LADDER}
    rows = [
        bench.Row(name, "eval", precision.get(name, "fp32"), "NCHW", shape, us, 1.0, 5e-8, 100.0)
        for name, us in times.items()
    ]
    path = tmp_path / "lessons" / "measured" / "card.json"
    path.parent.mkdir(parents=True)
    content = {"card": "Test Card", "versions": {}, "rows": [dataclasses.asdict(row) for row in rows]}
    path.write_text(json.dumps(content))
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "MEASURED", path)
    monkeypatch.setattr(command, "README", tmp_path / "README.md")
    monkeypatch.setattr(command, "README_PICTURE", path.with_name("ladder.png"))
    return path


def test_bytes_moved_at_problem_73():
    least = X + PARAMETERS + Y
    assert KERNELBENCH_73.least_bytes == least
    moved = {rung.title: rung.bytes_moved(KERNELBENCH_73) for rung in ladder.LADDER}
    assert moved == {
        "01 conv2d": least + 4 * Y,
        "02 batch_norm": least + 4 * Y,
        "03 scale": least + 4 * Y,
        "03 bn_scale": least + 2 * Y,
        "04 fused": least,
        "04 fused_block": least,
        "05 folded": least,
        "05 folded_weights": least,
        "06 shared_tile": least,
        "07 register_tile": least,
        "08 tensor_cores": least,
        "09 split_fp32": least,
        "10 pipeline": least,
    }


def test_bytes_moved_in_training():
    moved = {rung.title: rung.bytes_moved(KERNELBENCH_73) for rung in training.TRAINING}
    assert moved == {
        "11 batch_statistics": X + PARAMETERS + 4 * Y,
        "12 training": 2 * X + PARAMETERS + Y,
        "12 moments": 2 * X + PARAMETERS + Y,
        "13 backward": 7 * X + PARAMETERS + 2 * Y,
    }
    floors = {mode: step.floor_bytes(KERNELBENCH_73) for mode, step in training_times.STEPS.items()}
    assert floors == {"train": 2 * X + Y, "backward": 7 * X + 2 * Y}


@pytest.mark.parametrize("mode", training_times.STEPS)
def test_what_is_timed_in_training_is_right(device, mode):
    work = Work(training_times.STEPS[mode], training.SMALL, "fp32", device.type)
    with torch.no_grad():
        for name, call in training_times.calls(mode, training.Training(*work.inputs), work.dy):
            result = call()
            is_rung = name in {rung.title for rung in training.TRAINING}
            assert isinstance(result, dict) == is_rung, name
            assert not is_rung or work.error(result) < 2e-6, name


def test_training_table_holds_the_times():
    modes = {mode: step.mode for mode, step in training_times.STEPS.items()}
    shape = bench.describe(KERNELBENCH_73)
    times = {"eager PyTorch": 900.0, "torch.compile": 600.0, "11 batch_statistics": 500.0, "13 backward": 450.0}
    rows = [
        bench.Row(name, mode, "fp32", "NCHW", shape, us, 1.0, 1e-7, 225.0)
        for name, us in times.items()
        for mode in modes.values()
    ]
    report = dataclasses.make_dataclass("Report", ["ok"])
    reports = [(rung, report(rung.mode == "train")) for rung in training.TRAINING]
    console = Console(width=200, record=True)
    console.print(training_times.table(reports, training_times.training_rows(rows), "on a card"))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["eager", "PyTorch", "train", "900", "1.00", "25%"] in lines
    assert ["11", "batch_statistics", "train", "yes", "4", "2148.03", "3.28", "500", "1.80", "45%"] in lines
    assert ["12", "training", "train", "yes", "3", "654.46", "1.00"] in lines
    assert ["13", "backward", *modes["backward"].split(), "no", "8", "1510.23", "1.00", "450", "2.00", "50%"] in lines


def test_broken_training_rung_is_refused(rungs, plant, capsys):
    plant("11_batch_statistics.cu", "all.squares / all.count", "all.squares / (all.count - 1)")
    assert rungs(FUSED, training=training.TRAINING[:1]) == 1
    printed = capsys.readouterr().out
    assert "11 batch_statistics is not validated" in printed
    assert "running_var" in printed


def test_kernel_files_and_rungs_have_the_same_numbers():
    numbers = [f"{rung.number:02d}" for rung in [*ladder.LADDER, *training.TRAINING]]
    assert numbers == sorted(numbers)
    assert sorted(set(numbers)) == sorted(path.name[:2] for path in ladder.KERNELS.glob("*.cu"))


def test_right_rungs_validate(rungs, capsys, tmp_path):
    assert rungs(FUSED, FUSED_BLOCK) == 0
    printed = capsys.readouterr().out
    assert "04 fused" in printed
    assert "04 fused_block does not launch on the 126x126 planes of problem 73: cu" in printed
    assert (tmp_path / "plots" / "ladder.png").stat().st_size > 1000


def test_broken_rung_is_refused(rungs, plant, capsys):
    plant("04_fused.cu", "+ beta[channel]", "")
    assert rungs(FUSED) == 1
    printed = capsys.readouterr().out
    assert "04 fused is not validated" in printed
    assert "beta" in printed
    assert not rungs.timed  # not even on a GPU: the time of a wrong kernel means nothing


def test_rung_that_does_not_compile_is_refused(rungs, plant, capsys):
    plant("01_conv2d.cu", "float sum = bias[channel];", "float sum = bias[channel]")
    assert rungs(CONV2D) == 1
    printed = capsys.readouterr().out
    assert "01 conv2d is not validated" in printed
    assert re.search(r"01_conv2d\.cu\(\d+\): error: .*['\"];['\"]", printed)  # the compiler's own words


def test_rung_that_launches_where_it_should_not(rungs, capsys):
    fits_all = dataclasses.replace(FUSED, max_plane=1024)
    assert rungs(fits_all) == 1
    assert "04 fused launches where it should not" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is said where there is no GPU")
def test_no_times_without_a_gpu(rungs, capsys, tmp_path):
    assert rungs(FUSED, options=["--json", str(tmp_path / "card.json")]) == 2
    assert "on a GPU alone" in capsys.readouterr().err
    assert not (tmp_path / "card.json").exists()
    assert rungs(FUSED) == 0
    printed = capsys.readouterr().out
    assert "No times" in printed
    assert "us" not in printed.split()


def test_table_holds_the_committed_times(measured):
    card, rows = bench.load(measured)
    rows = command.ladder_rows(rows)
    report = dataclasses.make_dataclass("Report", ["ok", "relative_l2"])(True, 1e-7)
    steps = [command.Step(rung, report, "too many threads") for rung in ladder.LADDER]
    console = Console(width=200, record=True)
    console.print(command.table(steps, rows, card, torch.device("cpu")))
    printed = console.export_text()
    assert "from an Test Card" in printed
    lines = [line.split() for line in printed.splitlines()]
    moved = f"{FOLDED.bytes_moved(SMALL_73) / 1e6:.2f}"
    assert ["05", "folded", "yes", "fp32", "1.0e-07", "1", moved, "1.00", "2400", "0.38", "4%"] in lines
    assert ["04", "fused_block", "yes", "fp32", "1.0e-07", "1", moved, "1.00", "none"] in lines
    assert ["folded", "cuDNN", "fp32", "5.0e-08", "500", "1.80", "20%"] in lines


def test_readme_is_written_from_the_measured_file(measured):
    command.README.write_text(
        f"before\n{command.BEGIN}\nstale\n{command.END}\nafter\n{command.NETWORKS_BEGIN}\n{command.NETWORKS_END}\n"
        f"{command.PLAN}\nstale\n```\nend\n"
    )
    assert command.main(["--readme"]) == 0
    text = command.README.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert f"{command.END}\nafter\n{command.NETWORKS_BEGIN}\n{command.networks_markdown()}\n" in text
    assert text.endswith(f"\n{command.NETWORKS_END}\n{command.PLAN}\n{plan(KERNELBENCH_73)}\n```\nend\n")
    assert "stale" not in text
    assert "Test Card" in text
    assert "| 05 folded |" in text
    assert "| 2400 | 0.38 | 4% | 5.0e-08 |" in text
    assert command.README_PICTURE.stat().st_size > 1000
    command.write_readme()
    assert command.README.read_text(encoding="utf-8") == text


def test_readme_is_up_to_date():
    text = command.README.read_text(encoding="utf-8")
    for begin, end, written in (
        (command.BEGIN, command.END, command.markdown()),
        (command.NETWORKS_BEGIN, command.NETWORKS_END, command.networks_markdown()),
    ):
        assert text.split(begin)[1].split(end)[0].strip() == written.strip()


@pytest.mark.gpu
def test_rungs_and_peers_are_timed_in_one_run():
    rows = command.measure()
    timed = [rung.title for rung in ladder.LADDER if rung is not FUSED_BLOCK]
    assert [row.name for row in rows] == [bench.FLOOR, *[peer.name for peer in command.PEERS], *timed]
    assert all(row.us > 0 for row in rows)
    assert all(row.relative_l2 <= {"fp32": 2e-7, "tf32": 4e-4}[row.precision] for row in rows[1:])


def test_table_is_whole_in_a_narrow_window(monkeypatch, capsys, tmp_path):
    validated, reports = command.validate, {}

    def validate(candidate, problem, *, mode, **options):
        """Return a report of the first rung of the mode: every rung's own test validates it."""
        if mode not in reports:
            reports[mode] = validated(candidate, problem, mode=mode, **options)
        return reports[mode]

    monkeypatch.setattr(command, "validate", validate)
    monkeypatch.setenv("FUSEDREF_DEVICE", "emulator")
    monkeypatch.setenv("COLUMNS", "80")
    assert command.main(["--plot", str(tmp_path / "ladder.png")]) == 0
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert printed.count("yes") == len(ladder.LADDER) + len(training.TRAINING)
