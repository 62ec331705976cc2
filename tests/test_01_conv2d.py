"""Rung 01: the convolution, one thread per output."""

import pytest
import torch.nn.functional as F
from hypothesis import given, settings

from fusedref import validate
from fusedref.problem import SMALL_73
from kernels import ladder
from tests.whole_numbers import SIZES, inputs, whole


@given(SIZES)
@settings(max_examples=20, deadline=None)
def test_is_the_convolution(device, sizes):
    x, weight, bias, *_ = inputs(*sizes, device=device)
    assert ladder.conv2d(x, weight, bias).equal(F.conv2d(x, weight, bias))


def test_without_bias(device):
    x, weight = whole(2, 3, 9, 7, device=device), whole(4, 3, 3, 3, device=device)
    assert ladder.conv2d(x, weight, None).equal(F.conv2d(x, weight))


def test_an_output_count_that_fills_its_blocks_exactly(device):
    x, weight = whole(1, 1, 16, 16, device=device), whole(1, 1, 1, 1, device=device)
    assert ladder.conv2d(x, weight, None).equal(F.conv2d(x, weight))


def test_the_rung_validates(device):
    report = validate(ladder.LADDER[0].candidate, SMALL_73, device=device)
    assert report.ok, str(report)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("float sum = bias[channel];", "float sum = 0.0f;"),
        ("output % out_width;", "output % out_height;"),
        ("/ (out_width * out_height) % out_channels", "/ (out_width * out_height + 1) % out_channels"),
        ("* width + column + j]", "* height + column + j]"),
        ("j < kernel_size", "j < kernel_size - 1"),
        ("in_channel = 0;", "in_channel = 1;"),
        ("* kernel_size + i) * kernel_size + j]", "* kernel_size + j) * kernel_size + i]"),
        ("y[output] = sum;", "if (output) y[output] = sum;"),
    ],
)
def test_a_planted_bug_is_refused(device, plant, right, wrong):
    plant("01_conv2d.cu", right, wrong)
    assert not validate(ladder.LADDER[0].candidate, SMALL_73, device=device).ok
