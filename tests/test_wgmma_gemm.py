"""wgmma_gemm.cu: its tiles, shapes, errors, ranges and counts, and planted bugs that must be found."""

import dataclasses
import math

import pytest
import torch

from fusedref import Problem
from fusedref.csrc import INFERENCE
from fusedref.emulator import watch
from fusedref.ops.runner import run_plan
from fusedref.plans.variant import KernelVariant
from fusedref.plans.wgmma_gemm import unserved_by_wgmma_gemm, wgmma_gemm_plan, wgmma_tiles
from fusedref.reference import oracle
from fusedref.target import Target
from fusedref.validation import compare, random_inputs
from tests import nvcc
from tests.nvcc import assert_no_spills, needs_nvcc
from tests.sources import inlined
from tests.strategies import options
from tests.tensor_cores import (
    assert_errors_are_those_of_float32,
    assert_not_finite_where_the_formula_is,
    convolution,
    folded,
    shown,
)
from tests.tiles import needs_emulator

HOPPER = Target("sm_90a", 1)
SMALL = Problem(1, 32, 72, 6, 10, 3, padding=1)  # two chunks of input channels, two blocks of output channels
POINTWISE = Problem(3, 40, 24, 6, 10, 1)  # images that share a tile, and a chunk that is not full

# On a card other than sm_90a there is no wgmma; the emulator has it.
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0), reason="wgmma is sm_90a's"
)


def wgmma_plan(problem, variant=KernelVariant(), **wanted):
    """Return the plan of this kernel, with the best tile that has the ``wanted`` properties."""
    tiles = wgmma_tiles(problem, HOPPER, variant)
    tiles = [tile for tile in tiles if all(getattr(tile, name) == value for name, value in wanted.items())]
    return wgmma_gemm_plan(problem, min(tiles, key=lambda tile: tile.cycles), HOPPER, variant)


def wgmma(problem, inputs, variant=KernelVariant(), **wanted):
    return run_plan(wgmma_plan(problem, variant, **wanted), problem, inputs)


def small(problem, inputs):
    """Return y of SMALL, or of POINTWISE with the block's own conversion, always by the same kernels."""
    return wgmma(problem, inputs, chunk=16, pixels=64, direct=problem == POINTWISE)


class TestPlan:
    @pytest.mark.parametrize(
        ("problem", "architecture", "words"),
        [
            (SMALL, "sm_80", "which sm_90a has and sm_80 has not"),
            (Problem(32, 64, 64, 56, 56, 3, groups=2), "sm_90a", "one group"),
            (Problem(32, 8, 64, 56, 56, 3), "sm_90a", "16 input or output channels"),
            (Problem(1, 64, 64, 2**13, 2**13, 3), "sm_90a", "elements of an image"),
            (Problem(1, 64, 64, 300, 300, 30, dilation=10), "sm_90a", "shared memory"),
        ],
        ids=str,
    )
    def test_what_it_does_not_serve(self, problem, architecture, words):
        assert words in unserved_by_wgmma_gemm(problem, Target(architecture, 132))

    @pytest.mark.parametrize(
        ("problem", "pitch", "rows"),
        [
            (Problem(2, 16, 16, 7, 7, 3, padding=1), 8, 8),  # one column of zeros serves two rows
            (Problem(2, 16, 16, 7, 9, 3), 9, 7),  # no padding: the last two columns are no outputs
            (Problem(2, 16, 16, 8, 8, 3, padding=1, stride=2), 5, 5),
            (Problem(2, 16, 16, 8, 8, 1, stride=2), 4, 4),
            (Problem(2, 16, 16, 9, 9, 3, padding=2, dilation=2), 11, 11),
        ],
        ids=str,
    )
    def test_rows_are_so_far_apart_that_taps_read_zeros_between_them(self, problem, pitch, rows):
        tile = next(tile for tile in wgmma_tiles(problem, HOPPER) if tile.strip == problem.out_width)
        assert (tile.pitch, tile.plane_rows) == (pitch, rows)


