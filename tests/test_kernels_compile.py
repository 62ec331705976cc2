"""Every kernel compiles, without a warning, for every architecture that it is for. Needs nvcc, not a GPU."""

import dataclasses

import pytest
import torch

from fusedref import KERNELBENCH_73, Problem
from fusedref.csrc import INFERENCE
from fusedref.plans import KernelVariant, depthwise_plan, folded_plan, library_plan, pipeline_plan
from fusedref.problem import SMALL_73
from kernels import training
from kernels.ladder import KERNELS, LADDER, Tiled
from tests import nvcc
from tests.sources import inlined

DEPTHWISE = Problem(2, 8, 8, 18, 23, 3, groups=8)
TILED = {rung.candidate.file for rung in LADDER if isinstance(rung.candidate, Tiled)}
OTHERS = TILED | {"implicit_gemm", "wgmma_gemm", "wgmma_gemm_prepare"}  # their own tests compile these
FILES = sorted(path for path in [*KERNELS.glob("*.cu"), *INFERENCE.glob("*.cu")] if path.stem not in OTHERS)
TRAINING = {path.name for path in FILES if path.name[:2] in {f"{rung.number:02d}" for rung in training.TRAINING}}

pytestmark = nvcc.needs_nvcc


def compile_for_all(path, folder, options=None):
    """Compile the kernel for every architecture that it is for, with the sizes of SMALL_73 if it needs any.

    The rungs of training, which are slow to compile, only for the oldest and for an H100.
    """
    plans = {"affine": library_plan, "folded": folded_plan, "pipeline": pipeline_plan} | {
        name: lambda _: depthwise_plan(DEPTHWISE, variant=KernelVariant(channels_last="_last" in path.name))
        for name in ("depthwise", "depthwise_last")
    }
    make_plan = next((plans[name] for name in plans if name in path.name), None)
    if path.name in TRAINING:
        sizes = () if path.name.startswith("11") else training.options(SMALL_73)
        return nvcc.run(path, folder, ["75", "90"], sizes)
    if options is None:
        options = make_plan(SMALL_73).launches[0].options if make_plan else ()
    return nvcc.run(path, folder, ["90a"] if "pipeline" in path.name else nvcc.ARCHITECTURES, options)


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


def test_a_newer_instruction_is_refused(tmp_path):
    source = tmp_path / "newer.cu"
    source.write_text('#include "ptx.cuh"\n__global__ void f() { asm("griddepcontrol.wait;"); }\n')
    done = compile_for_all(source, tmp_path)
    assert done.returncode != 0
    assert "sm_90" in done.stderr


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
def test_the_pipeline_neither_spills_nor_serializes(problem, tmp_path):
    report = pipeline_report(problem, inlined(INFERENCE / "pipeline.cu"), tmp_path)
    nvcc.assert_no_spills(report)
    assert "serialized" not in report


def test_too_many_accumulators_serialize(tmp_path):
    text = inlined(INFERENCE / "pipeline.cu")
    text = text.replace("more_registers<168>", "more_registers<152>")
    assert "serialized" in pipeline_report(KERNELBENCH_73, text, tmp_path)


def pipeline_report(problem, text, folder):
    """Return what ptxas reports of this text of the kernel."""
    source = folder / "pipeline.cu"
    source.write_text(text)
    return nvcc.report(source, folder, "90a", pipeline_plan(problem).launches[0].options)
