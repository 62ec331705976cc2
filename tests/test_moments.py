"""The batch statistics by float64 tensor cores, moments.cu and statistics.cu: values, shapes, planted bugs."""

import dataclasses
import math
import re
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fusedref import KERNELBENCH_73, Problem
from fusedref.csrc import TRAINING
from fusedref.cuda.launch import InOut, Out, launch
from fusedref.emulator import watch
from fusedref.ops.runner import compiled_function
from fusedref.plans import KernelVariant
from fusedref.plans.moments import moments_plan, unserved_by_moments
from fusedref.target import EMULATED
from tests import nvcc
from tests.sources import inlined
from tests.tensor_cores import shown
from tests.tiles import needs_emulator

MOMENTS, STATISTICS = TRAINING / "moments.cu", TRAINING / "statistics.cu"
THREE_BLOCKS = EMULATED._replace(multiprocessors=3)
SMALL = Problem(2, 8, 64, 18, 23, 3)
MOMENTUM = 0.25
FLOAT32 = 1.2e-7  # two roundings to float32


@pytest.fixture(autouse=True)
def a_card_that_has_them(device):
    if device.type == "cuda" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the kernels are sm_90a's")


class Inputs(NamedTuple):
    """What finish_statistics reads and updates."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    running_mean: torch.Tensor | None
    running_var: torch.Tensor | None
    batches: torch.Tensor | None


class Statistics(NamedTuple):
    """What the two kernels write, in float64."""

    p: torch.Tensor  # [columns]
    M: torch.Tensor  # [columns, columns]
    mean: torch.Tensor
    var: torch.Tensor
    centre: torch.Tensor
    pivot: torch.Tensor  # [8]
    scale: torch.Tensor


def draw(problem, device, whole=False, vectors=torch.float32):
    """Return random inputs, of whole numbers if their sums are to be exact."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape, dtype=problem.dtype):
        if whole:
            return torch.randint(-8, 9, shape, generator=generator).to(device, dtype)
        return torch.randn(shape, generator=generator).to(device, dtype)

    channels = problem.out_channels
    bias, running_mean = random(channels, dtype=vectors), random(channels, dtype=vectors)
    running_var = random(channels, dtype=vectors).abs()
    batches = torch.tensor([3], device=device)
    return Inputs(random(*problem.input_shape), random(*problem.weight_shape), bias, running_mean, running_var, batches)


def run(problem, inputs, momentum=MOMENTUM, target=THREE_BLOCKS, variant=KernelVariant(), texts=(None, None)):
    """Return the statistics by the kernels, or by other texts of them; workspaces and outputs start as NaN."""
    device = inputs.x.device
    plan = moments_plan(problem, target, variant)

    def empty(size, dtype=torch.float64):
        return torch.full((size,), math.nan, dtype=dtype, device=device)

    first, second = (
        dataclasses.replace(planned, source=text or planned.source)
        for planned, text in zip(plan.launches, texts, strict=True)
    )
    parts, moments, squares = empty(plan.parts), empty(plan.moments), empty(plan.squares)
    mean, var, centre = (empty(problem.out_channels, torch.float32) for _ in range(3))
    finished = torch.full((1,), 77, dtype=torch.int32, device=device)
    kept = [None if tensor is None else InOut(tensor) for tensor in inputs[3:]]
    batch = np.int64(problem.batch)
    for planned, arguments in (
        (first, (inputs.x, Out(parts), Out(finished), batch)),
        (
            second,
            (parts, *inputs[1:3], *kept, np.float32(momentum), *map(Out, (mean, var, centre, moments, squares)),
             InOut(finished), batch),
        ),
    ):  # fmt: skip
        function = compiled_function(planned, device)
        launch(function, *arguments, grid=planned.grid, block=planned.block, shared=planned.shared)
    assert finished.item() == 0
    columns = math.prod(problem.kernel) * 8
    p, M, pivot, scale = moments.split([columns, columns**2, 8, 8])
    return Statistics(p, M.view(columns, columns), mean.double(), var.double(), centre.double(), pivot, scale)


