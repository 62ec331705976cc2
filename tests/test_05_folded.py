"""Rung 05: BatchNorm and scale as one multiply-add per channel, in the kernel or in the weights of a convolution."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from fusedref import KERNELBENCH_73, validate
from fusedref.cuda.compile import source_module
from fusedref.cuda.launch import Out, launch
from fusedref.plans import folded_plan
from fusedref.problem import SMALL_73
from fusedref.reference import oracle
from fusedref.validation import random_inputs
from kernels import ladder
from tests.whole_numbers import SIZES, inputs

FOLDED, FOLDED_WEIGHTS = ladder.LADDER[6], ladder.LADDER[7]
BOTH = pytest.mark.parametrize("rung", [FOLDED, FOLDED_WEIGHTS], ids=lambda rung: rung.name)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1, 1), (3, 2, 3, 11, 7, 3), (2, 3, 2, 33, 18, 2)])
@BOTH
def test_is_the_operator(device, rung, sizes):
    arguments = inputs(*sizes, device=device)
    assert rung.candidate(*arguments).equal(oracle(*arguments).float())


@given(SIZES)
@settings(max_examples=20, deadline=None)
def test_the_folded_weights_are_the_operator(device, sizes):
    arguments = inputs(*sizes, device=device)
    assert FOLDED_WEIGHTS.candidate(*arguments).equal(oracle(*arguments).float())


@BOTH
def test_the_rung_validates(device, rung):
    report = validate(rung.candidate, SMALL_73, device=device)
    assert report.ok, str(report)


def test_the_rung_is_the_kernel_of_the_package(device):
    given = random_inputs(SMALL_73, seed=1, device=device)
    (planned,) = folded_plan(SMALL_73).launches
    function = source_module(ladder.KERNELS / "05_folded.cu", planned.options, device).get_function(planned.symbol)
    y = torch.empty(SMALL_73.output_shape, device=device)
    numbers = np.float32(given.scaling_factor), np.float32(given.eps)
    launch(function, *given[:7], *numbers, Out(y), np.int64(SMALL_73.batch), grid=planned.grid, block=planned.block)
    assert y.equal(FOLDED.candidate(*given))


@pytest.mark.gpu
def test_every_rung_at_problem_73(device):
    for rung in ladder.LADDER:
        if rung.fits(KERNELBENCH_73):
            report = validate(rung.candidate, KERNELBENCH_73, precision=rung.precision, device=device)
            limit = {"fp32": 2e-7, "tf32": 4e-4}[rung.precision]
            assert report.ok, f"{rung.title}: {report}"
            assert report.relative_l2 <= limit, f"{rung.title}: {report}"
