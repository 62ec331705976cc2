"""Rung 07: 8 channels x 4 pixels in the registers of a thread."""

import pytest

from fusedref import KERNELBENCH_73, Problem, validate
from fusedref.problem import SMALL_73
from fusedref.reference import oracle
from kernels import ladder
from tests.nvcc import ARCHITECTURES, assert_no_spills, needs_nvcc
from tests.tiles import at, compiled, findings, needs_emulator, refused, watched
from tests.whole_numbers import inputs

RUNG = next(rung for rung in ladder.LADDER if rung.number == 7)
TILE = 1, 8, 64, 6, 130, 3  # exactly one tile of 4 x 128 outputs and 64 channels


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1, 1), (2, 3, 70, 9, 133, 3), (2, 2, 17, 12, 6, 4)])
def test_is_the_operator(device, sizes):
    arguments = inputs(*sizes, device=device)
    assert RUNG.candidate(*arguments).equal(oracle(*arguments).float())


def test_without_bias_gamma_and_beta(device):
    x, weight, _, mean, var, _, _, scaling_factor, eps = inputs(2, 3, 70, 9, 133, 3, device=device)
    arguments = x, weight, None, mean, var, None, None, scaling_factor, eps
    assert RUNG.candidate(*arguments).equal(oracle(*arguments).float())


def test_the_rung_validates(device):
    report = validate(RUNG.candidate, SMALL_73, device=device)
    assert report.ok, str(report)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("HALO_H = TILE_H + KERNEL_SIZE - 1", "HALO_H = TILE_H + KERNEL_SIZE - 2"),
        ("[lane + 32 * p + tap % KERNEL_SIZE]", "[lane * 4 + p + tap % KERNEL_SIZE]"),
        ("[warp * CHANNELS + c]", "[c]"),
        ("if (column < OUT_WIDTH) y", "y"),
        ("&& row < OUT_HEIGHT", ""),
        ("sum[c + 3][p] += w.w * pixels[p];", "sum[c + 3][p] += w.z * pixels[p];"),
    ],
)
def test_a_planted_bug_is_refused(device, plant, right, wrong):
    plant("07_register_tile.cu", right, wrong)
    assert refused(RUNG, device)


def test_without_a_bug_it_is_not_refused(device):
    assert not refused(RUNG, device)


@needs_emulator
def test_a_missing_barrier_is_a_race(plant):
    plant("07_register_tile.cu", "__syncthreads();", "")
    assert "race" in {finding.kind for finding in findings(RUNG.candidate, *TILE)}


@needs_emulator
def test_memory_requests():
    counters = watched(RUNG.candidate, *TILE)
    x = at(counters, RUNG.candidate, "inside ? x[")
    assert (x.global_load_requests, x.global_load_sectors) == (8 * 6 * 130 / 32, 4 * 8 * 6 * 130 / 32)
    products = 4 * 4 * 64 * 72  # of a warp
    pixels, weights = (at(counters, RUNG.candidate, text) for text in ("pixels[p] = tile", "&filters[in_channel"))
    assert pixels.shared_load_requests == 4 * products / 32  # 06 requested each of them twice
    assert weights.shared_load_requests == 2 * products / 32
    assert counters.shared_load_requests == 6 * products / 32
    assert counters.shared_load_bank_conflicts == 0
    assert counters.global_store_sectors == 4 * 4 * 4 * 64
    assert counters.barriers == 1


@needs_emulator
def test_a_row_of_64_weights_would_have_conflicts(plant):
    conflicts = watched(RUNG.candidate, *TILE).shared_store_bank_conflicts
    plant("07_register_tile.cu", "FILTERS_W = GROUP + 4", "FILTERS_W = GROUP")
    assert watched(RUNG.candidate, *TILE).shared_store_bank_conflicts > 8 * conflicts


def test_what_does_not_fit_is_refused(device):
    assert RUNG.fits(KERNELBENCH_73)
    assert not RUNG.fits(Problem(1, 9, 1, 9, 9, 3))
    with pytest.raises(ValueError, match="register_tile needs 50112 bytes of shared memory for 9 input channels"):
        RUNG.candidate(*inputs(1, 9, 1, 9, 9, 3, device=device))


@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_without_spills(architecture, tmp_path):
    assert_no_spills(compiled(RUNG.candidate, KERNELBENCH_73, architecture, tmp_path))