SHAPES = {
    "two blocks of channels": (SMALL, {"chunk": 16, "pixels": 64}, KernelVariant()),
    "strides and strips": (
        Problem(2, 19, 40, 9, 11, (3, 2), stride=(2, 1), padding=(1, 0)),
        {"strip": 5, "chunk": 16, "pixels": 64},
        KernelVariant(),
    ),
    "dilation, runs of their own, channels last, tf32": (
        Problem(1, 16, 70, 9, 10, 3, dilation=(1, 2), padding=(0, 2)),
        {"merged": False, "pixels": 64, "down": 2},
        KernelVariant("tf32", channels_last=True),
    ),
    "converted by the block": (POINTWISE, {"chunk": 16, "direct": True, "pixels": 64}, KernelVariant()),
    "halves": (
        Problem(3, 40, 24, 8, 9, 1, dtype=torch.bfloat16),
        {"chunk": 16, "direct": True, "pixels": 64},
        KernelVariant(vectors=torch.float32),
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_kinds_of_shape(device, name):
    problem, wanted, variant = SHAPES[name]
    inputs = random_inputs(problem, 0, device, variant.vectors)
    case = compare("", problem, inputs, wgmma(problem, inputs, variant, **wanted), precision=variant.precision)
    assert case.ok, case.reasons


@pytest.mark.parametrize("problem", [SMALL, POINTWISE], ids=["prepared", "direct"])
class TestNumbers:
    def test_errors_are_no_larger_than_those_of_a_float32_sum(self, device, problem):
        inputs = convolution(*random_inputs(problem, 0, device)[:2])
        truth = oracle(*inputs, **options(problem))
        ours, plain = ((run(problem, inputs).double() - truth).norm().item() for run in (small, folded))
        assert ours <= plain
        assert ours <= 1.2e-7 * truth.norm().item()

    @pytest.mark.parametrize(
        ("x", "weight"),
        [
            (1e-37, 1e37), (1e-42, 1.0), (1e30, 1e30), ("an outlier", 1.0), ("60 decades", 1e-5), (1.0, "12 decades"),
            ("a wall", 1.0), ("no first channel", "a heavy first channel"), (0.0, 1.0),
        ],
        ids=str,
    )  # fmt: skip
    def test_errors_are_those_of_float32(self, device, problem, x, weight):
        assert_errors_are_those_of_float32(problem, small, device, x, weight)

    @pytest.mark.parametrize(("name", "value"), [("x", math.nan), ("x", -math.inf), ("weight", math.inf)])
    def test_nan_and_infinity(self, device, problem, name, value):
        assert_not_finite_where_the_formula_is(problem, small, random_inputs(problem, 0, device), name, value)

    @needs_emulator
    def test_a_tiny_number_makes_only_small_sums_doubtful(self, problem):
        inputs = convolution(*random_inputs(problem, 0)[:2])
        inputs.x[0, 3, 2, 4] = 1e-12
        with watch() as seen:
            small(problem, inputs)
        assert plain_sums(seen) == 0
        inputs.x[0, :, :2, :3] = 0.0
        inputs.x[0, 5, 0, 0] = 1e-12
        with watch() as seen:
            y = small(problem, inputs)
        assert plain_sums(seen) > 0
        assert seen.findings == []
        truth = oracle(*inputs, **options(problem))
        assert (y.double() - truth)[0, :, 0, 0].norm() <= 3e-7 * truth[0, :, 0, 0].norm()


def plain_sums(seen):
    """Return how often the sums in plain float32 load x."""
    lines = (INFERENCE / "wgmma_gemm_store.cuh").read_text().splitlines()
    (slow,) = [number for number, line in enumerate(lines, 1) if "float(image[place_in_x(" in line]
    here = seen.counters["wgmma_gemm"].by_line.get(("wgmma_gemm_store.cuh", slow))
    return here.global_load_requests if here else 0


@needs_emulator
def test_no_bank_conflicts():
    problem = Problem(2, 32, 64, 8, 16, 1)
    with watch() as seen:
        wgmma(problem, random_inputs(problem, 0), chunk=16, pixels=64, direct=True)
    assert seen.findings == []
    counters = seen.counters["wgmma_gemm"]
    assert counters.shared_load_bank_conflicts == counters.shared_store_bank_conflicts == 0


PLANTED = {
    "the cross terms are left out": ("PIECES == 2 ? 1 / LO_SCALE", "PIECES == 2 ? 0.0f", "result"),
    "the doubt is forgotten": ("fabsf(sum[k]) >= doubt[k / 2 % 2] &&", "", "result"),
    "wgmma does not see what was converted": ("ptx::fence_async_shared();", "", "race"),
}  # fmt: skip


def what_shows(text):
    """Return the faults that a launch of this text of the kernel finds, with a tile that has a small sum in doubt."""
    chosen = wgmma_plan(POINTWISE, chunk=16, direct=True, pixels=64)
    changed = dataclasses.replace(chosen.launches[1], source=text, grid=(1, 1, 1))
    inputs = convolution(*random_inputs(POINTWISE, 0)[:2])
    inputs.x[0, :, 0] *= 1e-12

    def run():
        y = run_plan(dataclasses.replace(chosen, launches=(chosen.launches[0], changed)), POINTWISE, inputs)
        truth = oracle(*inputs, **options(POINTWISE))
        wrong = ((y.double() - truth)[0, :, 0].norm() > 3e-7 * truth[0, :, 0].norm()).item()
        return {"result"} if wrong or not compare("", POINTWISE, inputs, y).ok else set()

    return shown(run)


@needs_emulator
class TestPlantedBugs:
    def test_nothing_is_planted(self):
        assert what_shows(inlined(INFERENCE / "wgmma_gemm.cu")) == set()

    @pytest.mark.parametrize("name", PLANTED)
    def test_it_shows(self, name):
        right, wrong, expected = PLANTED[name]
        text = inlined(INFERENCE / "wgmma_gemm.cu")
        assert text.count(right) == 1
        assert expected in what_shows(text.replace(right, wrong))


@needs_nvcc
@pytest.mark.parametrize("launch", [0, 1], ids=["prepare", "multiply"])
def test_compiles_without_spills(launch, tmp_path):
    chosen = wgmma_plan(Problem(32, 128, 128, 28, 28, 3, padding=1), chunk=32, direct=launch == 1).launches[launch]
    assert_no_spills(nvcc.report(chosen.source, tmp_path, "90a", chosen.options))
