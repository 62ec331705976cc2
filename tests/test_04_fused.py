"""Rung 04: the whole operator in one kernel, a thread per output or a block per image and channel."""

import pytest
from hypothesis import given, settings

from fusedref import validate
from fusedref.cuda import drv
from fusedref.problem import SMALL_73
from fusedref.reference import oracle
from kernels import ladder
from tests.whole_numbers import SIZES, inputs

FUSED, FUSED_BLOCK = ladder.LADDER[4], ladder.LADDER[5]
BOTH = pytest.mark.parametrize("rung", [FUSED, FUSED_BLOCK], ids=lambda rung: rung.name)


@BOTH
@given(SIZES)
@settings(max_examples=20, deadline=None)
def test_is_the_operator(device, rung, sizes):
    arguments = inputs(*sizes, device=device)
    assert rung.candidate(*arguments).equal(oracle(*arguments).float())


@BOTH
def test_without_bias_gamma_and_beta(device, rung):
    x, weight, _, mean, var, _, _, scaling_factor, eps = inputs(2, 3, 4, 7, 6, 3, device=device)
    arguments = x, weight, None, mean, var, None, None, scaling_factor, eps
    assert rung.candidate(*arguments).equal(oracle(*arguments).float())


@BOTH
def test_the_rung_validates(device, rung):
    report = validate(rung.candidate, SMALL_73, device=device)
    assert report.ok, str(report)


def test_a_block_of_1024_threads_is_the_largest(device):
    arguments = inputs(1, 1, 2, 32, 32, 1, device=device)
    assert FUSED_BLOCK.candidate(*arguments).equal(oracle(*arguments).float())
    with pytest.raises(drv.Error):
        FUSED_BLOCK.candidate(*inputs(1, 1, 2, 25, 41, 1, device=device))  # 1025 threads


def test_a_plane_of_problem_73_does_not_launch(device):
    with pytest.raises(drv.Error):
        FUSED_BLOCK.candidate(*inputs(1, 1, 1, 128, 128, 3, device=device))


@pytest.mark.parametrize(
    ("rung", "right", "wrong"),
    [
        (FUSED, "float sum = bias[channel];", "float sum = 0.0f;"),
        (FUSED, "- running_mean[channel]", "+ running_mean[channel]"),
        (FUSED, "+ beta[channel]) * scaling_factor", ") * scaling_factor + beta[channel]"),
        (FUSED, "output % out_width;", "output % out_height;"),
        (FUSED, "in_channel < in_channels", "in_channel < in_channels - 1"),
        (FUSED_BLOCK, "channel = blockIdx.x", "channel = blockIdx.y"),
        (FUSED_BLOCK, "* blockDim.y + row) * blockDim.x + column", "* blockDim.x + column) * blockDim.y + row"),
    ],
)
def test_a_planted_bug_is_refused(device, plant, rung, right, wrong):
    plant("04_fused.cu", right, wrong)
    assert not validate(rung.candidate, SMALL_73, device=device).ok
