"""What compute-sanitizer watches: `python tests/sanitized.py rungs`, or a tool's name for the bug that it must find."""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

import fusedref
from fusedref.cuda import SourceModule, drv
from fusedref.ops.runner import run_plan, target_of
from fusedref.plans.candidates import candidate_plans
from fusedref.plans.variant import KernelVariant
from fusedref.validation import random_inputs
from kernels import ladder, training

PLANTED = {
    "memcheck": 'extern "C" __global__ void bug(float* y) { y[threadIdx.x + 1] = 1.0f; }',
    "racecheck": 'extern "C" __global__ void bug(float* y)'
    "{ __shared__ float s[64]; s[threadIdx.x] = y[threadIdx.x]; y[threadIdx.x] = s[63 - threadIdx.x]; }",
    "initcheck": 'extern "C" __global__ void bug(float* y) { y[threadIdx.x] += 1.0f; }',
}


def rungs() -> None:
    """Run every kernel of the ladder, on sizes that are not multiples of a block."""
    inputs = random_inputs(fusedref.Problem(2, 3, 5, 19, 23, 3), 0, "cuda")
    x, weight, bias, mean, var, gamma, beta, factor, eps = inputs
    convolved = ladder.conv2d(x, weight, bias)
    normalised = ladder.batch_norm(convolved, mean, var, gamma, beta, eps)
    ladder.scale(normalised, factor)
    ladder.bn_scale(convolved, mean, var, gamma, beta, factor, eps)
    ladder.fused(*inputs)
    ladder.fused_block(*inputs)
    for rung in ladder.LADDER:
        if isinstance(rung.candidate, ladder.Tiled):
            rung.candidate(*inputs)
    given = training.Training(*inputs)
    for rung in training.TRAINING:
        if rung.mode == "train":
            rung.candidate(*given)
    training.forward_and_backward(convolved, given)
    fusedref.fused_conv_bn_scale(*inputs)
    spread = random_inputs(fusedref.Problem(3, 8, 70, 19, 23, 3), 0, "cuda")  # for the pipeline, on cards with wgmma
    fusedref.fused_conv_bn_scale(*spread)
    spread.x[1, 2, 3, 4] = 1e30  # a tile that it computes plainly
    fusedref.fused_conv_bn_scale(*spread)
    fusedref.fused_conv_bn_scale(*spread, precision="tf32")
    for dtype in (torch.float16, torch.bfloat16):
        fusedref.fused_conv_bn_scale(*random_inputs(fusedref.Problem(3, 8, 70, 19, 43, 3, dtype=dtype), 0, "cuda"))
    options = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}
    fusedref.fused_conv_bn_scale(
        *random_inputs(fusedref.Problem(3, 4, 6, 17, 21, (3, 5), **options), 0, "cuda"), **options
    )
    for options in ({}, {"padding": 1, "stride": 2}):  # for wgmma_gemm, on cards with wgmma
        problem = fusedref.Problem(3, 40, 72, 9, 11, 3, **options)
        given = random_inputs(problem, 0, "cuda")
        given.x[1, 2, 3, 4] = math.inf  # sums that it computes plainly
        for _, chosen in candidate_plans(problem, target_of(given.x.device), KernelVariant()):
            if chosen.kernel == "wgmma_gemm":
                run_plan(chosen, problem, given)
    for dtype in (torch.float32, torch.float16):  # for implicit_gemm
        options = {"stride": (1, 2), "padding": (1, 2), "dilation": (2, 1), "groups": 2}
        problem = fusedref.Problem(3, 38, 20, 17, 22, 3, dtype=dtype, **options)
        inputs = random_inputs(problem, 0, "cuda")
        fusedref.fused_conv_bn_scale(*inputs, **options)
        last = inputs._replace(x=inputs.x.contiguous(memory_format=torch.channels_last))
        fusedref.fused_conv_bn_scale(*last, **options)
        inputs.x[1, 2, 3, 4] = math.inf  # sums that it computes plainly
        fusedref.fused_conv_bn_scale(*inputs, **options)


def bug(tool: str) -> None:
    """Run a kernel with an error of the kind that ``tool`` must find."""
    kernel = SourceModule(PLANTED[tool], no_extern_c=True).get_function("bug")
    y = drv.mem_alloc(64 * 4)
    if tool != "initcheck":
        drv.memcpy_htod(y, np.zeros(64, np.float32))
    kernel(y, block=(64, 1, 1), grid=(1, 1))


if __name__ == "__main__":
    rungs() if sys.argv[1] == "rungs" else bug(sys.argv[1])
    torch.cuda.synchronize()
    drv.Context.synchronize()
