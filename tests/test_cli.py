"""The command lines: what they print and how they end."""

import shutil
import sys

import pytest

from fusedref import __main__ as command
from fusedref.__main__ import main
from kernels.__main__ import main as ladder
from kernels.ladder import KERNELS
from kernels.profile import main as profile
from tests import processes

SMALL = ["--problem", "1,2,3,8,9,3"]


@pytest.fixture
def kernel(tmp_path):
    """Return ``kernel(right, wrong)``, which writes rung 04's file with one text replaced and returns its path."""

    def kernel(right="", wrong=""):
        text = (KERNELS / "04_fused.cu").read_text()
        assert right in text
        path = tmp_path / "mine.cu"
        path.write_text(text.replace(right, wrong) if right else text)
        return str(path)

    return kernel


def test_right_kernel(kernel, capsys):
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
def test_wrong_kernel(kernel, capsys, right, wrong):
    assert main(["validate", kernel(right, wrong), "--kernel", "fused", *SMALL]) == 1
    assert capsys.readouterr().out.strip()


MODEL_NEW = """
import torch


class ModelNew(torch.nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size, scaling_factor):
        super().__init__()
        self.conv = torch.nn.Conv2d(in_channels, out_channels, kernel_size)
        self.bn = torch.nn.BatchNorm2d(out_channels)
        self.scaling_factor = scaling_factor

    def forward(self, x):
        return self.bn(self.conv(x)) * self.scaling_factor
"""


