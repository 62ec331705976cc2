"""Rung 06: a tile of inputs in shared memory serves all the outputs of a block."""

import pytest

from fusedref import KERNELBENCH_73, Problem, validate
from fusedref.problem import SMALL_73
from fusedref.reference import oracle
from kernels import ladder
from tests.nvcc import ARCHITECTURES, assert_no_spills, needs_nvcc, shared_bytes
from tests.tiles import at, compiled, findings, needs_emulator, refused, watched
from tests.whole_numbers import inputs

RUNG = next(rung for rung in ladder.LADDER if rung.number == 6)
TILE = 1, 8, 64, 10, 34, 3  # exactly one tile of 8 x 32 outputs


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1, 1), (2, 3, 5, 9, 35, 3), (2, 2, 17, 12, 6, 4)])
def test_is_the_operator(device, sizes):
    arguments = inputs(*sizes, device=device)
    assert RUNG.candidate(*arguments).equal(oracle(*arguments).float())


def test_without_bias_gamma_and_beta(device):
    x, weight, _, mean, var, _, _, scaling_factor, eps = inputs(2, 3, 5, 9, 35, 3, device=device)
    arguments = x, weight, None, mean, var, None, None, scaling_factor, eps
    assert RUNG.candidate(*arguments).equal(oracle(*arguments).float())


def test_the_rung_validates(device):
    report = validate(RUNG.candidate, SMALL_73, device=device)
    assert report.ok, str(report)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("HALO_W = TILE_W + KERNEL_SIZE - 1", "HALO_W = TILE_W + KERNEL_SIZE - 2"),
        ("HALO_H = TILE_H + KERNEL_SIZE - 1", "HALO_H = TILE_H"),
        ("left + tile_column < WIDTH;", "left + tile_column < WIDTH - 1;"),
        ("row < OUT_HEIGHT && column < OUT_WIDTH", "column < OUT_WIDTH"),
        ("first += GROUP) {", "first += GROUP + 1) {"),
        ("first * K + i]", "i]"),
    ],
)
def test_a_planted_bug_is_refused(device, plant, right, wrong):
    plant("06_shared_tile.cu", right, wrong)
    assert refused(RUNG, device)


def test_without_a_bug_it_is_not_refused(device):
    assert not refused(RUNG, device)


@needs_emulator
@pytest.mark.parametrize("number", [0, 1])
def test_a_missing_barrier_is_a_race(plant, number):
    assert findings(RUNG.candidate, *TILE) == []
    plant("06_shared_tile.cu", "__syncthreads();", "", number)
    assert "race" in {finding.kind for finding in findings(RUNG.candidate, *TILE)}


@needs_emulator
def test_memory_requests():
    """Read a tile and the weights once from global memory, and shared memory twice for every multiply-add."""
    counters = watched(RUNG.candidate, *TILE)
    x = at(counters, RUNG.candidate, "inside ? x[")
    assert (x.global_load_requests, x.global_load_sectors) == (8 * 10 * 34 / 32, 4 * 8 * 10 * 34 / 32)
    weight = at(counters, RUNG.candidate, "weight[first * K + i]")
    assert (weight.global_load_requests, weight.global_load_sectors) == (64 * 72 / 32, 4 * 64 * 72 / 32)
    products = 8 * 64 * 72  # of a warp
    assert counters.shared_load_requests == 2 * products
    assert counters.bank_conflicts == 0
    assert counters.barriers == 2 * 64 / 16
    assert counters.global_store_sectors == 4 * 8 * 32 * 64 / 32


@needs_emulator
def test_fewer_requests_than_04():
    from fusedref.emulator import watch
    from fusedref.validation import random_inputs

    with watch() as seen:
        ladder.fused(*random_inputs(Problem(*TILE), 0))
    before, now = seen.counters["fused"], watched(RUNG.candidate, *TILE)
    assert now.global_load_requests == 2789
    assert now.global_load_sectors == 3476
    assert before.global_load_requests > 25 * now.global_load_requests
    assert before.global_load_sectors > 60 * now.global_load_sectors


def test_what_does_not_fit_is_refused(device):
    assert RUNG.fits(KERNELBENCH_73)
    assert RUNG.fits(Problem(3, 25, 7, 300, 200, 3))
    assert not RUNG.fits(Problem(1, 26, 1, 9, 9, 3))
    with pytest.raises(ValueError, match="shared_tile needs 50336 bytes of shared memory for 26 input channels"):
        RUNG.candidate(*inputs(1, 26, 1, 9, 9, 3, device=device))
    assert not RUNG.fits(Problem(1, 3, 4, 9, 9, 3, stride=2))
    assert not RUNG.fits(Problem(1, 3, 4, 9, 9, 3, padding=1))
    assert not RUNG.fits(Problem(1, 2, 4, 9, 9, 3, groups=2))
    assert not RUNG.fits(Problem(1, 3, 4, 9, 9, (3, 2)))
    assert not RUNG.fits(Problem(65536, 1, 1, 1, 1, 1))


@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_without_spills(architecture, tmp_path):
    report = compiled(RUNG.candidate, KERNELBENCH_73, architecture, tmp_path)
    assert_no_spills(report)
    more = shared_bytes(report) - RUNG.candidate.tile_bytes(8, 3)
    assert more in (0, 1024)  # 1024 bytes are the system's from sm_90 on