def patches(problem, x):
    """Return the patches [N, columns] in float64, columns of channels that x does not have as zeros."""
    (top, bottom), (left, right) = problem.pads
    padded = F.pad(x.double(), (left, right, top, bottom, 0, 0))
    unfolded = (
        F.unfold(padded, problem.kernel).transpose(1, 2).reshape(-1, problem.in_channels, math.prod(problem.kernel))
    )
    return F.pad(unfolded.transpose(1, 2), (0, 8 - problem.in_channels)).flatten(1)


def convolved(problem, inputs, x=None):
    """Return the convolution [N, channels] in float64, bias included, of the inputs' patches or of others, ``x``."""
    weight = F.pad(inputs.weight.double().flatten(2).transpose(1, 2), (0, 8 - problem.in_channels)).flatten(1)
    rows = patches(problem, inputs.x) if x is None else x
    return rows @ weight.T + (0 if inputs.bias is None else inputs.bias.double())


def assert_right(problem, inputs, got, rtol=FLOAT32):
    """Check all that the kernels write against float64."""
    rows = patches(problem, inputs.x)
    torch.testing.assert_close(got.p, rows.sum(0), rtol=1e-13, atol=1e-13 * rows.abs().sum(0).max().item())
    size = (rows**2).sum(0).sqrt()
    assert ((got.M - rows.T @ rows).abs() <= 1e-13 * torch.outer(size, size)).all()
    z = convolved(problem, inputs)
    spread = z.std(0, correction=0)
    assert ((got.mean - z.mean(0)).abs() <= rtol * (z.mean(0).abs() + 1e-3 * spread)).all()
    torch.testing.assert_close(got.var, z.var(0, correction=0), rtol=rtol, atol=0.0)

    channels = problem.in_channels
    torch.testing.assert_close(
        got.pivot[:channels], inputs.x.double().mean((0, 2, 3)), rtol=rtol, atol=1e-7 * inputs.x.abs().mean().item()
    )
    assert got.pivot.float().double().equal(got.pivot)
    shifted = rows - got.pivot.repeat(math.prod(problem.kernel))
    centre = convolved(problem, inputs, shifted).mean(0)
    torch.testing.assert_close(got.centre, centre, rtol=rtol, atol=1e-7 * spread.max().item())
    root = ((shifted**2).sum(0).view(-1, 8).sum(0) + got.pivot**2).sqrt()[:channels] * got.scale[:channels]
    assert (root <= 2**15).all()  # so neither x - pivot nor the pivot, which stands beyond x, exceeds fp16
    assert (root > 2**13).all()
    assert (shifted.abs().max(0).values.view(-1, 8).max(0).values * got.scale <= 2**15).all()
    assert got.scale.frexp().mantissa.eq(0.5).all()  # a power of two


SHAPES = {
    "problem 73, small": SMALL,
    "padding": Problem(3, 8, 5, 17, 22, 3, padding=1),
    "full padding, few channels": Problem(2, 3, 64, 9, 14, 3, padding=2),
    "no interior": Problem(2, 8, 9, 3, 4, 3),
    "even kernel": Problem(2, 5, 7, 10, 9, (3, 2), padding="same"),
    "units side by side": Problem(1, 2, 9, 7, 140, (3, 1)),
}


