"""The pass over dy, backward.cu: plans, shapes, dtypes, errors, ranges and counts."""

import math

import pytest
import torch

from fusedref import KERNELBENCH_73, Problem
from fusedref.plans import KernelVariant
from fusedref.plans.backward import backward_launch, parts_shape, unserved_by_backward
from fusedref.target import EMULATED, Target
from tests import nvcc
from tests.backward_pass import Pass, Results, expected, moments_of, random_inputs
from tests.tiles import needs_emulator

SMALL = Problem(3, 8, 64, 7, 33, 3, padding=1)
HALF, BRAIN = torch.float16, torch.bfloat16


@pytest.fixture(autouse=True)
def a_card_that_it_is_for(device):
    if device.type == "cuda" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("backward.cu is for sm_90a")


def relative(result, truth):
    """Return the relative L2 error, of a result that may not exist."""
    return 0.0 if result is None else ((result.double() - truth).norm() / truth.norm()).item()


def assert_close(results, truth, bound, bound_of_q=1e-7):
    for result, exact, limit in zip(results, truth, (bound, bound_of_q, bound), strict=True):
        assert relative(result, exact) <= limit


class TestPlan:
    def test_problem_73(self):
        launch = backward_launch(KERNELBENCH_73)
        macros = dict(launch.macros)
        assert (launch.grid, launch.block) == ((132, 1, 1), (384, 1, 1))
        assert launch.shared <= EMULATED.shared_limit
        assert [macros[name] for name in ("STRIPS", "STRIP_COLUMNS", "T_BLOCKS", "RAW_ROWS")] == [1, 126, 2, 2]
        assert parts_shape(KERNELBENCH_73) == (132, 64, 80)

    def test_wide_rows_are_cut_into_strips(self):
        for width, strips in ((128, (3, 48, 1)), (224, (2, 112, 2)), (260, (6, 48, 1))):
            macros = dict(backward_launch(Problem(1, 8, 64, 8, width, 3, padding=1)).macros)
            assert tuple(macros[name] for name in ("STRIPS", "STRIP_COLUMNS", "T_BLOCKS")) == strips

    def test_what_is_not_needed_has_no_warps(self):
        assert backward_launch(SMALL, with_t=False).block == backward_launch(SMALL, with_a=False).block == (256, 1, 1)

    @pytest.mark.parametrize(
        ("problem", "words"),
        [
            (Problem(2, 8, 64, 9, 9, 3, stride=2), "stride 1"),
            (Problem(2, 8, 64, 9, 9, 3, dilation=2), "dilation 1"),
            (Problem(2, 8, 64, 9, 9, 3, groups=2), "one group"),
            (Problem(2, 9, 64, 9, 9, 3), "8 input channels"),
            (Problem(2, 8, 65, 9, 9, 3), "64 output channels"),
            (Problem(2, 8, 64, 9, 9, (1, 5)), "3 x 3"),
            (Problem(2, 8, 64, 9, 9, 3, padding=3), "padding"),
            (Problem(2**22, 8, 64, 512, 512, 3), "32 bits"),
        ],
    )
    def test_what_it_does_not_serve(self, problem, words):
        assert words in unserved_by_backward(problem, EMULATED)

    def test_what_it_serves(self):
        assert unserved_by_backward(KERNELBENCH_73, EMULATED) is None
        assert "sm_80" in unserved_by_backward(KERNELBENCH_73, Target("sm_80", 108))
        assert "NCHW" in unserved_by_backward(KERNELBENCH_73, EMULATED, KernelVariant(channels_last=True))


@pytest.mark.parametrize(
    ("problem", "precision", "bound"),
    [
        (Problem(2, 3, 17, 6, 21, 2, padding="same"), "fp32", 1.5e-7),
        (Problem(1, 8, 64, 4, 128, 3, padding=2), "fp32", 1.5e-7),  # two strips
        (Problem(1, 8, 64, 3, 70, 3), "fp32", 1.5e-7),  # two blocks of T
        (Problem(2, 5, 40, 6, 20, (3, 1)), "tf32", 5e-4),
        (Problem(2, 8, 64, 5, 25, (1, 3), padding=(0, 1), dtype=HALF), "fp32", 5e-4),
        (Problem(2, 8, 64, 5, 24, 3, dtype=BRAIN), "fp32", 3e-3),
    ],
    ids=["same", "strips", "two blocks", "tf32", "fp16", "bf16"],
)
def test_shapes_and_dtypes(problem, precision, bound, device):
    variant = KernelVariant(precision, vectors=torch.float32)
    inputs = random_inputs(problem, device, vectors=torch.float32)
    results = Pass(problem, device, multiprocessors=2, variant=variant).run(inputs)
    assert_close(results, expected(problem, inputs), bound)


@pytest.fixture(scope="module")
def inputs(device):
    return random_inputs(SMALL, device)


@pytest.fixture(scope="module")
def truth(inputs):
    return expected(SMALL, inputs)


@pytest.fixture(scope="module")
def results(inputs, device):
    return Pass(SMALL, device).run(inputs)


