"""Rung 12: the statistics of a convolution that is never stored, and the running statistics that follow them."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from fusedref import Problem, validate
from fusedref.problem import SMALL_73
from kernels import training
from kernels.training import conv_statistics, moments, statistics_of_moments
from tests.tiles import needs_emulator
from tests.training import training_inputs

RUNGS = {rung.name: rung for rung in training.TRAINING if rung.number == 12}
TILE = Problem(1, 8, 64, 10, 34, 3)  # exactly one tile of 8 x 32 outputs
SMALL = Problem(2, 3, 5, 11, 37, 3, padding=1)
SHAPES = [
    Problem(1, 1, 1, 2, 1, 1),
    Problem(2, 3, 5, 13, 37, 3),
    Problem(1, 2, 70, 9, 8, 2, padding=1),
    Problem(3, 3, 4, 5, 40, 5, padding=4),
]


def by_convolution(given, padding=0):
    return conv_statistics(given, padding)


def by_moments(given, padding=0):
    return statistics_of_moments(given, moments(given, padding), padding)


BOTH = pytest.mark.parametrize("way", [by_convolution, by_moments], ids=lambda way: way.__name__)


def expected(given, padding=0):
    """Return mean and biased variance of the convolution, in float64."""
    bias = None if given.bias is None else given.bias.double()
    z = F.conv2d(given.x.double(), given.weight.double(), bias, padding=padding)
    return z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)


def assert_close(found, right, tolerance):
    """Check the variance relatively, and the mean relative to the deviation."""
    assert ((found[1] - right[1]).abs() <= tolerance * right[1]).all()
    assert ((found[0] - right[0]).abs() <= tolerance * (right[0].abs() + right[1].sqrt())).all()


@pytest.mark.parametrize("problem", SHAPES, ids=str)
@BOTH
def test_is_the_mean_and_the_variance(device, way, problem):
    given, padding = training_inputs(problem, 1, device), problem.pads[0][0]
    right = expected(given, padding)
    assert_close(way(given, padding), right, 5e-7)


@BOTH
def test_without_bias(device, way):
    given = training_inputs(SHAPES[1], 2, device)._replace(bias=None)
    assert_close(way(given), expected(given), 5e-7)


def waves(shape, device):
    """Return smooth images: neighbouring pixels are almost equal."""
    batch, channels, height, width = shape
    place = torch.arange(height).view(-1, 1) * 0.02 + torch.arange(width) * 0.03
    phases = torch.arange(batch * channels).view(batch, channels, 1, 1) * 1.7
    return torch.sin(place + phases).to(device)


def laplacians(given):
    """Return filters that take of each channel the difference between a pixel and its neighbours, scaled."""
    laplacian = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]], device=given.x.device)
    return given.weight.mean((2, 3), keepdim=True) * laplacian


FAMILIES = {
    "mean 100": lambda given: given._replace(x=given.x + 100),
    "channels over 8 decades": lambda given: given._replace(
        x=given.x * torch.logspace(-4, 4, 3, device=given.x.device).view(-1, 1, 1)
    ),
    "one outlier": lambda given: given._replace(x=torch.cat([given.x[:1] * 1e5, given.x[1:]])),
    "smooth waves under Laplacian filters": lambda given: given._replace(
        x=waves(given.x.shape, given.x.device), weight=laplacians(given), bias=None
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
@BOTH
def test_is_accurate_on_every_family(device, way, family):
    given = FAMILIES[family](training_inputs(SHAPES[1], 3, device))
    found, right = way(given), expected(given)
    if way is by_moments:  # nothing cancels in float64
        assert_close(found, right, 5e-7)
    else:
        z = F.conv2d(given.x, given.weight, given.bias).double()  # float32's sums have their own rounding
        eager = (z.var((0, 2, 3), correction=0) / right[1] - 1).abs().max().item()
        assert_close(found, right, max(1e-6, 4 * eager))


def test_moments_are_those_of_the_patches(device):
    given = training_inputs(SHAPES[3], 4, device)
    patches = F.unfold(given.x.double(), 5, padding=4).transpose(1, 2).flatten(0, 1)
    found = moments(given, 4)
    torch.testing.assert_close(found.mean, patches.mean(0), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.cov, patches.T.cov(correction=0), rtol=1e-10, atol=1e-13)


@BOTH
def test_constant_data_have_no_negative_variance(device, way):
    given = training_inputs(SHAPES[1], 5, device)
    given = given._replace(x=torch.full_like(given.x, 0.3))
    _, var = way(given)
    assert (var >= 0).all()
    assert (var < 1e-10).all()


@BOTH
def test_the_running_statistics_follow(device, way):
    given = training_inputs(SHAPES[1], 6, device)._replace(momentum=0.25)
    before = given.running_mean.clone(), given.running_var.clone()
    count = math.prod(SHAPES[1].output_shape) // SHAPES[1].out_channels
    mean, var = way(given)
    torch.testing.assert_close(given.running_mean, 0.75 * before[0] + 0.25 * mean)
    torch.testing.assert_close(given.running_var, 0.75 * before[1] + 0.25 * var * count / (count - 1))


@BOTH
def test_the_same_bits_on_every_run(device, way):
    first, again = (way(training_inputs(SMALL_73, 7, device)) for _ in range(2))
    assert all(one.equal(two) for one, two in zip(first, again, strict=True))


@pytest.mark.parametrize("name", RUNGS)
def test_the_rung_validates(device, name):
    report = validate(RUNGS[name].candidate, training.SMALL, mode="train", device=device)
    assert report.ok, str(report)


@pytest.mark.parametrize(
    ("way", "right", "wrong"),
    [
        (by_convolution, "left + lane >= OUT_WIDTH", "left + lane > OUT_WIDTH"),
        (by_convolution, "merge(of_rows[0][thread], of_rows[1][thread])", "of_rows[0][thread]"),
        (by_convolution, "top + halo_row - PADDING", "top + halo_row"),
        (by_moments, "top + row < OUT_HEIGHT", "top + row < HEIGHT + 2 * PADDING"),
        (by_moments, "/ count - mean_i * mean_j", "/ count"),
        (by_moments, "batch_mean = bias[blockIdx.x]", "batch_mean = 0"),
    ],
)
def test_a_planted_bug_is_refused(device, plant, way, right, wrong):
    plant("12_training.cu", right, wrong)
    given = training_inputs(SMALL, 1, device)
    with pytest.raises(AssertionError):
        assert_close(way(given, 1), expected(given, 1), 1e-4)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("(count / (count - 1))", "1"), ("running_var[channel] += momentum", "running_var[channel] += 0 * momentum")],
)
def test_running_statistics_that_do_not_follow_are_refused(device, plant, right, wrong):
    plant("12_training.cu", right, wrong)
    with pytest.raises(AssertionError):
        test_the_running_statistics_follow(device, by_moments)


@needs_emulator
def test_memory_requests():
    """Read a tile and the weights once from global memory, and shared memory without a bank conflict."""
    from fusedref.emulator import watch

    with watch() as seen:
        by_convolution(training_inputs(TILE, 0, "cpu"))
    assert seen.findings == []
    counters = seen.counters["conv_statistics"]
    assert counters.global_load_requests == math.ceil(8 * 10 * 34 / 32) + 72 * 64 / 32
    assert counters.bank_conflicts == 0
    assert counters.barriers == 3
    assert counters.global_store_requests == 3 * 64 / 32


@needs_emulator
@pytest.mark.parametrize(("way", "number"), [(by_convolution, 1), (by_moments, 3)])
def test_a_missing_barrier_is_a_race(plant, way, number):
    from fusedref.emulator import watch

    plant("12_training.cu", "__syncthreads();", "", number)
    given = training_inputs(dataclasses.replace(TILE, batch=2), 0, "cpu")
    with pytest.MonkeyPatch.context() as patch, watch() as seen:
        patch.setattr(training, "TILE_SLICES", 1)  # two tiles for one block
        way(given)
    assert "race" in {finding.kind for finding in seen.findings}


def test_too_large_a_patch_is_refused(device):
    given = training_inputs(Problem(1, 11, 2, 5, 5, 3), 0, device)
    with pytest.raises(ValueError, match="at most 87 products per output, got 99"):
        moments(given)