class TestValues:
    @pytest.mark.parametrize("problem", SHAPES.values(), ids=SHAPES)
    def test_kinds_of_shape(self, device, problem):
        inputs = draw(problem, device, whole=True)
        got = run(problem, inputs)
        rows = patches(problem, inputs.x)
        assert got.p.equal(rows.sum(0))  # whole numbers: exact
        assert got.M.equal(rows.T @ rows)
        inputs = draw(problem, device)
        assert_right(problem, inputs, run(problem, inputs))

    def test_halves(self, device):
        problem = dataclasses.replace(SMALL, width=24, dtype=torch.bfloat16)
        inputs = draw(problem, device, vectors=torch.float32)
        got = run(problem, inputs, variant=KernelVariant(vectors=torch.float32))
        assert_right(problem, inputs, got)

    def test_channels_of_any_scale(self, device):
        inputs = draw(SMALL, device)
        inputs.x.mul_(10 ** torch.linspace(-4, 4, 8, device=device)[:, None, None])
        assert_right(SMALL, inputs, run(SMALL, inputs))

    def test_a_large_mean(self, device):
        inputs = draw(SMALL, device)
        inputs.x.add_(100)
        assert_right(SMALL, inputs, run(SMALL, inputs))

    def test_smooth_images_under_laplacian_filters(self, device):
        """Sums of float32 products have a relative error of 1e-2 here."""
        inputs = draw(SMALL, device)
        down, across = torch.linspace(0, 1, 18)[:, None], torch.linspace(0, 1, 23)
        inputs.x.copy_(torch.stack([torch.sin(down * c) * torch.cos(across * c) for c in range(1, 9)]))
        inputs.weight.copy_(torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]))
        inputs.x.add_(inputs.x.new_tensor([0.0, 1.0])[:, None, None, None])
        assert_right(SMALL, inputs, run(SMALL, inputs), rtol=1e-6)

    @pytest.mark.parametrize("value", [0.0, 3.0, 0.1])
    def test_a_constant(self, device, value):
        inputs = draw(SMALL, device)
        inputs.x.fill_(value)
        got = run(SMALL, inputs)
        assert (got.var >= 0).all()
        assert (got.var <= 1e-12 * value**2 * inputs.weight.double().square().sum()).all()
        assert got.pivot.equal(torch.full_like(got.pivot, np.float32(value)))
        assert got.centre.float().equal(inputs.bias)
        assert got.scale.isfinite().all()

    def test_tiny_numbers(self, device):
        inputs = draw(SMALL, device)
        inputs.x.mul_(1e-42)
        got = run(SMALL, inputs)
        rows = patches(SMALL, inputs.x)
        torch.testing.assert_close(got.M, rows.T @ rows, rtol=1e-12, atol=1e-96)
        assert (got.scale == 2.0**126).all()

    @pytest.mark.parametrize("place", [(0, 0, 0, 0), (1, 3, 9, 11)])
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_what_is_not_finite(self, device, value, place):
        inputs = draw(SMALL, device)
        inputs.x[place] = value
        got = run(SMALL, inputs)
        z = convolved(SMALL, inputs)
        torch.testing.assert_close(got.mean, z.mean(0), rtol=1e-6, atol=1e-6, equal_nan=True)
        assert got.var.isnan().all()

    def test_the_same_bits_again(self, device):
        inputs = draw(SMALL, device)
        first = run(SMALL, inputs)
        assert all(a.equal(b) for a, b in zip(first, run(SMALL, inputs), strict=True))


