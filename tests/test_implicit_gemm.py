"""implicit_gemm.cu: its plans, shapes, errors, ranges and counts, and planted bugs that must be found."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedref import Problem, fused_conv_bn_scale, plan
from fusedref.csrc import INFERENCE
from fusedref.emulator import watch
from fusedref.ops.runner import run_plan, target_of
from fusedref.plans import KernelVariant, gemm_tiles, implicit_gemm_plan, own_plan_for
from fusedref.problem import ELEMENTS
from fusedref.reference import oracle
from fusedref.target import Target
from fusedref.validation import compare, random_inputs
from tests import nvcc
from tests.nvcc import ARCHITECTURES, assert_no_spills, needs_nvcc
from tests.sources import inlined
from tests.strategies import compiling, options
from tests.tensor_cores import (
    NOT_FINITE,
    TENSORS,
    assert_errors_are_those_of_float32,
    assert_not_finite_where_the_formula_is,
    convolution,
    folded,
    roundings,
    run_text,
    shown,
)
from tests.tiles import needs_emulator

SOURCE = INFERENCE / "implicit_gemm.cu"
SMALL = Problem(1, 16, 24, 6, 10, 3, padding=1)  # two chunks of input channels, two blocks of output channels


def gemm_plan(problem, variant=KernelVariant(), multiprocessors=2, architecture="sm_90a", **wanted):
    """Return the plan of this kernel, with the best tile that has the ``wanted`` properties."""
    tiles = gemm_tiles(problem, Target(architecture, multiprocessors), variant)
    tiles = [tile for tile in tiles if all(getattr(tile, name) == value for name, value in wanted.items())]
    return implicit_gemm_plan(problem, min(tiles, key=lambda tile: tile.cycles), variant)


def gemm(problem, inputs, variant=KernelVariant(), **wanted):
    chosen = gemm_plan(problem, variant, **wanted)
    return run_plan(chosen, problem, inputs)


def assert_right(problem, device, variant=KernelVariant(), **wanted):
    inputs = random_inputs(problem, 0, device, variant.vectors)
    y = gemm(problem, inputs, variant, **wanted)
    case = compare("", problem, inputs, y, precision=variant.precision)
    assert case.ok, (problem, case.reasons)
    return case


class TestPlan:
    @pytest.mark.parametrize("architecture", ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"])
    def test_every_card_since_sm_80(self, architecture):
        problem = Problem(32, 64, 64, 56, 56, 3, padding=1)
        chosen = own_plan_for(problem, Target(architecture, 100), KernelVariant())
        assert chosen.kernel == "implicit_gemm"
        assert "pipeline" in chosen.reason
        assert chosen.launches[0].shared <= 1024 * (99 if architecture in ("sm_86", "sm_89", "sm_120") else 227)

    @pytest.mark.parametrize(
        ("problem", "architecture", "words"),
        [
            (Problem(32, 64, 64, 56, 56, 3), "sm_75", "sm_75 cannot"),
            (Problem(32, 128, 64, 56, 56, 3, groups=64), "sm_80", "8 output channels"),
            (Problem(32, 3, 64, 56, 56, 3), "sm_80", "36 products"),
            (Problem(1, 8, 64, 2**14, 2**14, 3), "sm_80", "elements of an image"),
            (Problem(2**20, 8, 64, 40, 40, 3), "sm_80", "tiles in 32 bits"),
            (Problem(1, 8, 64, 900, 900, 30, dilation=30), "sm_80", "shared memory"),
        ],
        ids=str,
    )
    def test_what_it_does_not_serve(self, problem, architecture, words):
        chosen = plan(problem, architecture)
        assert chosen.kernel == "folded"
        assert words in chosen.reason

    def test_tensors_of_halves_may_have_few_products(self):
        assert plan(Problem(32, 2, 64, 56, 56, 3, dtype=torch.float16), "sm_80").kernel == "implicit_gemm"
        assert plan(Problem(32, 2, 64, 56, 56, 3), "sm_80", precision="tf32").kernel == "implicit_gemm"

    def test_windows_of_one_pixel_see_planes_as_rows(self):
        assert dict(plan(Problem(2, 64, 64, 7, 9, 1)).launches[0].macros)["WIDTH"] == 63
        assert dict(plan(Problem(2, 64, 64, 7, 9, 1, padding=1)).launches[0].macros)["WIDTH"] == 9

    def test_it_is_what_the_package_runs(self, device):
        inputs = random_inputs(SMALL, 3, device)
        chosen = plan(SMALL, *target_of(device)[:2])
        assert chosen.kernel == "implicit_gemm"
        expected = run_plan(chosen, SMALL, inputs)
        assert fused_conv_bn_scale(*inputs, **options(SMALL)).equal(expected)


SHAPES = {
    "one pixel": (Problem(1, 64, 16, 3, 3, 3), {}),
    "few channels share a row": (Problem(2, 3, 20, 15, 11, 7, padding=3, stride=2), {}),
    "a single channel": (Problem(3, 1, 9, 7, 9, (2, 3), padding=(0, 2)), {}),
    "channels that fill no chunk": (Problem(2, 19, 20, 9, 11, 3, stride=(2, 1)), {"warp_channels": 32}),
    "weights that stay": (Problem(3, 20, 40, 8, 9, 3, padding=1), {"slots": 3, "chunk": 8, "multiprocessors": 1}),
    "one product of pixels": (Problem(3, 40, 24, 5, 9, 1), {"down": 2}),
    "dilation and groups": (Problem(2, 24, 32, 9, 8, (3, 2), padding=2, groups=2, dilation=(2, 3)), {}),
    "strides beyond the window": (Problem(1, 9, 16, 13, 14, (2, 1), stride=(3, 4)), {}),
}
KINDS = {
    "tf32": (KernelVariant("tf32"), torch.float32),
    "channels last": (KernelVariant(channels_last=True), torch.float32),
    "fp16": (KernelVariant(vectors=torch.float32), torch.float16),
    "bf16 channels last": (KernelVariant(channels_last=True), torch.bfloat16),
}


class TestShapes:
    @pytest.mark.parametrize(("problem", "wanted"), SHAPES.values(), ids=SHAPES)
    def test_kinds_of_shape(self, device, problem, wanted):
        assert_right(problem, device, **wanted)

    @pytest.mark.parametrize(("variant", "dtype"), KINDS.values(), ids=KINDS)
    def test_kinds_of_tensor(self, device, variant, dtype):
        assert_right(Problem(2, 12, 20, 7, 9, (2, 3), padding=1, stride=(1, 2), dtype=dtype), device, variant)

    def test_an_empty_batch(self, device):
        problem = dataclasses.replace(SMALL, batch=0)
        assert gemm(problem, random_inputs(problem, 0, device)).shape == problem.output_shape

    @settings(compiling, max_examples=4)
    @given(st.data())
    def test_any_shape(self, device, data):
        def number(low, high):
            return data.draw(st.integers(low, high))

        kernel, dilation = (number(1, 4), number(1, 7)), (number(1, 2), number(1, 2))
        span = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        height, width = (part + number(1, most) for part, most in zip(span, (12, 20), strict=True))
        groups = number(1, 2)
        problem = Problem(
            number(1, 3), groups * number(1, 20), groups * number(1, 40), height, width, kernel,
            stride=(number(1, 3), number(1, 3)), padding=(number(0, 2), number(0, 2)), dilation=dilation, groups=groups,
            bias=data.draw(st.booleans()), dtype=data.draw(st.sampled_from(ELEMENTS)),
        )  # fmt: skip
        precision = data.draw(st.sampled_from(["fp32", "tf32"])) if problem.dtype == torch.float32 else "fp32"
        assert_right(problem, device, KernelVariant(precision, channels_last=data.draw(st.booleans())))

    @pytest.mark.parametrize("missing", ["bias", "gamma", "beta"])
    def test_vectors_left_out(self, device, missing):
        inputs = random_inputs(SMALL, 0, device)
        getattr(inputs, missing).fill_(1.0 if missing == "gamma" else 0.0)
        case = compare("", SMALL, inputs, gemm(SMALL, inputs._replace(**{missing: None})))
        assert case.ok, case.reasons

    def test_errors_are_no_larger_than_those_of_a_float32_sum(self, device):
        for problem in (SMALL, Problem(1, 4, 16, 9, 9, 3)):  # the second has the fewest products that are served
            inputs = convolution(*random_inputs(problem, 0, device)[:2])
            truth = oracle(*inputs, **options(problem))
            ours, plain = ((run(problem, inputs).double() - truth).norm().item() for run in (gemm, folded))
            assert ours <= plain
            assert ours <= 1.2e-7 * truth.norm().item()


def exact(problem, inputs, y):
    """Return whether each sum of ``inputs`` without vectors is within eight roundings."""
    truth = oracle(*inputs, **options(problem))
    return bool(((y.double() - truth).abs() <= 8 * roundings(problem, inputs)).all())


def recomputed(problem, inputs):
    """Return the bytes that a launch reads to recompute sums. Check that errors are of eight roundings at most."""
    with watch() as seen:
        y = gemm(problem, inputs)
    assert exact(problem, inputs, y)
    lines = (INFERENCE / "implicit_gemm_store.cuh").read_text().splitlines()
    (slow,) = [number for number, line in enumerate(lines, 1) if "float(image[place_in_x(" in line]
    here = seen.counters["implicit_gemm"].by_line.get(("implicit_gemm_store.cuh", slow))
    return here.global_load_bytes_used if here else 0


class TestRange:
    @pytest.mark.parametrize(
        ("x", "weight"),
        [
            (1e30, 1.0), (1e-30, 1.0), (1e-37, 1e37), (1e-42, 1.0), (1e-45, 1e30), (1.0, 1e-40), (1e-25, 1e-15),
            (1e37, 1e-37), (1e30, 1e30), ("an outlier", 1.0), ("60 decades", 1e-5), (1.0, "12 decades"),
            (1.0, "one channel of 12 decades"), (1.0, "a dead channel"), ("a wall", 1.0), ("halves apart", 1.0),
            ("no first channel", "a heavy first channel"), (0.0, 1.0),
        ],
        ids=str,
    )  # fmt: skip
    def test_errors_are_those_of_float32(self, device, x, weight):
        # Over 60 decades a sum is mostly one product, in which three errors of at most one rounding do not even out:
        # of either factor's last bits, and of lo lo'. The mean square of each is a third, if it is uniform.
        assert_errors_are_those_of_float32(SMALL, gemm, device, x, weight, of_split=1.0 if x == "60 decades" else 0.0)

    @needs_emulator
    def test_only_sums_that_lost_bits_are_recomputed(self):
        inputs = convolution(*random_inputs(SMALL, 0)[:2])
        inputs.x[0, 3, 2, 4] = 1e-12
        inputs.x[0, :, :3, :3] = 1e-18
        assert recomputed(SMALL, inputs) == 0  # tiny elements of x have a scale of their own
        inputs = convolution(*random_inputs(SMALL, 0)[:2])
        inputs.weight[5] = 1e-12
        inputs.weight[5, 0, 0, 0] = 1.0
        # The 15 sums of a channel in which the large weight meets padding read their filter and 84 pixels.
        assert recomputed(SMALL, inputs) == 4 * 16 * (15 * 9 + 84)

    @pytest.mark.parametrize("value", NOT_FINITE)
    @pytest.mark.parametrize("name", TENSORS)
    def test_nan_and_infinity(self, device, name, value):
        assert_not_finite_where_the_formula_is(SMALL, gemm, random_inputs(SMALL, 0, device), name, value)

    @pytest.mark.parametrize("name", ["x", "weight"])
    def test_infinities_of_halves(self, device, name):
        problem = dataclasses.replace(SMALL, in_channels=2, dtype=torch.float16)  # taps share rows
        inputs = random_inputs(problem, 0, device)
        limits = {"place": 3, "rtol": 1e-3, "atol": 2e-3}
        assert_not_finite_where_the_formula_is(problem, gemm, inputs, name, math.inf, **limits)


PUT = "put(&run[c][pixel], channel + c, row, column);"
AGAIN = "find_range_below(shared, left);"
FIND, PREPARE = "find_ranges(shared, new_weights);", "prepare(shared, new_weights, slot, left);"
PLANTED = {
    "the cross terms are left out": ("PIECES == 2 ? 1 / LO_SCALE", "PIECES == 2 ? 0.0f", "result"),
    "a chunk is not waited for": ("ptx::cp_async_wait<0>();", "", "missing-wait"),
    "rows are overwritten while they are read":
        (FIND + "\n            __syncthreads();", FIND, "race"),
    "rows are read before they are written":
        (PREPARE + "\n                __syncthreads();", PREPARE, "race"),
    "a pass begins while rows are read": (AGAIN + "\n                    __syncthreads();", AGAIN, "race"),
    "what is left of x stays left": ("while (left != 0)", "while (false)", "result"),
    "a run is overwritten while it is stored": (PUT + "\n            __syncwarp();", PUT, "race"),
    "sums that lost bits stay": ("range.splits() ? unscale : -unscale", "unscale", "result"),
    "a sum that is not finite stays": ("const bool plain = SCALED &&", "const bool plain = false &&", "result"),
    "channels beyond the last are loaded":
        ("(GROUP_IN % CHUNK == 0 || first + channel < GROUP_IN)", "true", "out-of-bounds"),
    "the weights of the second chunk never come": ("(!later_tile && next > 0)", "false", "result"),
}  # fmt: skip
CAUGHT = Problem(2, 12, 20, 8, 9, 3)


def what_shows(text):
    """Return the faults that a launch with several tiles per block and wide ranges finds in the text."""
    chosen = gemm_plan(CAUGHT, multiprocessors=1, chunk=8, slots=2, across=4, warp_channels=16, down=1)

    def run():
        inputs = convolution(*random_inputs(CAUGHT, 0)[:2])
        inputs.x[1, :, :, 5:] *= 1e12
        inputs.x[0, 0] = 0.0
        inputs.weight[3, 1:] *= 1e-12
        return set() if exact(CAUGHT, inputs, run_text(text, chosen, CAUGHT, inputs)) else {"result"}

    return shown(run)


@needs_emulator
class TestPlantedBugs:
    def test_nothing_is_planted(self):
        assert what_shows(inlined(SOURCE)) == set()

    @pytest.mark.parametrize("name", PLANTED)
    def test_it_shows(self, name):
        right, wrong, expected = PLANTED[name]
        text = inlined(SOURCE)
        assert text.count(right) == 1
        assert expected in what_shows(text.replace(right, wrong))


@needs_emulator
@pytest.mark.parametrize("stride", [1, 2])
def test_no_bank_conflicts_where_products_read(stride):
    problem = Problem(1, 8, 16, 8 * stride + 2, 16 * stride + 2, 3, stride=stride)
    with watch() as seen:
        gemm(problem, random_inputs(problem, 0), rows=8, columns=16, warp_channels=16)
    assert seen.findings == []
    counters = seen.counters["implicit_gemm"]
    seen_lines = set()
    for (file, number), here in counters.by_line.items():
        if not file.startswith("implicit_gemm"):
            continue
        line = (INFERENCE / file).read_text().splitlines()[number - 1].strip()
        if "ldmatrix_x4(" in line or "<float2*>(&run" in line or "const SumUnit values" in line:
            seen_lines.add(line)
            assert here.shared_load_bank_conflicts == 0, line
            assert here.shared_store_bank_conflicts == 0, line
    assert len(seen_lines) >= 4
    assert counters.global_store_sectors == 16 * 8 * 16 / 8  # whole sectors, not one more than there are


@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES[1:])
@pytest.mark.parametrize("warp_channels", [16, 32])
def test_compiles_without_spills(architecture, warp_channels, tmp_path):
    problem = Problem(32, 64, 64, 56, 56, 3, padding=1)
    chosen = gemm_plan(problem, architecture=f"sm_{architecture}", warp_channels=warp_channels)
    assert_no_spills(nvcc.report(SOURCE, tmp_path, architecture, chosen.launches[0].options))


FAMILY = [
    Problem(32, 3, 64, 224, 224, 7, stride=2, padding=3),
    Problem(32, 64, 256, 56, 56, 1),
    Problem(32, 64, 64, 56, 56, 3, padding=1),
    Problem(8, 64, 64, 64, 64, 3, padding=2, dilation=2),
    Problem(7, 5, 33, 61, 47, 3, padding=1),
    Problem(1, 32, 64, 112, 112, 3, stride=2, padding=1),
]


@pytest.mark.gpu
@pytest.mark.parametrize("problem", FAMILY, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_family_at_full_size(device, problem, channels_last):
    inputs = random_inputs(problem, 0, device)
    if channels_last:
        inputs = inputs._replace(x=inputs.x.contiguous(memory_format=torch.channels_last))
    y = fused_conv_bn_scale(*inputs, **options(problem))
    case = compare("", problem, inputs, y)
    assert case.ok, case.reasons
    assert all(fused_conv_bn_scale(*inputs, **options(problem)).equal(y) for _ in range(5))


@pytest.mark.gpu
def test_memory_that_is_not_aligned(device):
    """X and weight begin 4 bytes after a multiple of 16."""
    problem = Problem(2, 64, 64, 8, 16, 3, padding=1)
    inputs = random_inputs(problem, 0, device)
    moved = [torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape) for t in (inputs.x, inputs.weight)]
    inputs = inputs._replace(x=moved[0], weight=moved[1])
    case = compare("", problem, inputs, gemm(problem, inputs))
    assert case.ok, case.reasons
