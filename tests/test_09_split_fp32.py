"""Rung 09: every number is split into two of fp16, and tensor cores reach the accuracy of fp32."""

import pytest
import torch

from fusedref import KERNELBENCH_73, Problem, validate
from fusedref.problem import SMALL_73
from fusedref.reference import oracle
from fusedref.validation import compare, random_inputs
from kernels import ladder
from tests.nvcc import ARCHITECTURES, assert_no_spills, needs_nvcc, shared_bytes
from tests.tiles import at, compiled, findings, needs_emulator, refused, watched
from tests.whole_numbers import inputs

RUNG = next(rung for rung in ladder.LADDER if rung.number == 9)
# Barriers without which threads race: the text, and which of its occurrences.
BARRIERS = [
    ("__syncthreads();", 0),
    ("__syncthreads();", 1),
    ("__syncthreads();", 2),
    ("__syncwarp();", 0),
    ("__syncwarp();", 1),
]
TILE = 1, 8, 64, 8, 66, 3  # exactly one tile of 6 x 64 outputs and 64 channels


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1, 1), (2, 3, 70, 9, 68, 3), (1, 16, 17, 12, 7, 1), (2, 5, 5, 4, 9, 2)])
def test_is_the_operator(device, sizes):
    arguments = inputs(*sizes, device=device)
    assert RUNG.candidate(*arguments).equal(oracle(*arguments).float())


def test_without_bias_gamma_and_beta(device):
    x, weight, _, mean, var, _, _, scaling_factor, eps = inputs(2, 3, 70, 9, 68, 3, device=device)
    arguments = x, weight, None, mean, var, None, None, scaling_factor, eps
    assert RUNG.candidate(*arguments).equal(oracle(*arguments).float())


def test_the_rung_validates_in_fp32(device):
    report = validate(RUNG.candidate, SMALL_73, device=device)
    assert report.ok, str(report)
    assert report.relative_l2 < 1.3e-7, str(report)


@pytest.mark.parametrize(("x_scale", "w_scale"), [(1e30, 1e-20), (1e-30, 1e25), (1e36, 1e-36), (1e-38, 1.0)])
def test_any_scale_is_served(device, x_scale, w_scale):
    problem = Problem(1, 8, 16, 8, 20, 3)
    x, weight, *_rest = random_inputs(problem, 0, device)
    given = random_inputs(problem, 0, device)._replace(x=x * x_scale, weight=weight * w_scale)
    case = compare("", problem, given, RUNG.candidate(*given))
    assert case.ok, str(case)


def test_numbers_of_many_magnitudes_are_served(device):
    problem = Problem(1, 8, 16, 8, 20, 3)
    given = random_inputs(problem, 0, device)
    decades = torch.arange(8, device=device) - 7.0  # of each input channel: 1e-7 to 1
    given = given._replace(x=given.x * 10.0 ** decades[:, None, None])
    case = compare("", problem, given, RUNG.candidate(*given))
    assert case.ok, str(case)


def test_zeros_are_served(device):
    x, *rest = inputs(1, 3, 4, 5, 6, 3, device=device)
    arguments = x * 0, *rest
    assert RUNG.candidate(*arguments).equal(oracle(*arguments).float())


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("1 / LO_SCALE, sum", "0.0f, sum"),  # the small terms dropped
        ("w[s][2], w[s][3], w[s][0], w[s][1], v[s][hi]", "w[s][0], w[s][1], w[s][2], w[s][3], v[s][hi]"),
        ("lo = __float2half_rn((v - __half2float(hi)) * LO_SCALE);", "lo = __float2half_rn(0.0f);"),
        ("split(k < K ? ", "split(k < K - 1 ? "),
        ("lane / 8 % 2] + (line", "lane / 16] + (line"),
        ("HALO_H = TILE_H + KERNEL_SIZE - 1", "HALO_H = TILE_H + KERNEL_SIZE - 2"),
        ("return min(14 + 127", "return min(16 + 127"),  # fp16 overflows
        ("if (column < OUT_WIDTH)\n", ""),
        ("top + line < OUT_HEIGHT;", "true;"),
        ("const int x_shift = shift_of(largest);", "const int x_shift = shift_of(most);"),
    ],
)
def test_a_planted_bug_is_refused(device, plant, right, wrong):
    plant("09_split_fp32.cu", right, wrong)
    assert refused(RUNG, device)


def test_without_a_bug_it_is_not_refused(device):
    assert not refused(RUNG, device)


@needs_emulator
@pytest.mark.parametrize(("barrier", "number"), BARRIERS)
def test_a_missing_barrier_is_a_race(plant, barrier, number):
    plant("09_split_fp32.cu", barrier, "", number)
    assert "race" in {finding.kind for finding in findings(RUNG.candidate, *TILE)}


@needs_emulator
def test_memory_requests():
    counters = watched(RUNG.candidate, *TILE)
    x = at(counters, RUNG.candidate, "real ? x[")
    assert (x.global_load_requests, x.global_load_sectors) == (8 * 17, 4 * 8 * 8 * 66 / 32)  # 17 warps have pixels
    assert counters.shared_load_bank_conflicts == 0
    for text in ("tile[chunk][0][pixel] = ", "*rows[0] = ", "*reinterpret_cast<float2*>(&runs"):
        assert at(counters, RUNG.candidate, text).shared_store_bank_conflicts == 0
    assert counters.global_store_sectors == 4 * 6 * 64 * 64 / 32  # not one more than there are
    assert counters.barriers == 3


@needs_emulator
def test_runs_without_their_margin_would_have_conflicts(plant):
    plant("09_split_fp32.cu", "RUN_W = WARP_W + 8", "RUN_W = WARP_W")
    counters = watched(RUNG.candidate, *TILE)
    assert at(counters, RUNG.candidate, "*reinterpret_cast<float2*>(&runs").shared_store_bank_conflicts > 1000


def test_what_does_not_fit_is_refused(device):
    assert RUNG.fits(KERNELBENCH_73)
    assert RUNG.fits(Problem(1, 16, 64, 9, 9, 1))
    assert not RUNG.fits(Problem(1, 9, 1, 9, 9, 3))
    with pytest.raises(ValueError, match="split_fp32 needs 81968 bytes of shared memory for 9 input channels"):
        RUNG.candidate(*inputs(1, 9, 1, 9, 9, 3, device=device))


@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_without_spills(architecture, tmp_path):
    if architecture == "75":
        pytest.skip("mma multiplies 16 x 16 by 16 x 8 numbers of fp16 from sm_80 on")
    report = compiled(RUNG.candidate, KERNELBENCH_73, architecture, tmp_path)
    assert_no_spills(report)
    assert shared_bytes(report) - RUNG.candidate.declared in (0, 1024)  # 1024 bytes are the system's from sm_90 on
