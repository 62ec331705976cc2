"""The command line: what it prints and how it ends."""

import shutil
import sys

import pytest

from fusedref.__main__ import main
from kernels.__main__ import main as ladder
from kernels.ladder import KERNELS
from tests import processes

SMALL = ["--problem", "1,2,3,8,9,3"]


@pytest.fixture
def kernel(tmp_path):
    """kernel(right, wrong): rung 04's file with one text replaced."""

    def kernel(right="", wrong=""):
        text = (KERNELS / "04_fused.cu").read_text()
        assert right in text
        path = tmp_path / "mine.cu"
        path.write_text(text.replace(right, wrong) if right else text)
        return str(path)

    return kernel


def test_a_right_kernel_is_validated(kernel, capsys):
    assert main(["validate", kernel(), "--kernel", "fused", *SMALL]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("- running_mean[channel]", ""),
        ("sqrtf(running_var[channel] + eps)", "sqrtf(running_var[channel])"),
        ("* scaling_factor", "* 2.0f"),
        ("j < kernel_size", "j < kernel_size - 1"),
        ("if (output >= batch * out_channels * out_height * out_width) return;", ""),
    ],
)
def test_a_wrong_kernel_is_refused(kernel, capsys, right, wrong):
    assert main(["validate", kernel(right, wrong), "--kernel", "fused", *SMALL]) == 1
    assert capsys.readouterr().out.strip()


def test_a_file_that_is_not_there(capsys):
    assert main(["validate", "nowhere.cu", "--kernel", "fused"]) == 2
    assert "there is no file nowhere.cu" in capsys.readouterr().err


def test_a_kernel_that_is_not_there(kernel, capsys):
    assert main(["validate", kernel(), "--kernel", "fussed", *SMALL]) == 2
    assert "no kernel 'fussed' marked extern" in capsys.readouterr().err


def test_a_file_that_does_not_compile(kernel, capsys):
    assert main(["validate", kernel("float sum = bias[channel];", "flaot sum;"), "--kernel", "fused", *SMALL]) == 2
    error = capsys.readouterr().err
    assert "does not compile" in error and "flaot" in error


@pytest.mark.parametrize(
    ("program", "arguments"),
    [(main, ["validate", "mine.cu", "--kernel", "fused"]), (main, ["bench"]), (ladder, [])],
    ids=["validate", "bench", "ladder"],
)
def test_a_device_that_is_none(program, arguments, monkeypatch, capsys):
    monkeypatch.setenv("FUSEDREF_DEVICE", "tpu")
    assert program(arguments) == 2
    printed = capsys.readouterr()
    assert "FUSEDREF_DEVICE is 'tpu'" in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_a_seed_that_is_none(kernel, capsys):
    assert main(["validate", kernel(), "--kernel", "fused", *SMALL, "--seed", "-1"]) == 2
    assert "seed must be at least 0 and below 2**63, got -1" in capsys.readouterr().err


@pytest.mark.parametrize("sizes", ["1,2,3", "1,2,3,8,9,three", "1,2,3,2,2,3", "0,2,3,8,9,3", "1,2,3,8,9,3,1"])
def test_sizes_that_make_no_problem(kernel, capsys, sizes):
    with pytest.raises(SystemExit) as end:
        main(["validate", kernel(), "--kernel", "fused", "--problem", sizes])
    assert end.value.code == 2 and "BATCH,IN_CHANNELS" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["validate", "--help"], ["bench", "--help"]])
def test_help(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0 and "usage: python -m fusedref" in capsys.readouterr().out


def test_bench_without_a_gpu_says_what_to_run_instead(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("FUSEDREF_DEVICE", "emulator")
    assert main(["bench", "--json", str(tmp_path / "card.json")]) == 2
    printed = capsys.readouterr().out
    assert "no NVIDIA GPU" in printed and "make ladder" in printed and not (tmp_path / "card.json").exists()


@pytest.mark.parametrize("module", ["fusedref", "kernels"])
def test_both_commands_start_as_modules(module):
    done = processes.run([sys.executable, "-m", module, "--help"])
    assert done.returncode == 0 and f"usage: python -m {module}" in done.stdout, done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_alone_lists_the_targets():
    done = processes.run(["make"], cwd=KERNELS.parent)
    assert done.returncode == 0 and "make ladder" in done.stdout and "make test" in done.stdout