class TestRunning:
    @pytest.mark.parametrize("momentum", [MOMENTUM, None, 0.0, 1.0])
    def test_as_torch_keeps_them(self, device, momentum):
        inputs = draw(SMALL, device)
        module = torch.nn.BatchNorm2d(64, momentum=momentum, device=device, dtype=torch.float64)
        for name, value in zip(("running_mean", "running_var", "num_batches_tracked"), inputs[3:], strict=True):
            getattr(module, name).copy_(value.squeeze())
        for _ in range(2):
            run(SMALL, inputs, momentum=-1.0 if momentum is None else momentum)
            module(convolved(SMALL, inputs).T.view(1, 64, -1, 1))
        torch.testing.assert_close(inputs.running_mean.double(), module.running_mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(inputs.running_var.double(), module.running_var, rtol=1e-6, atol=0.0)
        assert inputs.batches.item() == module.num_batches_tracked.item() == 5

    def test_what_is_left_out(self, device):
        inputs = draw(SMALL, device)._replace(bias=None, running_mean=None, running_var=None, batches=None)
        assert_right(SMALL, inputs, run(SMALL, inputs))


class TestPlan:
    def test_problem_73(self):
        plan = moments_plan(KERNELBENCH_73)
        first, second = plan.launches
        assert (first.grid, first.block) == ((132, 1, 1), (384, 1, 1))
        assert first.shared <= 227 * 1024
        assert second.grid == (55, 1, 1)  # 45 pairs of taps, 9 taps, the sum of x
        macros = dict(first.macros)
        assert (macros["UNIT_PAIRS"], macros["UNITS_ACROSS"], macros["STAGES"]) == (62, 1, 7)  # 124 columns
        assert macros["SHARES"] == 15  # four edges of rows, two sides twice as long, eight corners: 128 of 132 blocks
        assert plan.parts == (132 + (4 + 2 * 4) * 15 + 16) * (13 * 64 + 8)
        assert plan.moments == 72 + 72**2 + 16

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"stride": 2}, "stride 1"),
            ({"dilation": 2}, "dilation 1"),
            ({"groups": 2}, "one group"),
            ({"in_channels": 9}, "8 input"),
            ({"out_channels": 65}, "64 output"),
            ({"kernel_size": (4, 2)}, "3 x 3"),
            ({"padding": 3}, "padding below"),
            ({"batch": 2**20}, "32 bits"),
        ],
    )
    def test_what_they_do_not_serve(self, change, words):
        assert words in unserved_by_moments(dataclasses.replace(KERNELBENCH_73, **change), EMULATED)

    def test_what_they_serve(self):
        assert unserved_by_moments(KERNELBENCH_73, EMULATED) is None
        assert all(unserved_by_moments(problem, EMULATED) is None for problem in SHAPES.values())
        assert "sm_80" in unserved_by_moments(KERNELBENCH_73, EMULATED._replace(architecture="sm_80"))
        assert "NCHW" in unserved_by_moments(KERNELBENCH_73, EMULATED, KernelVariant(channels_last=True))

    def test_a_batch_is_no_constant(self):
        one, many = (moments_plan(Problem(batch, 8, 64, 40, 40, 3)) for batch in (1, 100))
        assert [planned.macros for planned in one.launches] == [planned.macros for planned in many.launches]
        assert [plan.launches[0].grid for plan in (one, many)] == [(9, 1, 1), (132, 1, 1)]


LONG = Problem(9, 8, 16, 18, 23, (2, 3))  # more units for a block than stages


@needs_emulator
def test_counts(device):
    """A unit's 6 rows of 8 channels come once, in whole 16 bytes; three blocks, and borders, write their parts."""
    inputs = draw(SMALL, device)
    with watch() as seen:
        run(SMALL, inputs)
    assert seen.findings == []
    counters = seen.counters["moments"]
    rows = 2 * 8 * (3 * 6 + 4)  # the last of the four units of an image ends with the image
    assert rows * 22 * 4 <= counters.bulk_bytes <= rows * (22 + 2 * 3) * 4
    assert counters.shared_store_bank_conflicts == 0
    assert counters.global_store_bytes_used == 8 * moments_plan(SMALL, THREE_BLOCKS).parts + 4  # and `finished`
    assert seen.counters["finish_statistics"].atomic_requests == 55


PLANTED = {  # the kernel, what is right, what is wrong, what shows
    "a corner counts for every column":
        (STATISTICS, " && reaches_column(kernel_column, column_of(corner % LINES_ACROSS))", "", "p"),
    "an edge counts for no tap":
        (STATISTICS, "reaches_column(kernel_column, column_of((part - ROW_PARTS) / (2 * SHARES)))", "false", "p"),
    "a lag is not turned round":
        (MOMENTS, "turned = transposed(sum[1], lane)", "turned = sum[1]", "M"),
    "the bias is forgotten": (STATISTICS, "mean[channel] = float(sum + own)", "mean[channel] = float(sum)", "mean"),
    "the mean is not subtracted": (STATISTICS, "square - sum * sum", "square", "var"),
    "two taps count once": (STATISTICS, "(first == second ? 1.0 : 2.0)", "1.0", "var"),
    "the pivot is not taken off": (STATISTICS, "sum - sum_of_eight(shifted)", "sum", "centre"),
    "the biased variance is kept": (STATISTICS, "variance * (count / (count - 1.0))", "variance", "running_var"),
    "momentum is the old value's weight":
        (STATISTICS, "momentum < 0.0f ? 1.0 / tracked :", "momentum < 0.0f ? 1.0 / tracked : 1.0 -", "running_mean"),
    "the counter stays":
        (STATISTICS, "atomicInc(finished, STATISTICS_BLOCKS - 1)", "atomicInc(finished, 1000)", "counter"),
    "a unit is not waited for":
        (MOMENTS, "ptx::mbarrier_wait(&shared.full[i % STAGES], i / STAGES % 2);", "", "race"),
    "a stage is filled before it is read":
        (MOMENTS, "ptx::mbarrier_wait(&shared.empty[done % STAGES], done / STAGES % 2);", "", "race"),
    "the sums lie where units are still read":
        (MOMENTS, "    ptx::named_barrier_sync(1, INTERIOR_WARPS * 32);\n    put_sums", "    put_sums", "race"),
}  # fmt: skip


