"""depthwise.cu and depthwise_last.cu: a filter for each channel, in both layouts."""

import dataclasses

import pytest
import torch

from fusedref import Problem, plan
from fusedref.csrc import INFERENCE
from fusedref.ops.runner import run_plan, target_of
from fusedref.plans import KernelVariant, depthwise_plan
from fusedref.plans.depthwise import unserved_by_depthwise
from fusedref.reference import oracle
from fusedref.target import EMULATED
from fusedref.validation import compare, random_inputs
from tests import nvcc, whole_numbers
from tests.sources import inlined


def depthwise(batch, channels, height, width, kernel, **options):
    return Problem(batch, channels, channels, height, width, kernel, groups=channels, **options)


SMALL = depthwise(2, 6, 9, 8, 3, padding=1)
PROBLEMS = {
    "whole planes": SMALL,
    "planes that no block divides": depthwise(3, 13, 7, 7, 3, padding=1),
    "rows of a plane": depthwise(1, 2, 70, 64, 3, padding=1),
    "stride": depthwise(2, 3, 11, 12, 5, stride=2, padding=2),
    "uneven sizes": depthwise(2, 4, 8, 9, (2, 3), stride=(1, 3), dilation=(2, 1), padding=(0, 3)),
    "same": depthwise(1, 4, 6, 7, (4, 2), padding="same"),
    "strides beyond the window": depthwise(1, 3, 9, 8, 1, stride=(3, 4)),
    "far padding": depthwise(1, 1, 4, 4, 3, padding=9),
    "large filters": depthwise(1, 2, 9, 10, 9, padding=4),
}
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "channels_last"])


def run(problem, inputs, channels_last=False, chosen=None):
    """Return y; x is channels last if that is asked for."""
    if channels_last:
        inputs = inputs._replace(x=inputs.x.contiguous(memory_format=torch.channels_last))
    variant = KernelVariant(channels_last=channels_last, vectors=inputs.running_var.dtype)
    return run_plan(chosen or depthwise_plan(problem, target_of(inputs.x.device), variant), problem, inputs)


@LAYOUTS
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_kinds_of_problem(device, problem, channels_last):
    assert unserved_by_depthwise(problem, EMULATED, KernelVariant(channels_last=channels_last)) is None
    inputs = random_inputs(problem, 0, device)
    case = compare("", problem, inputs, run(problem, inputs, channels_last))
    assert case.ok, case.reasons


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_rounded_once(device, dtype, channels_last):
    problem = dataclasses.replace(SMALL, dtype=dtype)
    inputs = random_inputs(problem, 0, device, torch.float32)
    case = compare("", problem, inputs, run(problem, inputs, channels_last))
    assert case.ok, case.reasons


@LAYOUTS
def test_exact_on_whole_numbers(device, channels_last):
    inputs = random_inputs(SMALL, 0, device)
    numbers = [torch.randint(-4, 5, t.shape, generator=torch.Generator().manual_seed(1)).to(t) for t in inputs.tensors]
    numbers[4] = whole_numbers.variances(SMALL.out_channels, device)
    inputs = inputs._make((*numbers, 2.0, whole_numbers.EPS))
    assert torch.equal(run(SMALL, inputs, channels_last).double(), oracle(*inputs, **SMALL.conv_options))


@LAYOUTS
def test_vectors_left_out_and_memory_that_is_not_aligned(device, channels_last):
    inputs = random_inputs(SMALL, 0, device)._replace(bias=None, gamma=None, beta=None)
    x = inputs.x.contiguous(memory_format=torch.channels_last) if channels_last else inputs.x
    shifted = torch.as_strided(torch.empty(x.numel() + 1, device=device), x.shape, x.stride(), 1).copy_(x)
    assert shifted.data_ptr() % 16
    expected = run(SMALL, inputs, channels_last)
    assert torch.equal(run(SMALL, inputs._replace(x=shifted), channels_last), expected)
    assert compare("", SMALL, inputs, expected).ok


