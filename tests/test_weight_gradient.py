"""weight_gradient.cu: its shapes, ranges and plans, and planted bugs that must show."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from fusedref import Problem
from fusedref.csrc import TRAINING
from fusedref.emulator import driver, watch
from fusedref.ops.general_training import GeneralTraining
from fusedref.plans import KernelVariant
from fusedref.plans.depthwise_gradient import depthwise_gradient_plan
from fusedref.plans.weight_gradient import (
    best_weight_tile,
    unserved_by_weight_gradient,
    weight_gradient_plan,
    weight_tiles,
)
from fusedref.target import EMULATED, Target
from tests import nvcc
from tests.cases import library_in_float32  # noqa: F401  # for every test here
from tests.nvcc import assert_no_spills, needs_nvcc
from tests.sources import inlined
from tests.tensor_cores import spread
from tests.tiles import needs_emulator

SOURCE = TRAINING / "weight_gradient.cu"
SMALL = Problem(2, 12, 20, 9, 11, 3, padding=1)  # tiles, slices and channels that are not full
SHAPES = {
    "tiles that are not full": SMALL,
    "ranges of taps, stride 2": Problem(2, 3, 33, 13, 14, 7, padding=3, stride=2),
    "single pixels": Problem(2, 40, 16, 5, 7, 1),
    "groups and dilation": Problem(2, 16, 24, 9, 8, (2, 5), groups=2, dilation=(2, 1), padding=(0, 2)),
    "one pixel": Problem(1, 8, 8, 2, 2, 2),
    "depthwise": Problem(3, 5, 5, 12, 11, 3, padding=1, groups=5),
    "depthwise, several channels, stride and dilation":
        Problem(2, 3, 6, 15, 14, (2, 5), stride=(2, 3), dilation=(1, 2), padding=(0, 3), groups=3),
}  # fmt: skip


def numbers(problem, device):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(device) for shape in (problem.output_shape, problem.input_shape)]


def reference(problem, dz, x, dtype):
    """Return the gradient by torch in ``dtype``."""
    weight = torch.zeros(problem.weight_shape, dtype=dtype, device=x.device, requires_grad=True)
    z = F.conv2d(x.to(dtype), weight, None, **problem.conv_options)
    return torch.autograd.grad(z, weight, dz.to(dtype))[0]


def computed(problem, dz, x, **changes):
    """Return the gradient by the kernel, whose launches are changed."""
    runner = GeneralTraining(problem, x.device)
    if problem.groups == problem.in_channels:
        plan = depthwise_gradient_plan(problem, runner.target)
    else:
        plan = weight_gradient_plan(problem, best_weight_tile(problem, runner.target))
    runner._weight_plan = plan._replace(launches=tuple(dataclasses.replace(one, **changes) for one in plan.launches))
    return runner._weight_gradient(dz, x)


def errors(problem, dz, x, **changes):
    """Return the norms of the kernel's error and of torch's in float32, relative to the gradient's."""
    truth = reference(problem, dz, x, torch.float64)
    results = computed(problem, dz, x, **changes), reference(problem, dz, x, torch.float32)
    ours, torchs = ((result.double() - truth).norm() / truth.norm() for result in results)
    return ours.item(), torchs.item()


class TestValues:
    @pytest.mark.parametrize("problem", SHAPES.values(), ids=SHAPES)
    def test_kinds_of_shape(self, device, problem):
        with watch() as seen:
            ours, torchs = errors(problem, *numbers(problem, device))
        assert ours <= max(2e-7, 2 * torchs)
        assert seen.findings == []

    def test_the_same_bits_every_time(self, device):
        given = numbers(SMALL, device)
        assert computed(SMALL, *given).equal(computed(SMALL, *given))


def outlier(dz, x):
    x[0, 3, 4, 5] = 1e9


def wall(dz, x):
    x[:, :, :, 6:] *= 1e6


RANGES = {
    "tiny": lambda dz, x: (dz.mul_(1e-25), x.mul_(1e-10)),
    "huge": lambda dz, x: (dz.mul_(1e25), x.mul_(1e10)),
    "zeros": lambda dz, x: dz[:, 5:].zero_(),
    "an outlier": outlier,
    "a wall": wall,
    "mean 100": lambda dz, x: x.add_(100),
    "8 decades": lambda dz, x: dz.copy_(spread(dz.shape, 8)),
    "channels over 6 decades": lambda dz, x: dz.mul_(10 ** torch.linspace(-3, 3, 20, device=dz.device)[:, None, None]),
}


