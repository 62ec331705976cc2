"""plan: which kernel, launched how, what it should be limited by; that a compiler agrees about registers."""

import dataclasses
from pathlib import Path

import pytest
import torch

from fusedref import KERNELBENCH_73, Problem, plan
from fusedref.plans import KernelVariant, folded_plan, pipeline_plan, predict
from fusedref.problem import SMALL_73
from tests import nvcc
from tests.sources import inlined

WIDE = Problem(32, 64, 64, 56, 56, 3, padding=1)
HALF_73 = dataclasses.replace(KERNELBENCH_73, dtype=torch.float16)
FP32, TF32 = KernelVariant(), KernelVariant("tf32")


def rounded(predicted):
    return {name: round(us, 2) for name, us in predicted.items()}


@pytest.mark.parametrize(
    ("problem", "variant", "unit", "expected"),
    [
        # 587,353,344 bytes at 4.8 TB/s; 2 * 72 * 130,056,192 flops, three times for two pieces, at 989 TFLOP/s
        (KERNELBENCH_73, FP32, "tensor cores", {"memory": 122.37, "tensor cores": 56.81, "launch": 2.3}),
        (KERNELBENCH_73, TF32, "tensor cores", {"memory": 122.37, "tensor cores": 18.94, "launch": 2.3}),
        (HALF_73, FP32, "tensor cores", {"memory": 61.18, "tensor cores": 18.94, "launch": 2.3}),
        (KERNELBENCH_73, FP32, "CUDA cores", {"memory": 122.37, "CUDA cores": 279.52, "launch": 2.3}),
        # tensor cores take 3 input channels for 8
        (
            Problem(128, 3, 64, 128, 128, 3), FP32, "tensor cores",
            {"memory": 113.62, "tensor cores": 56.81, "launch": 2.3},
        ),
    ],
)  # fmt: skip
def test_what_a_resource_needs(problem, variant, unit, expected):
    assert rounded(predict(problem, variant, unit)) == expected


@pytest.mark.parametrize(
    ("chosen", "limiter"),
    [
        (pipeline_plan(KERNELBENCH_73), "memory"),
        (folded_plan(KERNELBENCH_73), "CUDA cores"),
        (pipeline_plan(SMALL_73), "launch"),
    ],
    ids=["pipeline", "folded", "small"],
)
def test_the_limiter_is_what_is_needed_longest(chosen, limiter):
    assert chosen.limiter == limiter and chosen.predicted[limiter] == max(chosen.predicted.values())


def test_a_plan_can_be_read():
    assert str(folded_plan(KERNELBENCH_73, reason="because")).splitlines() == [
        "kernel         folded: because",
        "tile           1 x 1 x 256 (channels x rows x columns of y)",
        "launch         516096 blocks of 256 threads",
        "shared memory  0 bytes a block",
        "registers      at most 255 a thread",
        "limiter        CUDA cores, 279.5 us at the least on an H200 (memory 122.4, launch 2.3)",
    ]


def test_the_readme_shows_the_plan_as_it_is():
    """``python -m kernels --readme`` puts it there."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"print(fusedref.plan(fusedref.KERNELBENCH_73))\n{plan(KERNELBENCH_73)}\n```" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"precision": "fp16"}, "precision must be 'fp32' or 'tf32', got 'fp16'"),
        ({"precision": "tf32", "problem": HALF_73}, "precision='tf32' is for float32 tensors, got torch.float16"),
        ({"vectors": torch.float16}, "vectors must be torch.float32 or the problem's torch.float32, got torch.float16"),
        ({"vectors": torch.bfloat16, "problem": HALF_73}, "vectors must be .* torch.float16, got torch.bfloat16"),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        plan(**{"problem": KERNELBENCH_73, **arguments})


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("vectors", [None, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90a", "sm_120"])
def test_kernels_are_told_types_and_layout(architecture, dtype, vectors, channels_last):
    chosen = plan(
        dataclasses.replace(KERNELBENCH_73, dtype=dtype), architecture, channels_last=channels_last, vectors=vectors
    )
    macros = dict(chosen.launches[0].macros)
    element = [torch.float32, torch.float16, torch.bfloat16].index(dtype)
    assert (macros["ELEMENT"], macros["VECTOR"]) == (element, element if vectors is None else 0)
    assert macros["CHANNELS_LAST"] == int(channels_last) and chosen.variant.channels_last == channels_last


def test_a_general_plan_covers_every_output():
    for channels_last, grid in ((False, 2 * 5 * 2), (True, 2 * 8)):  # 17 * 23 = 391 outputs, 5 channels of them 1955
        chosen = folded_plan(Problem(2, 4, 5, 19, 25, 3), KernelVariant(channels_last=channels_last))
        assert chosen.launches[0].grid == (grid, 1, 1)


def fits(chosen, folder, right="", wrong=""):
    """Whether the compiler needs no more registers than the plan says, and spills none."""
    (launch,) = chosen.launches
    source = launch.source
    if right:
        text = inlined(source)
        assert right in text
        source = folder / "kernel.cu"
        source.write_text(text.replace(right, wrong))
    report = nvcc.report(source, folder, "90a", launch.options)
    return nvcc.registers(report) <= launch.registers and "0 bytes spill stores, 0 bytes spill loads" in report


@nvcc.needs_nvcc
@pytest.mark.parametrize(
    ("chosen", "most"),
    [
        (pipeline_plan(KERNELBENCH_73), 128),
        (folded_plan(KERNELBENCH_73), 255),
        (folded_plan(HALF_73, KernelVariant(channels_last=True)), 255),
        (folded_plan(dataclasses.replace(HALF_73, dtype=torch.bfloat16)), 255),
    ],
    ids=["pipeline", "folded", "float16 channels_last", "bfloat16"],
)
def test_the_compiler_keeps_to_the_registers(chosen, most, tmp_path):
    assert chosen.launches[0].registers == most
    assert fits(chosen, tmp_path)


@nvcc.needs_nvcc
@pytest.mark.parametrize(
    ("problem", "channels_last"),
    [
        (WIDE, False),
        (dataclasses.replace(WIDE, dtype=torch.bfloat16), True),
        (dataclasses.replace(KERNELBENCH_73, in_channels=4), False),
    ],
    ids=["float32", "bfloat16 channels_last", "4 channels"],
)
def test_the_compiler_keeps_to_the_registers_of_implicit_gemm(problem, channels_last, tmp_path):
    chosen = plan(problem, channels_last=channels_last)
    assert chosen.kernel == "implicit_gemm" and fits(chosen, tmp_path)


@nvcc.needs_nvcc
def test_too_many_registers_and_spills_show(tmp_path):
    chosen = folded_plan(KERNELBENCH_73)
    large = dataclasses.replace(chosen.launches[0], block=(1024, 4, 1))  # that would leave 16 registers
    assert not fits(dataclasses.replace(chosen, launches=(large,)), tmp_path)
    assert not fits(chosen, tmp_path, "__launch_bounds__(THREADS)", "__maxnreg__(24)")


def test_no_plan_for_what_no_kernel_counts():
    with pytest.raises(ValueError, match=r"must be below 2\*\*31"):
        plan(Problem(1, 1, 1, 2**31, 1, 1))
