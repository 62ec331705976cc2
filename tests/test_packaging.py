"""Installation: the requirement files, the package alone, and the script that creates .venv."""

import importlib.util
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests import processes

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("setup_environment", ROOT / "tools" / "setup_environment.py")
setup_environment = importlib.util.module_from_spec(spec)
spec.loader.exec_module(setup_environment)


def requirements(name):
    lines = (ROOT / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def test_the_two_requirement_files_differ_in_pycuda_alone():
    with_gpu, without = requirements("requirements.txt"), requirements("requirements-cpu.txt")
    assert [str(line) for line in with_gpu if line.name != "pycuda"] == [str(line) for line in without]
    assert {"pycuda", "numpy", "torch", "pytest", "jupyter"} <= {line.name for line in with_gpu}
    assert "pycuda" not in {line.name for line in without}


def test_every_requirement_is_pinned_within_the_ranges_of_pyproject():
    text = (ROOT / "pyproject.toml").read_text()
    ranges = [Requirement(found) for found in re.findall(r'"([a-z]+>=[0-9.]+)"', text)]
    assert {"torch", "numpy", "pycuda"} <= {found.name for found in ranges}
    for line in requirements("requirements.txt"):
        (pin,) = line.specifier
        assert pin.operator == "=="
        for found in ranges:
            assert found.name != line.name or found.specifier.contains(pin.version), f"{line} is not in {found}"


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_every_python_gets_one_version_of_each_requirement(version):
    lines = requirements("requirements.txt")
    wanted = [line.name for line in lines if not line.marker or line.marker.evaluate({"python_version": version})]
    assert sorted(wanted) == sorted({line.name for line in lines})


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Fusedref's wheel, built from a copy of the checkout."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "fusedref", copy / "fusedref", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("kernels", "lessons", "tests"):  # which must not be packed
        (copy / name).mkdir()
        (copy / name / "__init__.py").touch()
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    done = processes.run([sys.executable, "-c", build, copy], cwd=copy)
    assert done.returncode == 0, done.stderr
    return copy / done.stdout.splitlines()[-1]


def test_the_wheel_holds_fusedref_alone(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "fusedref").rglob("*") if path.is_file()}
    assert held == {name for name in there if "__pycache__" not in name}


def test_the_package_works_without_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = (
        "import sys, fusedref; from fusedref.validation import random_inputs\n"
        "print(fusedref.__file__)\n"
        "assert not {'pycuda', 'kernels', 'lessons'} & set(sys.modules)\n"
        "problem = fusedref.Problem(1, 2, 3, 6, 7, 3)\n"
        "print(fusedref.validate(fusedref.fused_conv_bn_scale, problem, device='cpu').ok)\n"
    )
    printed = processes.python(program, cwd=tmp_path, PYTHONPATH=tmp_path, FUSEDREF_DEVICE="emulator")
    assert printed.split() == [str(tmp_path / "fusedref" / "__init__.py"), "True"]


def test_a_broken_nvidia_smi_makes_no_gpu(tmp_path):
    """The driver library decides, whatever a program of that name says."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA Something'\n")
    smi.chmod(0o755)
    assert gpu_seen(tmp_path, {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}, None) == "None"


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++, which builds the stand-in for the driver, is not on PATH")
@pytest.mark.parametrize(("status", "count", "seen"), [(0, 1, True), (0, 0, False), (100, 1, False)])
def test_the_driver_says_whether_there_is_a_gpu(tmp_path, status, count, seen):
    driver = f'extern "C" int cuInit(unsigned) {{ return {status}; }}\n'
    driver += f'extern "C" int cuDeviceGetCount(int* count) {{ *count = {count}; return 0; }}\n'
    assert gpu_seen(tmp_path, {}, driver) == (str(tmp_path / "libcuda.so.1") if seen else "None")


def gpu_seen(folder, environment, driver):
    """Return what driver() prints if libcuda.so.1 is built from `driver`, or is not a library if that is None."""
    library = folder / "libcuda.so.1"
    if driver is None:
        library.write_text("no library")
    else:
        (folder / "driver.cpp").write_text(driver)
        processes.run(["g++", "-shared", "-fPIC", "-o", library, folder / "driver.cpp"], check=True)
    program = "import setup_environment; print(setup_environment.driver())"
    return processes.python(program, **environment, LD_LIBRARY_PATH=folder, PYTHONPATH=ROOT / "tools").strip()


def test_a_toolkit_counts_only_with_all_that_pycuda_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for part in ("bin/nvcc", "include/cudaProfiler.h", "include/curand.h"):
        assert setup_environment.toolkit() != tmp_path
        (tmp_path / part).parent.mkdir(exist_ok=True)
        (tmp_path / part).touch()
    assert setup_environment.toolkit() == tmp_path


def test_virtualenv_stands_in_for_venv(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$2" = virtualenv ] && exec {sys.executable} -m venv --without-pip "$3"\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(setup_environment.sys, "executable", str(python))
    made = setup_environment.create_environment(tmp_path / "environment")
    assert processes.run([made, "-c", ""]).returncode == 0


def test_a_python_that_can_make_no_environment_is_told_what_to_install(tmp_path, monkeypatch):
    python = tmp_path / "python"  # as on Debian without python3-venv
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(setup_environment.sys, "executable", str(python))
    with pytest.raises(SystemExit, match="-venv") as end:
        setup_environment.create_environment(tmp_path / "environment")
    assert "virtualenv" in str(end.value)
    assert not (tmp_path / "environment").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_refuses_an_old_python(tmp_path):
    command = ["make", "test", "PYTHON=false", f"VENV={tmp_path / 'environment'}"]
    done = processes.run(command, cwd=ROOT)
    assert done.returncode != 0
    assert "Python 3.10 or newer is needed" in done.stdout


def test_the_example_of_the_readme_runs():
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(example, names)
    assert names["y"].shape == (2, 64, 30, 30)


def test_public_names_are_imported_when_used():
    program = (
        "import sys, fusedref, fusedref.emulator\n"
        "assert 'torch' not in sys.modules\n"
        "assert set(fusedref.__all__) <= set(dir(fusedref))\n"
        "from fusedref import *\n"
        "print([name for name in fusedref.__all__ if globals()[name] is not getattr(fusedref, name)])\n"
        "print(hasattr(fusedref, 'nothing'))\n"
    )
    assert processes.python(program).split() == ["[]", "False"]
