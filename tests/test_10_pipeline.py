"""Rung 10, pipeline.cu: its plans, shapes, errors and ranges, and planted bugs that must be found."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedref import KERNELBENCH_73, Problem, fused_conv_bn_scale, plan, validate
from fusedref.csrc import INFERENCE
from fusedref.emulator import watch
from fusedref.ops.runner import run_plan, target_of
from fusedref.plans import KernelVariant, pipeline_plan, plan_for
from fusedref.plans.pipeline import unserved_by_pipeline
from fusedref.problem import SMALL_73
from fusedref.reference import conv_bn_scale, oracle
from fusedref.target import EMULATED, Target
from fusedref.validation import compare, random_inputs
from kernels import ladder
from tests.sources import inlined
from tests.strategies import compiling, options
from tests.tensor_cores import (
    LARGEST,
    NOT_FINITE,
    TENSORS,
    assert_errors_are_those_of_float32,
    assert_not_finite_where_the_formula_is,
    convolution,
    folded,
    roundings,
    run_text,
    shown,
    weight_of,
    x_of,
)
from tests.tiles import needs_emulator

SOURCE = INFERENCE / "pipeline.cu"
SMALL = Problem(2, 8, 64, 8, 34, 3)  # rows of 32, seven of six a tile: two tiles an image


@pytest.fixture(autouse=True)
def a_card_that_has_wgmma(device):
    if device.type == "cuda" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("wgmma is sm_90a's")


def pipeline(problem, inputs, multiprocessors=3, precision="fp32"):
    """Run the kernel, even if the plan would choose another, with so few blocks that each has several tiles."""
    target = EMULATED._replace(multiprocessors=multiprocessors)
    return run_plan(pipeline_plan(problem, target, KernelVariant(precision)), problem, inputs)


class TestPlan:
    def test_problem_73(self):
        chosen = plan(KERNELBENCH_73)
        assert (chosen.kernel, chosen.tile) == ("pipeline", (64, 2, 126))
        (planned,) = chosen.launches
        assert (planned.grid, planned.block, planned.shared) == ((132, 1, 1), (512, 1, 1), 183680)
        assert "memory" in chosen.reason

    @pytest.mark.parametrize(
        ("problem", "words"),
        [
            (Problem(128, 8, 64, 128, 128, 3, stride=2), "stride 1"),
            (Problem(128, 8, 64, 128, 128, 3, groups=2), "one group"),
            (Problem(128, 9, 64, 128, 128, 3), "8 input channels"),
            (Problem(128, 8, 64, 128, 128, 5), "9 taps"),
            (Problem(128, 8, 12, 128, 128, 3), "16 output channels"),
            (Problem(128, 8, 64, 9, 9, 3), "64 pixels"),
            (Problem(1, 8, 64, 400, 400, 3, dilation=100), "shared memory"),
            (Problem(2**20, 8, 64, 40, 40, 3), "32 bits"),
        ],
    )
    def test_what_it_does_not_serve(self, problem, words):
        assert plan(problem).kernel != "pipeline"
        assert words in unserved_by_pipeline(problem, EMULATED, KernelVariant())

    def test_another_architecture(self):
        chosen = plan(KERNELBENCH_73, "sm_80", 108)
        assert chosen.kernel != "pipeline"
        assert "sm_80" in chosen.reason

    def test_pieces(self):
        """Three where two would have larger errors than a float32 sum: below 45 products."""

        def pieces(problem, precision="fp32"):
            chosen = plan(problem, precision=precision)
            assert chosen.kernel == "pipeline"
            return dict(chosen.launches[0].macros)["PIECES"]

        assert pieces(KERNELBENCH_73) == pieces(Problem(128, 5, 64, 128, 128, 3)) == 2
        few = [Problem(128, 4, 64, 128, 128, 3), Problem(128, 8, 64, 128, 128, 2), Problem(128, 1, 64, 128, 128, 1)]
        assert [pieces(problem) for problem in few] == [3, 3, 3]
        assert [pieces(problem, "tf32") for problem in few] == [1, 1, 1]
        assert pieces(dataclasses.replace(few[0], dtype=torch.float16)) == 1

    def test_long_rows(self):
        """Rows of more than 1024 bytes come in pieces of whole sectors, one more if three rows of them do not fit."""
        tiles = [plan(Problem(8, 8, 64, 16, width, 3)).tile for width in (302, 512, 768, 1024)]
        assert tiles == [(64, 1, 152), (64, 1, 176), (64, 1, 192), (64, 1, 208)]

    def test_a_batch_is_no_constant(self):
        one, many = (plan(Problem(batch, 8, 64, 40, 40, 3)).launches[0] for batch in (1, 100))
        assert one.macros == many.macros
        assert one.grid == (8, 1, 1)
        assert many.grid == (132, 1, 1)

    def test_turns(self):
        """A turn lasts as long as memory needs for a burst of every multiprocessor: two tiles of float32."""

        def turn(problem, multiprocessors, bandwidth):
            target = Target("sm_90a", multiprocessors, bandwidth)
            return dict(plan_for(problem, target, KernelVariant()).launches[0].macros)["TURN"]

        assert turn(KERNELBENCH_73, 132, 3.352e12) == 5736 + 950  # ns: an H100's bandwidth for 19.2 MB, and a latency
        assert turn(KERNELBENCH_73, 132, 4.8e12) == 4006 + 950
        assert turn(KERNELBENCH_73, 66, 4.8e12) == 4006 / 2 + 950
        assert turn(dataclasses.replace(KERNELBENCH_73, dtype=torch.float16), 132, 4.8e12) == 0

    def test_it_is_what_the_package_runs(self, device):
        inputs = random_inputs(SMALL_73, 3, device)
        chosen = plan(SMALL_73, *target_of(device)[:2])
        assert chosen.kernel == "pipeline"
        expected = run_plan(chosen, SMALL_73, inputs)
        assert fused_conv_bn_scale(*inputs).equal(expected)

    def test_the_rung_validates(self, device):
        (rung,) = (rung for rung in ladder.LADDER if rung.number == 10)
        report = validate(rung.candidate, SMALL_73, device=device)
        assert report.ok, str(report)

    def test_the_rung_is_the_kernel_of_the_package(self, device):
        inputs = random_inputs(SMALL_73, 3, device)
        y = run_source((ladder.KERNELS / "10_pipeline.cu").read_text(), SMALL_73, inputs)
        assert y.equal(fused_conv_bn_scale(*inputs))


SHAPES = {
    "one pixel": Problem(1, 8, 64, 3, 3, 3),
    "one pixel a window of ones": Problem(3, 8, 64, 1, 1, 1),
    "two tiles that do not divide": Problem(2, 8, 64, 11, 34, 3),
    "odd plane, ordinary stores": Problem(2, 8, 64, 9, 11, 3),
    "odd width, plane of fours": Problem(1, 8, 64, 10, 23, 3),
    "odd pitch": Problem(2, 7, 64, 9, 20, (3, 2)),
    "runs of rows that do not align": Problem(1, 8, 64, 32, 36, 3),
    "rows in pieces": Problem(1, 8, 64, 4, 302, 3),
    "rows in pieces, ordinary stores": Problem(1, 8, 64, 3, 303, 3),
    "padding": Problem(2, 5, 64, 7, 33, 3, padding=(1, 2)),  # the fewest products in two pieces
    "same, even kernel": Problem(1, 6, 64, 9, 33, (2, 4), padding="same"),
    "far padding": Problem(1, 6, 64, 4, 4, 3, padding=9),
    "dilation": Problem(2, 8, 64, 12, 31, 3, dilation=(2, 3)),
    "few channels": Problem(2, 3, 20, 9, 30, 3, padding=1),
    "three blocks of channels": Problem(2, 8, 130, 6, 18, 3),
    "one tap": Problem(2, 8, 64, 5, 13, 1),
    "a row of nine": Problem(1, 8, 64, 5, 40, (1, 9)),
    "tiles of 16-bit floats": Problem(1, 8, 64, 11, 128, 3),
    "so many tiles that blocks read in turns": Problem(5, 8, 64, 22, 128, 3),
}


# Shapes for other precisions, and the dtype of 16 bits that each is tested with: both take the same way in the kernel.
OTHER_PRECISIONS = {
    "one pixel": "float16",
    "odd plane, ordinary stores": "bfloat16",
    "odd width, plane of fours": "float16",
    "rows in pieces": "bfloat16",
    "padding": "float16",
    "few channels": "bfloat16",
    "a row of nine": "float16",
    "tiles of 16-bit floats": "bfloat16",
}


class TestShapes:
    @pytest.mark.parametrize("problem", SHAPES.values(), ids=SHAPES)
    def test_kinds_of_shape(self, device, problem):
        inputs = random_inputs(problem, 0, device)
        case = compare("", problem, inputs, pipeline(problem, inputs))
        assert case.ok, case.reasons

    def test_an_empty_batch(self, device):
        problem = Problem(0, 8, 64, 8, 34, 3)
        assert pipeline(problem, random_inputs(problem, 0, device)).shape == problem.output_shape

    @settings(compiling, max_examples=6)
    @given(st.data())
    def test_any_shape(self, device, data):
        def number(low, high):
            return data.draw(st.integers(low, high))

        kernel = data.draw(st.sampled_from([(1, 1), (3, 3), (2, 3), (3, 1), (4, 2)]))
        dilation = (number(1, 2), number(1, 2))
        span = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        height, width = (part + number(1, most) for part, most in zip(span, (14, 70), strict=True))
        problem = Problem(
            number(1, 3), number(1, 8), number(1, 80), height, width, kernel,
            padding=(number(0, 2), number(0, 2)), dilation=dilation, bias=data.draw(st.booleans()),
        )  # fmt: skip
        inputs = random_inputs(problem, 0, device)
        case = compare("", problem, inputs, pipeline(problem, inputs, number(1, 5)))
        assert case.ok, (problem, case.reasons)

    @pytest.mark.parametrize("missing", ["bias", "gamma", "beta"])
    def test_vectors_left_out(self, device, missing):
        inputs = random_inputs(SMALL, 0, device)
        getattr(inputs, missing).fill_(1.0 if missing == "gamma" else 0.0)
        case = compare("", SMALL, inputs, pipeline(SMALL, inputs._replace(**{missing: None})))
        assert case.ok, case.reasons

    @pytest.mark.parametrize("shape", ["padding", "two tiles that do not divide"])
    def test_errors_are_no_larger_than_those_of_a_float32_sum(self, device, shape):
        """With two pieces: the fewest products for which the plan chooses them, and those of problem 73."""
        problem = SHAPES[shape]
        inputs = convolution(*random_inputs(problem, 0, device)[:2])
        truth = oracle(*inputs, **problem.conv_options)
        ours, plain = ((run(problem, inputs).double() - truth).norm().item() for run in (pipeline, folded))
        assert ours <= plain

    @pytest.mark.parametrize("shape", ["one tap", "few channels", "odd pitch"])
    def test_sums_of_few_products_are_correctly_rounded(self, device, shape):
        problem = SHAPES[shape]
        inputs = convolution(*random_inputs(problem, 0, device)[:2])
        truth = oracle(*inputs, **options(problem))
        error = pipeline(problem, inputs).double() - truth
        assert error.norm() <= 1.01 * (truth.float().double() - truth).norm()

    def test_errors_at_problem_73(self, device):
        """On the first rows of three of its images, with its weights and vectors."""
        drawn = random_inputs(KERNELBENCH_73, 0, device)
        inputs = drawn._replace(x=drawn.x[:3, :, :11].contiguous())
        truth = oracle(*inputs)
        problem = dataclasses.replace(SHAPES["tiles of 16-bit floats"], batch=3)
        error = pipeline(problem, inputs).double() - truth
        assert error.norm() <= 1e-7 * truth.norm()

    @pytest.mark.parametrize(
        ("shape", "kind"),
        [(shape, kind) for shape, short in OTHER_PRECISIONS.items() for kind in ("tf32", short)],
    )
    def test_other_precisions(self, device, kind, shape):
        precision, dtype = ("tf32", torch.float32) if kind == "tf32" else ("fp32", getattr(torch, kind))
        problem = dataclasses.replace(SHAPES[shape], dtype=dtype)
        inputs = random_inputs(problem, 0, device)
        y = pipeline(problem, inputs, precision=precision)
        assert y.dtype == dtype
        case = compare("", problem, inputs, y, precision=precision)
        assert case.ok, case.reasons


class TestRange:
    @pytest.mark.parametrize(
        ("x", "weight"),
        [
            (1e30, 1.0), (1e-30, 1.0), (1e-37, 1e37), (1e-42, 1.0), (1e-45, 1e30), (1.0, 1e-40), (1e-25, 1e-15),
            (1e37, 1e-37), (1e20, 1e18), (1e30, 1e30),
            ("mean 1000", 1.0), ("an outlier", 1.0), ("a huge outlier", 1.0), ("zeros and one", 1.0),
            ("12 decades", 1.0), ("60 decades", 1e-5), ("one tile of 12 decades", 1.0), ("12 decades", "12 decades"),
            (1.0, "12 decades"), (1.0, "12 decades between channels"), (1.0, "one channel of 12 decades"),
            (1.0, "a dead channel"), ("a wall", 1.0), ("no first channel", "a heavy first channel"),
        ],
        ids=str,
    )  # fmt: skip
    def test_errors_are_those_of_float32(self, device, x, weight):
        assert_errors_are_those_of_float32(SMALL, pipeline, device, x, weight)

    @pytest.mark.parametrize(
        ("x", "weight"),
        [
            (1e30, 1.0), (1e-30, 1.0), (1e-45, 1e30), (1.0, 1e-40), ("mean 1000", 1.0), ("an outlier", 1.0),
            ("12 decades", "12 decades"), (1.0, "12 decades between channels"), (1.0, "one channel of 12 decades"),
            ("a wall", 1.0),
        ],
        ids=str,
    )  # fmt: skip
    def test_of_few_products_too(self, device, x, weight):
        assert_errors_are_those_of_float32(SHAPES["odd pitch"], pipeline, device, x, weight)

    @pytest.mark.parametrize("value", NOT_FINITE)
    @pytest.mark.parametrize("name", TENSORS)
    def test_nan_and_infinity(self, device, name, value):
        problem = SHAPES["padding"]
        inputs = random_inputs(problem, 0, device)
        assert_not_finite_where_the_formula_is(problem, pipeline, inputs, name, value)

    @pytest.mark.parametrize("factor", [0.0, -2.0, 1e-30, 1e30, math.nan])
    def test_any_scaling_factor(self, device, factor):
        inputs = random_inputs(SMALL, 0, device)._replace(scaling_factor=factor)
        expected = conv_bn_scale(*inputs)
        tolerance = 1e-5 * abs(factor) if math.isfinite(factor) else 0.0
        torch.testing.assert_close(pipeline(SMALL, inputs), expected, rtol=1e-5, atol=tolerance, equal_nan=True)

    def test_a_negative_variance_is_nan_in_its_channel_alone(self, device):
        inputs = random_inputs(SMALL, 0, device)
        inputs.running_var[3] = -1.0
        nan = pipeline(SMALL, inputs).isnan()
        assert nan[:, 3].all()
        assert not nan[:, :3].any()
        assert not nan[:, 4:].any()


def run_source(text, problem, inputs):
    """Return y by a changed text of the kernel, on one multiprocessor."""
    return run_text(text, pipeline_plan(problem, EMULATED._replace(multiprocessors=1)), problem, inputs)


PLAIN_TILE = "range.splits() ? exponent_of(range) : PLAIN"
PLANTED = {
    "the cross terms are left out": ("1.0f / CROSS_SCALE, dot)", "0.0f, dot)", "result"),
    "a product is not waited for": ("ptx::wgmma_wait<0>();", "", "missing-wait"),
    "a buffer is filled before it is stored":
        ("ptx::mbarrier_wait(&shared.stored[buffer], (step / BUFFERS + 1) % 2);\n            #pragma", "#pragma",
         "race"),
    "a stage is filled before it is read":
        ("ptx::mbarrier_wait(&shared.empty[s], (step / STAGES + 1) % 2);", "", "race"),
    "a stage is read before it is filled":
        ("ptx::mbarrier_wait(&shared.full[s], step / STAGES % 2);", "", "uninitialised"),
    "a buffer is free before it is copied": ("ptx::bulk_wait_read<0>();", "", "DeadlockError"),
    "the last tile is as long as any":
        ("int(min((long long)RUN, OUT_PLANE - first()))", "RUN", "out-of-bounds"),
    "a row too far": ("tile.row - PAD_TOP + pixel / PITCH", "tile.row - PAD_TOP + 1 + pixel / PITCH", "result"),
    "a tile of too wide a range is split anyway": (PLAIN_TILE, "exponent_of(range)", "range"),
    "weights of too wide a range are split anyway": (" || (ELEMENT == 0 && !range.splits())", "", "range"),
    "weights are read before they are there":
        ("filters.put(fetched, warp, lane);\n    setup_barrier();",
         "setup_barrier(); filters.put(fetched, warp, lane);", "race"),
    "outputs are put where weights are still read": ("ptx::named_barrier_sync(2, CONSUMERS * 32);", "", "race"),
    "a burst's ranges lie where the last's are read": ("shared.ranges[burst % 2]", "shared.ranges[0]", "race"),
    "an overflow is not checked for": ("exponent + most > 126", "exponent > 500", "range"),
    "a missing gamma is zero": ("float(in.gamma[channel]) : 1.0f", "float(in.gamma[channel]) : 0.0f", "result"),
    "the next tile's first outputs are left out": ("TAIL && step % 2 == warpgroup", "false", "uninitialised"),
    "no tile stores a sector": ("EXTRA && !tile.last() ?", "false ?", "unwritten"),
    "a stage is passed on without a fence":
        ("ptx::fence_async_shared();\n    __syncwarp();\n    if", "__syncwarp();\n    if", "race"),
    "a buffer is passed on without a fence":
        ("ptx::fence_async_shared();\n        __syncwarp();\n        if", "__syncwarp();\n        if", "race"),
}  # fmt: skip


# Four tiles: stages and buffers are reused. An image's second tile is shorter. EXTRA is 6, and TAIL is 8.
FOUR_TILES = Problem(2, 8, 64, 13, 32, 3)


def what_shows(text, device):
    """Return the faults that a short form of the tests above finds in the text."""

    def run():
        inputs = random_inputs(FOUR_TILES, 0, device)
        inputs.gamma.fill_(1.0)
        y = run_source(text, FOUR_TILES, inputs._replace(gamma=None))
        return set() if compare("", FOUR_TILES, inputs, y).ok else {"result"}

    return shown(run) or wrong_ranges(text, device)


def wrong_ranges(text, device):
    """Return "range" if wide ranges give wrong results, "zero" if a window of zeros does not give zero."""
    wrong = set()
    for x, weight in (("a wall", 1.0), ("no first channel", "a heavy first channel"), (1e30, 1e30)):
        inputs = convolution(x_of(FOUR_TILES, x).to(device), weight_of(FOUR_TILES, weight).to(device))
        inputs.x[:, :, :3, :3] = 0.0
        y, truth = run_source(text, FOUR_TILES, inputs), oracle(*inputs)
        beyond = truth.abs() > 1.01 * LARGEST
        if (y[:, :, 0, 0] != 0).any():
            wrong.add("zero")
        if y[beyond].isfinite().any():
            wrong.add("range")
        if not beyond.any() and ((y - truth).abs() > 20 * roundings(FOUR_TILES, inputs)).any():
            wrong.add("range")
    return wrong


@needs_emulator  # a race need not show on a card, and a fault there ends the context
class TestPlantedBugs:
    def test_nothing_is_planted(self, device):
        assert what_shows(inlined(SOURCE), device) == set()

    @pytest.mark.parametrize("name", PLANTED)
    def test_it_shows(self, device, name):
        right, wrong, expected = PLANTED[name]
        text = inlined(SOURCE)
        assert text.count(right) == 1
        assert expected in what_shows(text.replace(right, wrong), device)


def test_no_bank_conflicts_and_nothing_to_find(device):
    if device.type == "cuda":
        pytest.skip("counted on the emulator")
    problem = Problem(1, 8, 64, 4, 128, 3)  # one tile of problem 73
    inputs = random_inputs(problem, 0)
    with watch() as seen:
        pipeline(problem, inputs)
    assert seen.findings == []
    counters = seen.counters["pipeline"]
    assert counters.bank_conflicts == 0


@pytest.mark.gpu
class TestGpu:
    def test_problem_73(self):
        inputs = random_inputs(KERNELBENCH_73, 0, "cuda")
        y = fused_conv_bn_scale(*inputs)
        case = compare("", KERNELBENCH_73, inputs, y)
        assert case.ok, case.reasons
        truth = oracle(*inputs)
        assert ((y.double() - truth).norm() / truth.norm()).item() <= 1e-7
        assert all(fused_conv_bn_scale(*inputs).equal(y) for _ in range(5))
