"""Every kernel compiles, without a warning, for every architecture that it is for. Needs nvcc, not a GPU."""

import dataclasses
import shutil
import subprocess

import pytest
import torch

from fusedref import KERNELBENCH_73, Problem
from fusedref.cuda.compile import HEADERS, NVCC_OPTIONS
from fusedref.plans import KernelVariant, folded_plan, pipeline_plan
from fusedref.problem import SMALL_73
from kernels.ladder import KERNELS, LADDER, Tiled

ARCHITECTURES = [75, 80, 86, 89, 90, 100, 120]
TILED = {rung.candidate.file for rung in LADDER if isinstance(rung.candidate, Tiled)}
OTHERS = TILED | {"implicit_gemm"}  # their own tests compile these
FILES = sorted(path for path in [*KERNELS.glob("*.cu"), *HEADERS.glob("*.cu")] if path.stem not in OTHERS)

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")


def compile_for_all(path, folder, options=None):
    wgmma = "pipeline" in path.name
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in (["90a"] if wgmma else ARCHITECTURES)]
    plans = {"folded": folded_plan, "pipeline": pipeline_plan}
    make_plan = next((plans[name] for name in plans if name in path.name), None)
    if options is None:
        options = make_plan(SMALL_73).launches[0].options if make_plan else ()
    options = ["-fatbin", "-std=c++17", "--Werror=all-warnings", f"-I{HEADERS}", *targets, *options]
    command = ["nvcc", *options, "-o", str(folder / "kernel.fatbin"), str(path)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_compiles(path, tmp_path):
    done = compile_for_all(path, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("dtype", "variant"),
    [
        (torch.float16, KernelVariant(channels_last=True)),
        (torch.bfloat16, KernelVariant(vectors=torch.float32)),
    ],
    ids=["float16 channels_last", "bfloat16 beside float32"],
)
def test_the_general_kernel_compiles_for_halves(dtype, variant, tmp_path):
    (launch,) = folded_plan(dataclasses.replace(SMALL_73, dtype=dtype), variant).launches
    done = compile_for_all(launch.source, tmp_path, launch.options)
    assert done.returncode == 0, done.stderr


def test_a_kernel_for_newer_architectures_alone_is_refused(tmp_path):
    source = tmp_path / "newer.cu"
    source.write_text('#include "ptx.cuh"\n__global__ void f() { asm("griddepcontrol.wait;"); }\n')
    done = compile_for_all(source, tmp_path)
    assert done.returncode != 0 and "sm_90" in done.stderr


@pytest.mark.parametrize(
    "problem",
    [
        KERNELBENCH_73,
        SMALL_73,
        Problem(8, 8, 100, 61, 400, 3, padding=1),
        Problem(8, 6, 64, 20, 30, (1, 9)),
        Problem(8, 8, 64, 32, 32, 3, dilation=3),
    ],
    ids=str,
)
def test_the_pipeline_neither_spills_nor_waits_for_each_product(problem, tmp_path):
    said = pipeline_report(problem, (HEADERS / "pipeline.cu").read_text(), tmp_path)
    assert "0 bytes spill stores, 0 bytes spill loads" in said
    assert "serialized" not in said


def test_a_pipeline_with_too_many_accumulators_would_wait(tmp_path):
    text = (HEADERS / "pipeline.cu").read_text()
    text = text.replace("more_registers<168>", "more_registers<152>")
    assert "serialized" in pipeline_report(KERNELBENCH_73, text, tmp_path)


def pipeline_report(problem, text, folder):
    """What ptxas says of the kernel."""
    source = folder / "pipeline.cu"
    source.write_text(text)
    macros = pipeline_plan(problem).launches[0].options
    options = ["-cubin", "-arch=sm_90a", *NVCC_OPTIONS, f"-I{HEADERS}", "-Xptxas", "-v", *macros]
    done = subprocess.run(
        ["nvcc", *options, "-o", str(folder / "kernel.cubin"), str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stderr
