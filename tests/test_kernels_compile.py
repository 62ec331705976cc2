"""Every kernel compiles, without a warning, for every architecture of today. Needs nvcc, not a GPU."""

import shutil
import subprocess

import pytest

from fusedref import fused
from fusedref.problem import SMALL_73
from kernels.ladder import KERNELS, LADDER, Tiled

ARCHITECTURES = [75, 80, 86, 89, 90, 100, 120]
TILED = {rung.candidate.file for rung in LADDER if isinstance(rung.candidate, Tiled)}  # their own tests compile these
FILES = sorted(path for path in [*KERNELS.glob("*.cu"), *fused.KERNELS.glob("*.cu")] if path.stem not in TILED)

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")


def compile_for_all(path, folder):
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in ARCHITECTURES]
    macros = [f"-D{name}={value}" for name, value in fused.plan(SMALL_73).macros] if "folded" in path.name else []
    options = ["-fatbin", "-std=c++17", "--Werror=all-warnings", f"-I{fused.KERNELS}", *targets, *macros]
    command = ["nvcc", *options, "-o", str(folder / "kernel.fatbin"), str(path)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_compiles(path, tmp_path):
    done = compile_for_all(path, tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_kernel_for_newer_architectures_alone_is_refused(tmp_path):
    source = tmp_path / "newer.cu"
    source.write_text('#include "ptx.cuh"\n__global__ void f() { asm("griddepcontrol.wait;"); }\n')
    done = compile_for_all(source, tmp_path)
    assert done.returncode != 0 and "sm_90" in done.stderr
