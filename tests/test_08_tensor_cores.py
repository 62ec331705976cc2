"""Rung 08: the products on the tensor cores, in tf32."""

import pytest

from fusedref import KERNELBENCH_73, Problem, validate
from fusedref.problem import SMALL_73
from fusedref.reference import oracle
from kernels import ladder
from tests.nvcc import ARCHITECTURES, assert_no_spills, needs_nvcc
from tests.tiles import at, compiled, findings, needs_emulator, refused, watched
from tests.whole_numbers import inputs

RUNG = next(rung for rung in ladder.LADDER if rung.number == 8)
TILE = 1, 8, 64, 8, 66, 3  # exactly one tile of 6 x 64 outputs and 64 channels


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1, 1), (2, 3, 70, 9, 68, 3), (1, 20, 17, 12, 7, 1), (2, 9, 5, 4, 9, 2)])
def test_is_the_operator(device, sizes):
    """Small whole numbers are whole in tf32 too."""
    arguments = inputs(*sizes, device=device)
    assert RUNG.candidate(*arguments).equal(oracle(*arguments).float())


def test_without_bias_gamma_and_beta(device):
    x, weight, _, mean, var, _, _, scaling_factor, eps = inputs(2, 3, 70, 9, 68, 3, device=device)
    arguments = x, weight, None, mean, var, None, None, scaling_factor, eps
    assert RUNG.candidate(*arguments).equal(oracle(*arguments).float())


def test_the_rung_validates_at_its_precision_alone(device):
    report = validate(RUNG.candidate, SMALL_73, precision=RUNG.precision, device=device)
    assert report.ok, str(report)
    assert 1e-4 < report.relative_l2 < 4e-4, str(report)
    assert RUNG.precision == "tf32"
    assert not validate(RUNG.candidate, SMALL_73, device=device).ok


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("HALO_H = TILE_H + KERNEL_SIZE - 1", "HALO_H = TILE_H + KERNEL_SIZE - 2"),
        ("lane / 16 * GROUP + warp_first + lane % 16", "lane / 8 % 2 * GROUP + warp_first + lane / 16 * 8 + lane % 8"),
        ("[lane / 8 % 2][corner + n * 8 + lane / 16 * 8", "[lane / 16][corner + n * 8 + lane / 8 % 2 * 8"),
        ("group + half * 8;\n            if", "group * 2 + half;\n            if"),
        ("n * 8 + member * 2;", "n * 8 + member;"),
        ("tap % KERNEL_SIZE;", "tap / KERNEL_SIZE;"),
        ("top + line < OUT_HEIGHT;", "true;"),
        ("if (column + 1 < OUT_WIDTH) out", "out"),
    ],
)
def test_a_planted_bug_is_refused(device, plant, right, wrong):
    plant("08_tensor_cores.cu", right, wrong)
    assert refused(RUNG, device)


def test_without_a_bug_it_is_not_refused(device):
    assert not refused(RUNG, device)


@needs_emulator
def test_a_missing_barrier_is_a_race(plant):
    plant("08_tensor_cores.cu", "__syncthreads();", "")
    assert "race" in {finding.kind for finding in findings(RUNG.candidate, *TILE)}


@needs_emulator
def test_memory_requests():
    counters = watched(RUNG.candidate, *TILE)
    x = at(counters, RUNG.candidate, "ptx::to_tf32(real ? x[")
    assert (x.global_load_requests, x.global_load_sectors) == (8 * 8 * 66 / 32, 4 * 8 * 8 * 66 / 32)
    for text in ("ldmatrix_x4(w,", "ldmatrix_x4(v,"):
        assert at(counters, RUNG.candidate, text).shared_load_requests > 0
    assert counters.shared_load_bank_conflicts == 0
    assert at(counters, RUNG.candidate, "make_uint4(v").shared_store_bank_conflicts == 0
    stores = at(counters, RUNG.candidate, "__stwb(")
    assert (stores.global_store_requests, stores.global_store_sectors) == (6 * 64 * 64 / 64, 6 * 64 * 64 / 8)
    assert counters.barriers == 1


def test_what_does_not_fit_is_refused(device):
    assert RUNG.fits(KERNELBENCH_73)
    assert RUNG.fits(Problem(1, 24, 64, 9, 9, 1))
    assert not RUNG.fits(Problem(1, 9, 1, 9, 9, 3))
    with pytest.raises(ValueError, match="tensor_cores needs 70944 bytes of shared memory for 9 input channels"):
        RUNG.candidate(*inputs(1, 9, 1, 9, 9, 3, device=device))


@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_without_spills(architecture, tmp_path):
    if architecture == "75":
        pytest.skip("tensor cores multiply in tf32 from sm_80 on")
    assert_no_spills(compiled(RUNG.candidate, KERNELBENCH_73, architecture, tmp_path))
