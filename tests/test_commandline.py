"""Parts of every command line: its exit status, and the files it writes."""

import argparse
import os
import sys

import pytest

from fusedref import bench, commandline
from kernels import profile
from tests import processes


@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_program_ends_with_its_status(status):
    with pytest.raises(SystemExit) as end:
        commandline.run("program", lambda: status)
    assert end.value.code == status


def test_ctrl_c_ends_with_one_line_and_130(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        commandline.run("program", interrupted)
    assert end.value.code == 130
    assert capsys.readouterr() == ("", "program: interrupted\n")


INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # Python ignores SIGINT if its parent does
from fusedref import commandline, __main__ as command
def main():
    os.kill(os.getpid(), signal.SIGINT)
    return command.main(sys.argv[1:])
commandline.run(command.PROGRAM, main)
"""


def test_ctrl_c_in_a_process():
    arguments = ["validate", "kernels/04_fused.cu", "--kernel", "fused"]
    done = processes.run([sys.executable, "-c", INTERRUPTED, *arguments], cwd=processes.ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "python -m fusedref: interrupted\n")


@pytest.mark.parametrize("module", ["fusedref", "kernels", "kernels.profile"])
def test_ctrl_c_while_torch_is_imported(module, tmp_path):
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    command, environment = [sys.executable, "-m", module], processes.environment(PYTHONPATH=tmp_path)
    done = processes.run(command, env=environment, cwd=processes.ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"python -m {module}: interrupted\n")


def test_an_error_while_torch_is_imported_shows_its_traceback(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('no torch')")
    environment = processes.environment(PYTHONPATH=tmp_path)
    done = processes.run([sys.executable, "-m", "fusedref"], env=environment, cwd=processes.ROOT)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert done.stderr.endswith("ImportError: no torch\n")


def test_a_closed_pipe_ends_without_a_traceback():
    program = "from fusedref import commandline; commandline.run('program', lambda: print('x' * 10**6) or 0)"
    pipe = f"import subprocess, sys; work = {program!r}\n" + CLOSED_PIPE
    done = processes.run([sys.executable, "-c", pipe])
    assert (done.returncode, done.stdout, done.stderr) == (0, "141 b''\n", "")


CLOSED_PIPE = """
process = subprocess.Popen([sys.executable, "-c", work], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
process.stdout.close()
errors = process.stderr.read()
print(process.wait(), errors)
"""


def test_text_that_the_terminal_cannot_encode_is_escaped():
    code = "from fusedref import commandline; commandline.run('program', lambda: print('\\udcff → x') or 0)"
    assert processes.python(code, PYTHONIOENCODING="ascii") == "\\udcff \\u2192 x\n"


def test_an_output_file_may_be_new_or_exist(tmp_path):
    there, new = tmp_path / "there", tmp_path / "a" / "b" / "new"
    there.write_text("old")
    assert commandline.output_file(str(there)) == there
    assert there.read_text() == "old"
    assert commandline.output_file(str(new)) == new
    assert new.parent.is_dir()
    assert not new.exists()
    assert list(new.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "'' is not a file: name a file to write"),
        ("folder", "is not a file: name a file to write"),
        ("pipe", "is not a file: name a file to write"),
        ("file/x.json", "cannot be written: File exists"),
        ("loop", "cannot be written: Too many levels of symbolic links"),
        ("n" * 300, "cannot be written: File name too long"),
    ],
)
def test_a_file_that_cannot_be_written(name, words, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(argparse.ArgumentTypeError) as error:
        commandline.output_file(str(tmp_path / name) if name else "")
    assert words in str(error.value)


def test_a_protected_file_or_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write to every file
    path = tmp_path / "file"
    commandline.output_file(str(path))
    path.write_text("")
    with pytest.raises(argparse.ArgumentTypeError, match="is write-protected: name another file"):
        commandline.output_file(str(path))

    def refused(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(commandline.tempfile, "TemporaryFile", refused)
    with pytest.raises(argparse.ArgumentTypeError, match="cannot be written: Permission denied"):
        commandline.output_file(str(tmp_path / "other"))


@pytest.mark.parametrize("name", ["x.png", "x.svg", "a.b.pdf"])
def test_pictures_of_these_kinds(name, tmp_path):
    assert commandline.picture_file(str(tmp_path / name)) == tmp_path / name


@pytest.mark.parametrize("name", ["x.xyz", "x", "x.", ".png", "png", "x.png/", "x.jpg"])
def test_pictures_of_other_kinds(name, tmp_path):
    if name == "x.png/":
        (tmp_path / name).mkdir()
    words = "is not a file" if name == "x.png/" else r"must end in \.png, \.svg or \.pdf"
    with pytest.raises(argparse.ArgumentTypeError, match=words):
        commandline.picture_file(str(tmp_path / name))


def test_a_file_is_replaced_as_a_whole_or_left_alone(tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(path)
    for number in range(2):
        with commandline.written_whole(link) as aside:
            assert aside.suffix == path.suffix
            assert aside.parent.parent == tmp_path
            aside.write_text(f"content {number}")
            assert path.exists() == bool(number)
        assert path.read_text() == f"content {number}"
        assert link.is_symlink()

    def fail():
        with commandline.written_whole(path) as aside:
            aside.write_text("con")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail()
    assert path.read_text() == "content 1"
    assert sorted(tmp_path.iterdir()) == [path, link]


CONTENTS = {
    "damaged": b'{"card": "x", "rows": [',
    "another object": b'{"a": 1}',
    "a list": b"[1]",
    "a number": b"3",
    "text": b"my notes",
    "a picture": b"\x89PNG\r\n\xff",
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize(
    ("of_arguments", "holds"),
    [(bench.rows_file, "rows of this bench"), (profile.counters_file, "counters of this command")],
    ids=["bench", "profile"],
)
def test_a_file_of_other_content_is_not_lost(of_arguments, holds, content, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(argparse.ArgumentTypeError, match=f"file does not hold {holds}: name another file"):
        of_arguments(str(path))
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("of_arguments", "committed"),
    [(bench.rows_file, "h200.json"), (profile.counters_file, "ncu_h200.json")],
    ids=["bench", "profile"],
)
def test_an_empty_file_and_the_committed_one_are_accepted(of_arguments, committed, tmp_path):
    path = tmp_path / "file"
    for content in (b"", (processes.ROOT / "lessons" / "measured" / committed).read_bytes()):
        path.write_bytes(content)
        assert of_arguments(str(path)) == path
        assert path.read_bytes() == content


def test_a_progress_bar_shows_only_on_a_terminal(monkeypatch, capsys):
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with commandline.progress_bar() as progress:
            progress.add_task("working", total=2)
            assert progress.disable is not terminal
    printed = capsys.readouterr()
    assert not printed.out