@pytest.mark.parametrize("mode", ["eval", "train", "backward"])
@pytest.mark.parametrize(("scale", "status"), [("self.scaling_factor", 0), ("2.0", 1)], ids=["right", "scale fixed"])
def test_model_new(mode, scale, status, tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(MODEL_NEW.replace("* self.scaling_factor", f"* {scale}"))
    assert main(["validate", str(path), "--mode", mode, *SMALL]) == status
    assert ("y: every element is wrong" in capsys.readouterr().out) == (status == 1 and mode != "eval")


@pytest.mark.parametrize("mode", ["eval", "train", "backward"])
def test_this_package(mode, monkeypatch, capsys):
    monkeypatch.delenv("FUSEDREF_DEVICE", raising=False)  # of the command line here, not of kernels
    assert main(["validate", "--mode", mode, *SMALL]) == 0
    assert capsys.readouterr().out.startswith("right to float32 rounding")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x = 1", "mine.py defines no ModelNew"),
        ("import nowhere", "ModelNew of mine.py cannot be made: ModuleNotFoundError: No module named 'nowhere'"),
        ("def ModelNew(*sizes): return 3", "ModelNew of mine.py cannot be made: AttributeError: 'int' object has no"),
        ("import torch\ndef ModelNew(*sizes): return torch.nn.ReLU()", "scaling_factor; this ReLU has no conv"),
        (
            MODEL_NEW.replace("kernel_size)\n        self.bn", "2)\n        self.bn"),
            "problem must be the module's",
        ),
    ],
)
def test_wrong_python_files(content, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(content)
    assert main(["validate", "mine.py", "--mode", "train", *SMALL]) == 2
    assert words in capsys.readouterr().err


def test_what_a_kernel_needs(kernel, capsys):
    assert main(["validate", kernel(), *SMALL]) == 2
    assert "--kernel must name a kernel in" in capsys.readouterr().err
    assert main(["validate", kernel(), "--kernel", "fused", "--mode", "train", *SMALL]) == 2
    assert "a kernel is validated with --mode eval, got --mode train" in capsys.readouterr().err


def test_missing_file(capsys):
    assert main(["validate", "nowhere.cu", "--kernel", "fused"]) == 2
    assert "there is no file nowhere.cu" in capsys.readouterr().err


def test_missing_kernel(kernel, capsys):
    assert main(["validate", kernel(), "--kernel", "fussed", *SMALL]) == 2
    assert "no kernel 'fussed' marked extern" in capsys.readouterr().err


def test_compile_error(kernel, capsys):
    assert main(["validate", kernel("float sum = bias[channel];", "flaot sum;"), "--kernel", "fused", *SMALL]) == 2
    error = capsys.readouterr().err
    assert "does not compile" in error
    assert "flaot" in error


@pytest.mark.parametrize(
    ("program", "arguments"),
    [(main, ["validate", "mine.cu", "--kernel", "fused"]), (main, ["bench"]), (ladder, []), (profile, ["--run"])],
    ids=["validate", "bench", "ladder", "profile"],
)
def test_a_wrong_device(program, arguments, monkeypatch, capsys):
    monkeypatch.setenv("FUSEDREF_DEVICE", "tpu")
    assert program(arguments) == 2
    printed = capsys.readouterr()
    assert "FUSEDREF_DEVICE is 'tpu'" in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out


@pytest.mark.parametrize("seed", ["-1", "1.5", "x", "", str(2**63), "9" * 5000], ids=lambda seed: seed[:20])
def test_wrong_seeds(kernel, capsys, seed):
    with pytest.raises(SystemExit) as end:
        main(["validate", kernel(), "--kernel", "fused", *SMALL, "--seed", seed])
    assert end.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "argument --seed: must be an integer, at least 0 and below 2**63, got " in error
    assert len(error) < 200


@pytest.mark.parametrize("batch", ["1000000000", str(10**30)])
def test_sizes_beyond_memory(kernel, capsys, batch):
    assert main(["validate", kernel(), "--kernel", "fused", "--problem", f"{batch},8,64,128,128,3"]) == 2
    printed = capsys.readouterr()
    assert "problem must fit into memory: it needs at least" in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out


@pytest.mark.parametrize("error", [MemoryError("no"), RuntimeError("can't allocate memory")])
def test_out_of_memory_in_validate(kernel, capsys, monkeypatch, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(command, "validate", fails)
    assert main(["validate", kernel(), "--kernel", "fused", *SMALL]) == 2
    assert capsys.readouterr().err.endswith(f"validation at these sizes fails: {type(error).__name__}: {error}\n")


def test_out_of_memory_in_a_launch(kernel, capsys, monkeypatch):
    """The emulator has no room for the tensors: that is not the kernel's fault."""

    def fails(*_, **__):
        raise MemoryError("cuMemAlloc failed: out of memory")

    monkeypatch.setattr("fusedref.validation.kernel.launch", fails)
    assert main(["validate", kernel(), "--kernel", "fused", *SMALL]) == 2
    assert "cuMemAlloc failed: out of memory" in capsys.readouterr().err


@pytest.mark.parametrize("name", ['a"b', "a\nb", "a\\b", "a\\", "a b", "\udcff", "[red]a", "-a"])
def test_odd_file_names_and_a_byte_order_mark(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"{name}.cu"
    path.write_bytes(b"\xef\xbb\xbf" + (KERNELS / "04_fused.cu").read_bytes())
    assert main(["validate", "--kernel", "fused", *SMALL, "--", path.name]) == 0


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", "// é".encode("latin-1")])
def test_file_that_is_not_utf_8(tmp_path, capsys, content):
    path = tmp_path / "mine.cu"
    path.write_bytes(content)
    assert main(["validate", str(path), "--kernel", "fused"]) == 2
    assert capsys.readouterr().err == f"python -m fusedref: {path} is not text in UTF-8\n"


def test_unreadable_file(kernel, capsys, monkeypatch):
    path = kernel()

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_text", refused)
    assert main(["validate", path, "--kernel", "fused"]) == 2
    assert capsys.readouterr().err == f"python -m fusedref: {path} cannot be read: Permission denied\n"


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        (main, ["bench", "--json"]),
        (main, ["bench", "--plot"]),
        (ladder, ["--json"]),
        (ladder, ["--plot"]),
        (profile, []),
    ],
    ids=["bench --json", "bench --plot", "ladder --json", "ladder --plot", "profile"],
)
def test_output_files_are_checked_before_any_work(program, arguments, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    option = arguments[-1] if arguments else "FILE"
    with pytest.raises(SystemExit) as end:
        program([*arguments, str(tmp_path / "file" / "x.png")])
    assert end.value.code == 2
    assert f"argument {option}: '{tmp_path}/file/x.png' cannot be written: File exists" in capsys.readouterr().err
    if option == "--plot":
        with pytest.raises(SystemExit) as end:
            program([*arguments, str(tmp_path / "x.xyz")])
        assert end.value.code == 2
        assert "x.xyz' must end in .png, .svg or .pdf" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("sizes", ["1,2,3", "1,2,3,8,9,three", "1,2,3,2,2,3", "0,2,3,8,9,3", "1,2,3,8,9,3,1"])
def test_wrong_sizes(kernel, capsys, sizes):
    with pytest.raises(SystemExit) as end:
        main(["validate", kernel(), "--kernel", "fused", "--problem", sizes])
    assert end.value.code == 2
    assert "BATCH,IN_CHANNELS" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "arguments", "name", "statuses"),
    [
        (main, [], "python -m fusedref", "0 done, 1 refused"),
        (main, ["validate"], "python -m fusedref validate", "0 validated, 1 refused"),
        (main, ["bench"], "python -m fusedref bench", "0 done"),
        (ladder, [], "python -m kernels", "0 every rung validates, 1 a rung is refused"),
        (profile, [], "python -m kernels.profile", "0 done"),
    ],
    ids=["fusedref", "validate", "bench", "ladder", "profile"],
)
def test_help(program, arguments, name, statuses, capsys):
    with pytest.raises(SystemExit) as end:
        program([*arguments, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {name} [-h]")
    assert f"example:\n  {name} " in text
    ending = " ".join(text.partition("exit status: ")[2].split())
    assert ending == f"{statuses}, 2 not run (such as a wrong command), 130 interrupted"


def test_example_in_the_help_runs(capsys, monkeypatch):
    monkeypatch.chdir(KERNELS.parent)
    with pytest.raises(SystemExit):
        main(["validate", "--help"])
    example = capsys.readouterr().out.partition("example:\n  python -m fusedref ")[2].splitlines()[0]
    assert main(example.split()) == 0


def test_bench_parts(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--only", "everything"])
    assert "(choose from" in capsys.readouterr().err


def test_bench_without_a_gpu(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("FUSEDREF_DEVICE", "emulator")
    assert main(["bench", "--json", str(tmp_path / "card.json")]) == 2
    printed = capsys.readouterr().err
    assert "no NVIDIA GPU" in printed
    assert "make ladder" in printed
    assert not (tmp_path / "card.json").exists()


@pytest.mark.parametrize("module", ["fusedref", "kernels", "kernels.profile"])
def test_commands_start_as_modules(module):
    done = processes.run([sys.executable, "-m", module, "--help"])
    assert done.returncode == 0, done.stderr
    assert f"usage: python -m {module}" in done.stdout, done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_lists_the_targets():
    done = processes.run(["make"], cwd=KERNELS.parent)
    assert done.returncode == 0
    assert "make ladder" in done.stdout
    assert "make test" in done.stdout
