"""plan: the kernel, its launch and its limiter; the registers, compared with the compiler's."""

import dataclasses
from pathlib import Path

import pytest
import torch

from fusedref import KERNELBENCH_73, Problem, plan
from fusedref.plans import KernelVariant, folded_plan, own_plan_for, pipeline_plan, predict
from fusedref.problem import SMALL_73
from fusedref.target import EMULATED
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
def test_predicted_times(problem, variant, unit, expected):
    assert rounded(predict(problem, variant, unit)) == expected


H200, H100, A100, RTX_3090, T4 = ("sm_90a", 132), ("sm_90a", 114), ("sm_80", 108), ("sm_86", 84), ("sm_75", 40)
STRIDED = Problem(16, 32, 128, 28, 28, 5, stride=2, padding=2, groups=2, dtype=torch.bfloat16)
DILATED = Problem(8, 6, 100, 61, 400, 3, dilation=2, padding=1, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("problem", "gpu", "kernel", "tile", "shared", "grid", "threads", "limiter"),
    [
        (KERNELBENCH_73, H200, "pipeline", (64, 2, 126), 183680, (132, 1, 1), 512, "memory"),
        (HALF_73, H200, "pipeline", (64, 4, 126), 178304, (132, 1, 1), 512, "memory"),
        (SMALL_73, H200, "pipeline", (64, 8, 21), 115584, (4, 1, 1), 512, "launch"),
        (WIDE, A100, "implicit_gemm", (32, 8, 28), 150288, (2, 54, 1), 256, "tensor cores"),
        (STRIDED, RTX_3090, "implicit_gemm", (32, 14, 14), 72000, (4, 16, 1), 256, "launch"),
        (DILATED, H100, "implicit_gemm", (128, 3, 40), 66064, (1, 114, 1), 512, "memory"),
        (KERNELBENCH_73, T4, "folded", (1, 1, 256), 0, (516096, 1, 1), 256, "CUDA cores"),
    ],
)
def test_known_plans(problem, gpu, kernel, tile, shared, grid, threads, limiter):
    chosen = plan(problem, *gpu)
    (launch,) = chosen.launches
    assert (chosen.kernel, chosen.tile, chosen.limiter) == (kernel, tile, limiter)
    assert (launch.shared, launch.grid, launch.block) == (shared, grid, (threads, 1, 1))
    assert (launch.source.name, launch.symbol) == (f"{kernel}.cu", kernel)


def test_text_of_a_plan():
    assert str(folded_plan(KERNELBENCH_73, reason="because")).splitlines() == [
        "kernel         folded: because",
        "tile           1 x 1 x 256 (channels x rows x columns of y)",
        "launch         516096 blocks of 256 threads",
        "shared memory  0 bytes a block",
        "registers      at most 255 a thread",
        "limiter        CUDA cores, 279.5 us at the least on an H200 (memory 122.4, launch 2.3)",
    ]


def test_text_of_a_plan_with_two_launches():
    chosen = folded_plan(SMALL_73)
    second = dataclasses.replace(chosen.launches[0], grid=(3, 2, 1), shared=64)
    chosen = dataclasses.replace(chosen, launches=(*chosen.launches, second))
    assert str(chosen).splitlines()[2:8] == [
        "launch         256 blocks of 256 threads",
        "shared memory  0 bytes a block",
        "registers      at most 255 a thread",
        "launch         6 blocks of 256 threads",
        "shared memory  64 bytes a block",
        "registers      at most 255 a thread",
    ]


