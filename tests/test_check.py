"""`make check` finds faults of every kind that it checks for."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from tests import processes

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("check", ROOT / "tools" / "check.py")
check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)

CONFIGURATION = ("pyproject.toml", ".clang-format", "tools/check.py")


def run_check(root, *names):
    """Run tools/check.py of a copy of the repository."""
    command = [sys.executable, root / "tools" / "check.py", *names]
    return processes.run(command, env=dict(os.environ))  # without this checkout on PYTHONPATH


@pytest.fixture
def small(tmp_path):
    """Return a tree with the repository's configuration and nothing else in its packages."""
    for name in CONFIGURATION:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for package in ("fusedref", "kernels", "lessons", "tests"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f'"""The package {package}."""\n')
    return tmp_path


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("ruff", "tests/planted.py", "import os\n", "F401"),
        ("ruff", "tests/planted.py", "y = [a for a, b in zip([1], [2])]\n", "B905"),
        ("ruff", "kernels/planted.py", '"""Planted."""\n\n\ndef public():\n    return 1\n', "D103"),
        ("ruff", "kernels/planted.py", '"""Planted."""\n\n\ndef f():\n    """Returns one."""\n    return 1\n', "D401"),
        ("ruff-format", "tests/planted.py", "x  =  1\n", "--> tests/planted.py"),
        ("clang-format", "kernels/planted.cu", "__global__  void f( ) { }\n", "kernels/planted.cu:1"),
        ("clang-format", "fusedref/csrc/planted.cuh", "inline int  f() { return 1; }\n", "fusedref/csrc/planted.cuh:1"),
        ("mypy", "fusedref/planted.py", "def f(x):\n    return x\n", "[no-untyped-def]"),
        ("mypy", "kernels/planted.py", "x: int = 'text'\n", "[assignment]"),
    ],
)
def test_planted_fault_is_found(small, name, file, text, message):
    assert run_check(small, name).returncode == 0
    (small / file).parent.mkdir(exist_ok=True)
    (small / file).write_text(text)
    done = run_check(small, name)
    assert done.returncode == 1
    assert message in done.stdout + done.stderr
    assert f"1 of 1 failed: {name}" in done.stderr


@pytest.fixture
def tree(tmp_path):
    """Return a copy of the repository's Python files."""
    for name in CONFIGURATION:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for package in ("fusedref", "kernels", "lessons", "tests"):
        for path in (ROOT / package).rglob("*.py"):
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("lessons/planted.py", "import tests.strategies"),
        ("kernels/ladder.py", "import lessons.workbench"),
        ("fusedref/emulator/runtime.py", "import kernels.ladder"),
        ("fusedref/validation/planted.py", "import fusedref.ops"),
        ("fusedref/ops/planted.py", "import fusedref.validation"),
        ("fusedref/ops/planted.py", "import fusedref.module"),
        ("fusedref/module.py", "import fusedref.bench"),
        ("fusedref/plans/planted.py", "import fusedref.cuda"),
        ("fusedref/cuda/planted.py", "import fusedref.plans"),
        ("fusedref/problem.py", "import fusedref.parameters"),
        ("fusedref/emulator/runtime.py", "import fusedref.problem"),
        ("fusedref/cache.py", "import fusedref.emulator"),
        ("fusedref/ops/planted.py", "from fusedref import Problem"),
        ("fusedref/emulator/compile/planted.py", "import fusedref.emulator.runtime"),
        ("fusedref/emulator/image.py", "import fusedref.emulator.watching"),
        ("fusedref/emulator/watching/planted.py", "import fusedref.emulator.pycuda"),
        ("fusedref/emulator/findings.py", "import fusedref.emulator.compile"),
    ],
)
def test_planted_import_is_refused(tree, file, line):
    with (tree / file).open("a") as text:
        text.write(f"\n{line}\n")
    done = run_check(tree, "import-linter")
    assert done.returncode == 1
    module = file.removesuffix(".py").replace("/", ".")
    assert f"- {module} -> {line.split()[1]} (" in done.stdout


@pytest.mark.parametrize("file", ["fusedref/planted.py", "fusedref/emulator/planted.py"])
def test_module_without_a_layer_is_refused(tree, file):
    (tree / file).touch()
    done = run_check(tree, "import-linter")
    assert done.returncode == 1
    assert f"- {file.removesuffix('.py').replace('/', '.')}" in done.stdout


def test_the_imports_of_the_repository_pass(tree):
    assert run_check(tree, "import-linter").returncode == 0


def test_every_check_runs_after_one_has_failed(small):
    (small / "tests" / "planted.py").write_text("import  os\n")
    done = run_check(small, "ruff", "ruff-format")
    assert done.returncode == 1
    assert "F401" in done.stdout
    assert "--> tests/planted.py" in done.stdout
    assert "failed: ruff, ruff-format" in done.stderr


def test_fix_formats(small):
    planted = small / "tests" / "planted.py", small / "kernels" / "planted.cu"
    planted[0].write_text("import os\nx  =  1\n")
    planted[1].write_text("__global__  void f( ) { }\n")
    assert run_check(small, "--fix").returncode == 0
    assert planted[0].read_text() == "x = 1\n"
    assert run_check(small, "clang-format", "ruff", "ruff-format").returncode == 0


def test_missing_tool_is_named(small, monkeypatch, capsys):
    monkeypatch.setattr(check.sysconfig, "get_path", lambda _: str(small))
    assert not check.run("mypy", ["mypy"])
    assert f"{small / 'mypy'} is missing" in capsys.readouterr().out


def test_unknown_check_is_refused(small):
    done = run_check(small, "flake8")
    assert done.returncode == 2
    assert "there is no check flake8; there are ruff, " in done.stderr


def test_pre_commit_runs_the_same_checks():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == [
        f".venv/bin/python tools/check.py {name}" for name in check.checks()
    ]


@pytest.mark.parametrize(("failing", "status"), [("neither", 0), ("check", 1), ("test", 1)])
def test_ci_checks_then_tests(tmp_path, failing, status):
    make = tmp_path / "make"
    make.write_text(f'#!/bin/sh\necho "make $1"\n[ "$1" != {failing} ]\n')
    make.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = processes.run([ROOT / ".ci" / "run"], env=environment)
    assert done.stdout == "make check\nmake test\n"
    assert done.returncode == status