@LAYOUTS
def test_an_empty_batch(device, channels_last):
    problem = dataclasses.replace(SMALL, batch=0)
    assert run(problem, random_inputs(problem, 0, device), channels_last).shape == problem.output_shape


def test_chosen():
    for architecture in ("sm_75", "sm_80", "sm_90a"):
        chosen = plan(depthwise(32, 40, 20, 20, 5), architecture, 100)
        assert (chosen.kernel, chosen.launches[0].symbol) == ("depthwise", "depthwise")
    chosen = plan(depthwise(32, 40, 20, 20, 5), channels_last=True)
    assert (chosen.kernel, chosen.launches[0].symbol) == ("depthwise", "depthwise_last")


UNROLLED = "depthwise unrolls up to 81 taps, with a stride and a dilation of up to 4"


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (Problem(2, 4, 8, 9, 9, 3, groups=4), "depthwise serves one filter for each channel"),
        (depthwise(2, 4, 20, 20, 10), UNROLLED),
        (depthwise(2, 4, 20, 20, 3, stride=5), UNROLLED),
        (depthwise(1, 1, 2**15, 2**16, 3), "depthwise counts the numbers of an image in 32 bits"),
        (depthwise(1, 1, 5, 3000, 3), "not even a few rows, with what their windows reach, fit into shared memory"),
    ],
)  # fmt: skip
def test_problems_that_it_does_not_serve(problem, reason):
    assert unserved_by_depthwise(problem, EMULATED) == reason
    assert plan(problem).kernel != "depthwise"


BUGS = {
    "a row of zeros is left out": ("depthwise", "(unsigned)row < HEIGHT", "(unsigned)row < HEIGHT - 1"),
    "the right margin is not zero": ("depthwise", "place < LEFT ? place : place + WIDTH", "place"),
    "a plane takes its neighbour's filter": ("depthwise", "IN_CHANNELS) * TAPS", "IN_CHANNELS ^ 1) * TAPS"),
    "the first row of a run is left out": ("depthwise", "to[run * OUT_WIDTH]", "if (run) to[run * OUT_WIDTH]"),
    "the window begins a column too far": ("depthwise_last", "* STRIDE_W - PAD_LEFT;", "* STRIDE_W - PAD_LEFT + 1;"),
    "taps are taken in another order": ("depthwise_last", "* KERNEL_WIDTH + j]", "+ KERNEL_WIDTH * j]"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "right", "wrong"), BUGS.values(), ids=BUGS)
def test_planted_bugs(device, name, right, wrong, tmp_path):
    text = inlined(INFERENCE / f"{name}.cu")
    assert right in text
    (tmp_path / "kernel.cu").write_text(text.replace(right, wrong))
    channels_last = name == "depthwise_last"
    chosen = depthwise_plan(SMALL, target_of(device), KernelVariant(channels_last=channels_last))
    (launch,) = chosen.launches
    launch = dataclasses.replace(launch, source=tmp_path / "kernel.cu")
    inputs = random_inputs(SMALL, 0, device)
    y = run(SMALL, inputs, channels_last, dataclasses.replace(chosen, launches=(launch,)))
    assert not compare("", SMALL, inputs, y).ok


@nvcc.needs_nvcc
@pytest.mark.parametrize(
    ("problem", "channels_last"),
    [
        (depthwise(32, 96, 56, 56, 7, padding=3), False),
        (depthwise(32, 672, 14, 14, 5, padding=2, dtype=torch.float16), True),
    ],
    ids=["7x7", "5x5 float16 channels_last"],
)
def test_no_register_is_spilled(problem, channels_last, tmp_path):
    (launch,) = depthwise_plan(problem, EMULATED, KernelVariant(channels_last=channels_last)).launches
    nvcc.assert_no_spills(nvcc.report(launch.source, tmp_path, "90", launch.options))