class TestSmall:
    def test_errors(self, results, truth):
        assert_close(results, truth, 1.4e-7)

    def test_the_average_loss_of_the_tensor_cores_is_compensated(self, results, truth):
        for result, exact in ((results.a, truth.a), (results.t, truth.t)):
            shrink = ((result - exact) * exact).sum() / exact.square().sum()
            assert abs(shrink) < 3e-8

    def test_the_split_into_blocks_changes_no_bit_of_t(self, inputs, results, device):
        for multiprocessors in (1, 3):
            again = Pass(SMALL, device, multiprocessors=multiprocessors).run(inputs)
            assert torch.equal(again.t, results.t)
            assert relative(again.a, results.a) < 2e-7

    @pytest.mark.parametrize("needed", ["a", "t"])
    def test_one_alone_has_the_same_bits(self, needed, inputs, results, device):
        alone = Pass(SMALL, device, with_a=needed == "a", with_t=needed == "t").run(inputs)
        for name in Results._fields:
            result = getattr(alone, name)
            assert (result is None) == ((name == "t") != (needed == "t"))
            assert result is None or torch.equal(result, getattr(results, name))

    def test_without_gamma(self, inputs, device):
        inputs = inputs._replace(gamma=None)
        assert_close(Pass(SMALL, device).run(inputs), expected(SMALL, inputs), 1.4e-7)

    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_numbers_far_from_one(self, scale, inputs, truth, device):
        results = Pass(SMALL, device).run(inputs._replace(dy=inputs.dy * scale))
        assert_close((result / scale for result in results), truth, 1.5e-7, 2e-7)

    def test_filters_of_input_channels_far_from_each_other(self, inputs, device):
        decades = 10.0 ** torch.linspace(-4, 4, 8, device=device)[:, None, None]
        inputs = inputs._replace(weight=inputs.weight * decades)
        t, exact = Pass(SMALL, device, with_a=False).run(inputs).t, expected(SMALL, inputs).t
        assert all(relative(t[:, c], exact[:, c]) <= 1.4e-7 for c in range(8))

    def test_rows_of_zeros(self, inputs, device):
        dy = inputs.dy.clone()
        dy[:, :, 2:4] = 0.0
        dy[1] = 0.0
        inputs = inputs._replace(dy=dy)
        results = Pass(SMALL, device, multiprocessors=2).run(inputs)
        assert_close(results, expected(SMALL, inputs), 1.4e-7)
        assert not results.t[1].any()

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_not_finite_where_the_formula_is_not(self, value, inputs, device):
        dy = inputs.dy.clone()
        dy[1, 5, 3, 7] = value
        inputs = inputs._replace(dy=dy)
        results, exact = Pass(SMALL, device, multiprocessors=2).run(inputs), expected(SMALL, inputs)
        for result, truth in zip(results, exact, strict=True):
            assert torch.equal(result.isfinite(), truth.isfinite())
        assert torch.equal(results.q.isnan(), exact.q.isnan())
        finite = [
            (result[truth.isfinite()], truth[truth.isfinite()]) for result, truth in zip(results, exact, strict=True)
        ]
        assert_close(*zip(*finite, strict=True), 1.4e-7)

    def test_a_pixel_of_each_row_decides_its_scale(self, inputs, device):
        dy = inputs.dy.clone()
        dy[:, 3, :, 5] *= 1e6
        inputs = inputs._replace(dy=dy)
        assert_close(Pass(SMALL, device).run(inputs), expected(SMALL, inputs), 2e-7, 2e-7)


@needs_emulator
def test_counts_and_nothing_to_find():
    from fusedref.emulator import watch

    inputs = random_inputs(SMALL)
    moments = moments_of(SMALL, inputs.x)
    one = Pass(SMALL, torch.device("cpu"), multiprocessors=1)
    with watch() as seen:
        one.run(inputs, moments)
    assert [finding.message for finding in seen.findings] == []
    counters = seen.counters["backward"]
    assert counters.bank_conflicts == 0
    assert counters.global_store_bytes_used == 4 * (inputs.x.numel() + 64 * 80)
    # One block reads dy and x once. Where rows are no whole atoms of 16 bytes, neighbours share one.
    rows = SMALL.batch * 64 * SMALL.out_height
    parameters = 2 * inputs.weight.numel() + 2 * 64  # weights are read for their scales, then again
    others = 4 * (inputs.x.numel() + parameters) + 16 * 8
    dy = counters.global_load_bytes_used - others
    assert 4 * inputs.dy.numel() <= dy <= 4 * inputs.dy.numel() + 16 * rows


@nvcc.needs_nvcc
@pytest.mark.parametrize("with_t", [True, False], ids=["with T", "without T"])
def test_it_compiles_without_spills(with_t, tmp_path):
    launch = backward_launch(KERNELBENCH_73, with_t=with_t)
    report = nvcc.report(launch.source, tmp_path, "90a", launch.options)
    nvcc.assert_no_spills(report)
