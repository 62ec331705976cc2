"""A test that hangs ends with its stack, and a process that hangs ends before its test."""

import subprocess
import sys

import pytest

from tests import processes

HANGING = """
import ctypes

def hang_in_c():
    ctypes.PyDLL(None).pause()  # holds the GIL: no Python thread and no signal handler runs again

def test_hangs():
    hang_in_c()

def test_is_right():
    pass
"""


def pytest_on(folder, *options):
    """Run pytest with this repository's settings, and a limit of one second, on the tests in ``folder``."""
    settings = ["-c", processes.ROOT / "pyproject.toml", "-o", "faulthandler_timeout=1", "-p", "no:cacheprovider"]
    return processes.run([sys.executable, "-m", "pytest", "-q", *settings, *options, folder], cwd=folder)


def test_a_test_that_hangs_in_c_ends_with_its_stack(tmp_path):
    (tmp_path / "test_it.py").write_text(HANGING)
    done = pytest_on(tmp_path)
    assert done.returncode == 1
    assert "Timeout (0:00:01)!" in done.stderr
    assert 'test_it.py", line 5 in hang_in_c' in done.stderr


def test_the_other_tests_still_run_in_a_new_worker(tmp_path):
    (tmp_path / "test_it.py").write_text(HANGING)
    done = pytest_on(tmp_path, "-n", "1")
    assert done.returncode == 1
    assert "1 failed, 1 passed" in done.stdout
    assert "crashed while running 'test_it.py::test_hangs'" in done.stdout
    assert 'test_it.py", line 5 in hang_in_c' in done.stderr


def test_a_warning_is_an_error(tmp_path):
    (tmp_path / "test_it.py").write_text("import warnings\ndef test_warns(): warnings.warn('not expected')\n")
    assert "UserWarning: not expected" in pytest_on(tmp_path).stdout


def test_a_process_ends_with_what_it_started():
    """The shell's child holds the pipe: without its end the test does not go on."""
    with pytest.raises(subprocess.TimeoutExpired):
        processes.run(["sh", "-c", "sleep 1000; true"], limit=1)


def test_a_process_has_less_time_than_its_test(pytestconfig):
    assert float(pytestconfig.getini("faulthandler_timeout")) > processes.LIMIT
