import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given

from fusedref import KERNELBENCH_73, Problem
from tests.strategies import fast, options, problems


def test_problem_73():
    assert KERNELBENCH_73.input_shape == (128, 8, 128, 128)
    assert KERNELBENCH_73.weight_shape == (64, 8, 3, 3)
    assert KERNELBENCH_73.output_shape == (128, 64, 126, 126)
    assert KERNELBENCH_73.taps == 72
    assert KERNELBENCH_73.flops == 2 * 72 * 128 * 64 * 126 * 126
    x, weight, vectors, y = 128 * 8 * 128 * 128, 64 * 8 * 9, 5 * 64, 128 * 64 * 126 * 126
    assert KERNELBENCH_73.least_bytes == 4 * (x + weight + vectors + y)
    assert dataclasses.replace(KERNELBENCH_73, dtype=torch.float16).least_bytes == 2 * (x + weight + vectors + y)
    assert dataclasses.replace(KERNELBENCH_73, bias=False).least_bytes == 4 * (x + weight + vectors - 64 + y)


@fast
@given(problems())
def test_output_shape(problem):
    x, weight = torch.empty(problem.input_shape, device="meta"), torch.empty(problem.weight_shape, device="meta")
    assert problem.output_shape == F.conv2d(x, weight, **options(problem)).shape


@fast
@given(problems())
def test_padding(problem):
    """A convolution of the input padded by ``pads`` is the padded convolution: same is asymmetric where torch's is."""
    x, weight = torch.randn(problem.input_shape), torch.randn(problem.weight_shape)
    (top, bottom), (left, right) = problem.pads
    padded = F.pad(x, (left, right, top, bottom))
    plain = F.conv2d(padded, weight, None, problem.strides, 0, problem.dilations, problem.groups)
    torch.testing.assert_close(plain, F.conv2d(x, weight, **options(problem)))


def test_pairs_and_integers():
    short = Problem(1, 2, 2, 9, 9, 3, stride=2, padding=1, dilation=2)
    long = Problem(1, 2, 2, 9, 9, (3, 3), stride=[2, 2], padding=(1, 1), dilation=(2, 2))
    for name in ("kernel", "strides", "pads", "dilations", "output_shape"):
        assert getattr(short, name) == getattr(long, name)
    assert hash(long) == hash(Problem(1, 2, 2, 9, 9, (3, 3), stride=(2, 2), padding=(1, 1), dilation=(2, 2)))


def test_padding_same_of_an_even_kernel():
    assert Problem(1, 1, 1, 5, 5, (2, 5), padding="same").pads == ((0, 1), (2, 2))


GOOD = {"batch": 1, "in_channels": 4, "out_channels": 4, "height": 5, "width": 6, "kernel_size": 3}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"batch": -1}, ValueError, "batch must be at least 0, got -1"),
        ({"in_channels": 0}, ValueError, "in_channels must be at least 1, got 0"),
        ({"height": 2.0}, TypeError, "height must be an integer, got 2.0"),
        ({"width": True}, TypeError, "width must be an integer, got True"),
        ({"kernel_size": (3, 3, 3)}, ValueError, r"kernel_size must be an integer or a pair of them, got \(3, 3, 3\)"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"stride": "two"}, TypeError, "stride must be an integer, got 'two'"),
        ({"dilation": (1, 0)}, ValueError, "dilation must be at least 1, got 0"),
        ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
        ({"padding": "full"}, ValueError, "padding must be an integer, a pair of them, 'same' or 'valid', got 'full'"),
        ({"padding": "same", "stride": 2}, ValueError, "padding='same' needs stride 1, got stride=2"),
        ({"groups": 3}, ValueError, r"in_channels must be a multiple of groups \(3\), got 4"),
        ({"groups": 4, "out_channels": 6}, ValueError, r"out_channels must be a multiple of groups \(4\), got 6"),
        ({"kernel_size": (6, 3)}, ValueError, "a kernel of 6 x 3 .* spans 6 x 3, the padded input is 5 x 6"),
        ({"dilation": 3, "padding": (0, 1)}, ValueError, "dilation 3 x 3 spans 7 x 7, the padded input is 5 x 8"),
        ({"padding": [[1], 1]}, TypeError, r"padding must be an integer, got \[1\]"),
        ({"bias": "no"}, TypeError, "bias must be True or False, got 'no'"),
        ({"dtype": torch.int32}, TypeError, "dtype must be .*bfloat16, got torch.int32"),
        ({"dtype": "float32"}, TypeError, "dtype must be .*bfloat16, got 'float32'"),
    ],
)
def test_wrong_sizes(change, error, words):
    with pytest.raises(error, match=words):
        Problem(**{**GOOD, **change})