def test_it_is_what_training_runs(device, monkeypatch):
    masks, operator = [], torch.ops.aten.convolution_backward
    problem = dataclasses.replace(SMALL, height=16, width=16)
    monkeypatch.setattr("fusedref.ops.general_training.library_convolves", lambda *_: True)
    monkeypatch.setattr(
        "fusedref.ops.general_training.convolution_backward", lambda *a: masks.append(a[-1]) or operator(*a)
    )
    dy, x = numbers(problem, device)
    weight = torch.randn(problem.weight_shape).to(device)
    runner = GeneralTraining(problem, x.device)
    _, mean, var, saved = runner.forward(x, weight, None, None, None, 1.0, 0.1, None)
    for given, expected in ((saved, (True, False, False)), (None, (True, True, False))):
        # Without what was saved: evaluation mode, where infinities stay infinite.
        runner.backward(dy, x, weight, None, None, mean, var, given, 1.0, 0.1, (True, True, False, False, False))
        assert masks.pop() == expected


class TestRanges:
    @pytest.mark.parametrize("change", RANGES.values(), ids=RANGES)
    def test_errors_are_those_of_float32(self, device, change):
        given = numbers(SMALL, device)
        change(*given)
        truth = reference(SMALL, *given, torch.float64)
        ours = (computed(SMALL, *given).double() - truth).flatten(1).norm(dim=1)
        torchs = (reference(SMALL, *given, torch.float32).double() - truth).flatten(1).norm(dim=1)
        assert (ours <= torch.maximum(2e-7 * truth.flatten(1).norm(dim=1), 2 * torchs)).all()

    def test_nan_stays_in_its_channel(self, device):
        dz, x = numbers(SMALL, device)
        truth = reference(SMALL, dz, x, torch.float64)
        dz[:, 7] = torch.nan  # as every pixel of a channel is after BatchNorm
        truth[7] = torch.nan
        torch.testing.assert_close(computed(SMALL, dz, x).double(), truth, rtol=1e-5, atol=1e-5, equal_nan=True)


PLANTED = {
    "the cross terms are left out": ("unscale / LO_SCALE", "0.0f", "result"),
    "a tile is read before it is written": (
        "        __syncthreads();\n        multiply(", "        multiply(", "race"
    ),
    "a tile is overwritten while it is read": (
        "find_largest(shared.largest);\n        __syncthreads();", "find_largest(shared.largest);", "race"
    ),
    "a tile beyond the last": ("tile + 1 < end", "tile < end", "out-of-bounds"),
    "the last part is forgotten": ("part < count;", "part < count - 1;", "result"),
}  # fmt: skip


@needs_emulator
@pytest.mark.parametrize(("right", "slip", "expected"), PLANTED.values(), ids=PLANTED)
def test_a_planted_bug_shows(right, slip, expected):
    text = inlined(SOURCE)
    assert text.count(right) == 1
    shown = set()
    with watch() as seen:
        try:
            ours, _ = errors(SMALL, *numbers(SMALL, torch.device("cpu")), source=text.replace(right, slip))
            shown = {"result"} if not ours <= 1e-6 else set()
        except driver.FindingError:
            pass
    assert expected in shown | {finding.kind for finding in seen.findings}


@pytest.mark.parametrize(
    ("problem", "target", "variant", "words"),
    [
        (SMALL, EMULATED, KernelVariant(), None),
        (SMALL, Target("sm_80", 108), KernelVariant(), None),
        (SMALL, Target("sm_75", 40), KernelVariant(), "sm_75 cannot"),
        (SMALL, EMULATED, KernelVariant("tf32"), None),
        (dataclasses.replace(SMALL, dtype=torch.float16), EMULATED, KernelVariant(), "float32 products"),
        (SMALL, EMULATED, KernelVariant(channels_last=True), "NCHW"),
        (Problem(2, 16, 16, 9, 9, 3, groups=4), EMULATED, KernelVariant(), "8 output channels"),
        (Problem(1, 8, 64, 2**14, 2**14, 3), EMULATED, KernelVariant(), "32 bits"),
        (Problem(1, 8, 64, 2000, 2000, 30, dilation=60), EMULATED, KernelVariant(), "shared memory"),
    ],
    ids=str,
)
def test_what_it_serves(problem, target, variant, words):
    reason = unserved_by_weight_gradient(problem, target, variant)
    assert (reason is None) if words is None else words in reason


@needs_nvcc
@pytest.mark.parametrize("warp_rows", [1, 2])
def test_compiles_without_spills(warp_rows, tmp_path):
    problem = Problem(32, 64, 64, 56, 56, 3, padding=1)
    tiles = [tile for tile in weight_tiles(problem, EMULATED) if tile.warp_rows == warp_rows]
    (launch, _), *_ = weight_gradient_plan(problem, min(tiles, key=lambda tile: tile.cycles))
    assert_no_spills(nvcc.report(SOURCE, tmp_path, "80", launch.options))