def test_readme_shows_the_plan():
    """``python -m kernels --readme`` puts it there."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"print(fusedref.plan(fusedref.KERNELBENCH_73))\n{plan(KERNELBENCH_73)}\n```" in text


NAME_OF_ONE = "architecture must be nvcc's name of one, such as 'sm_80', got "


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"problem": None}, TypeError, "problem must be a Problem, got NoneType"),
        ({"architecture": None}, TypeError, NAME_OF_ONE + "None"),
        ({"architecture": ["sm_80"]}, TypeError, NAME_OF_ONE + r"\['sm_80'\]"),
        ({"architecture": "ampere"}, ValueError, NAME_OF_ONE + "'ampere'"),
        ({"architecture": "sm_"}, ValueError, NAME_OF_ONE + "'sm_'"),
        ({"multiprocessors": "132"}, TypeError, "multiprocessors must be an integer, got '132'"),
        ({"multiprocessors": 1.5}, TypeError, "multiprocessors must be an integer, got 1.5"),
        ({"multiprocessors": 132.0}, TypeError, "multiprocessors must be an integer, got 132.0"),
        ({"multiprocessors": True}, TypeError, "multiprocessors must be an integer, got True"),
        ({"multiprocessors": 0}, ValueError, "multiprocessors must be at least 1, got 0"),
        ({"multiprocessors": -1}, ValueError, "multiprocessors must be at least 1, got -1"),
        ({"channels_last": 1}, TypeError, "channels_last must be True or False, got 1"),
        ({"precision": "fp16"}, ValueError, "precision must be 'fp32' or 'tf32', got 'fp16'"),
        (
            {"precision": "tf32", "problem": HALF_73},
            ValueError,
            "precision='tf32' is for float32 tensors, got torch.float16",
        ),
        (
            {"vectors": torch.float16},
            ValueError,
            "vectors must be torch.float32 or the problem's torch.float32, got torch.float16",
        ),
        (
            {"vectors": torch.bfloat16, "problem": HALF_73},
            ValueError,
            "vectors must be .* torch.float16, got torch.bfloat16",
        ),
    ],
)
def test_wrong_arguments(arguments, error, words):
    plan(KERNELBENCH_73, "sm_90a", 132)  # in the cache: 132.0 must not find it
    with pytest.raises(error, match=words):
        plan(**{"problem": KERNELBENCH_73, **arguments})


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("vectors", [None, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90a", "sm_120"])
def test_dtypes_and_layout_are_macros(architecture, dtype, vectors, channels_last):
    chosen = plan(
        dataclasses.replace(KERNELBENCH_73, dtype=dtype), architecture, channels_last=channels_last, vectors=vectors
    )
    macros = dict(chosen.launches[0].macros)
    element = [torch.float32, torch.float16, torch.bfloat16].index(dtype)
    assert (macros["ELEMENT"], macros["VECTOR"]) == (element, element if vectors is None else 0)
    assert macros["CHANNELS_LAST"] == int(channels_last)
    assert chosen.variant.channels_last == channels_last


def test_folded_covers_every_output():
    for channels_last, grid in ((False, 2 * 5 * 2), (True, 2 * 8)):  # 17 * 23 = 391 outputs, 5 channels of them 1955
        chosen = folded_plan(Problem(2, 4, 5, 19, 25, 3), KernelVariant(channels_last=channels_last))
        assert chosen.launches[0].grid == (grid, 1, 1)


def fits(chosen, folder, right="", wrong=""):
    """Return whether the compiler needs no more registers than the plan says, and spills none."""
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
def test_registers(chosen, most, tmp_path):
    assert chosen.launches[0].registers == most
    assert fits(chosen, tmp_path)


@nvcc.needs_nvcc
@pytest.mark.parametrize(
    ("problem", "channels_last"),
    [
        (WIDE, False),
        (dataclasses.replace(WIDE, dtype=torch.bfloat16), True),
        (dataclasses.replace(KERNELBENCH_73, in_channels=4, kernel_size=4), False),
    ],
    ids=["float32", "bfloat16 channels_last", "4 channels"],
)
def test_registers_of_implicit_gemm(problem, channels_last, tmp_path):
    chosen = own_plan_for(problem, EMULATED, KernelVariant(channels_last=channels_last))
    assert chosen.kernel == "implicit_gemm"
    assert fits(chosen, tmp_path)


@nvcc.needs_nvcc
def test_register_check_can_fail(tmp_path):
    chosen = folded_plan(KERNELBENCH_73)
    large = dataclasses.replace(chosen.launches[0], block=(1024, 4, 1))  # that would leave 16 registers
    assert not fits(dataclasses.replace(chosen, launches=(large,)), tmp_path)
    assert not fits(chosen, tmp_path, "__launch_bounds__(THREADS)", "__maxnreg__(24)")


def test_sizes_beyond_every_kernel():
    with pytest.raises(ValueError, match=r"must be below 2\*\*31"):
        plan(Problem(1, 1, 1, 2**31, 1, 1))