def what_shows(device, texts):
    """Return what is wrong with the kernels' results, or what a watch finds."""

    def launched():
        inputs = draw(LONG, device)
        before = Inputs(*(tensor.clone() for tensor in inputs))
        try:
            got = run(LONG, inputs, texts=texts)
        except AssertionError:
            return {"counter"}
        rows, z = patches(LONG, inputs.x), convolved(LONG, inputs)
        kept = [(1 - MOMENTUM) * old + MOMENTUM * new for old, new in
                ((before.running_mean, z.mean(0)), (before.running_var, z.var(0)))]  # fmt: skip
        pivots = got.pivot.repeat(math.prod(LONG.kernel))[None]
        shifted = z.mean(0) - convolved(LONG, inputs._replace(bias=None), pivots)[0]
        pairs = {
            "p": (got.p, rows.sum(0)), "M": (got.M, rows.T @ rows), "mean": (got.mean, z.mean(0)),
            "var": (got.var, z.var(0, correction=0)), "centre": (got.centre, shifted),
            "running_mean": (inputs.running_mean, kept[0]), "running_var": (inputs.running_var, kept[1]),
        }  # fmt: skip
        return {name for name, (a, b) in pairs.items() if not torch.allclose(a.double(), b, rtol=1e-5, atol=1e-4)}

    return shown(launched)


@needs_emulator
class TestPlantedBugs:
    def test_nothing_is_planted(self, device):
        assert what_shows(device, (inlined(MOMENTS), inlined(STATISTICS))) == set()

    @pytest.mark.parametrize("name", PLANTED)
    def test_it_shows(self, device, name):
        kernel, right, wrong, expected = PLANTED[name]
        texts = [inlined(path) for path in (MOMENTS, STATISTICS)]
        which = 0 if kernel is MOMENTS else 1
        texts[which] = texts[which].replace("\n            &&", " &&")
        assert texts[which].count(right) == 1
        texts[which] = texts[which].replace(right, wrong)
        assert expected in what_shows(device, texts)


@nvcc.needs_nvcc
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_spills(dtype, tmp_path):
    """Half of what the sums of a warp take, 416 bytes, is spilled at most."""
    for planned in moments_plan(dataclasses.replace(KERNELBENCH_73, dtype=dtype)).launches:
        report = nvcc.report(planned.source, tmp_path, "90a", planned.options)
        assert all(int(count) <= 208 for count in re.findall(r"(\d+) bytes spill stores", report))


@pytest.mark.gpu
def test_problem_73(device):
    inputs = draw(KERNELBENCH_73, device)
    inputs.x.add_(10)
    target = EMULATED
    got = run(KERNELBENCH_73, inputs, target=target)
    z = F.conv2d(inputs.x.double(), inputs.weight.double(), inputs.bias.double())
    torch.testing.assert_close(got.mean, z.mean((0, 2, 3)), rtol=FLOAT32, atol=1e-6)
    torch.testing.assert_close(got.var, z.var((0, 2, 3), correction=0), rtol=FLOAT32, atol=0.0)
    again = run(KERNELBENCH_73, inputs, target=target)
    assert all(a.equal(b) for a, b in zip(got, again, strict=True))
