"""Rung 11: the mean and the variance of every channel, by one reduction in a fixed order."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedref import validate
from kernels import training
from tests.tiles import needs_emulator
from tests.training import families
from tests.whole_numbers import whole

RUNG = training.TRAINING[0]
SHAPE = 2, 3, 32, 32  # 4 numbers for each of the 256 threads of a block


def expected(z):
    """Return the mean and the biased variance of each channel, in float64."""
    return z.double().mean((0, 2, 3)), z.double().var((0, 2, 3), correction=0)


@given(st.tuples(*[st.integers(1, 5)] * 2, *[st.integers(1, 20)] * 2), st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_is_the_mean_and_the_variance(device, shape, slices):
    z = whole(*shape, device=device)
    mean, var = training.batch_statistics(z, slices)
    torch.testing.assert_close(mean.double(), expected(z)[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(var.double(), expected(z)[1], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "z"), families(SHAPE).items())
def test_is_accurate_on_every_family(device, name, z):
    mean, var = training.batch_statistics(z.to(device))
    right_mean, right_var = expected(z)
    deviation = right_var.sqrt()
    assert ((mean.cpu() - right_mean).abs() <= 3e-7 * (right_mean.abs() + deviation)).all()
    one_bit = 2.0**-24 * right_mean.abs() * deviation  # of the mean
    assert ((var.cpu() - right_var).abs() <= 3e-7 * right_var + one_bit + 1e-12).all()


def test_infinity_and_nan_stay_in_their_channel(device):
    z = whole(*SHAPE, device=device)
    z[1, 0, 3, 4], z[0, 1, 5, 6] = torch.inf, torch.nan
    mean, var = training.batch_statistics(z)
    assert mean.isnan().tolist() == [True, True, False]
    assert var.isnan().tolist() == [True, True, False]


def test_the_same_bits_on_every_run(device):
    z = torch.randn(*SHAPE, generator=torch.Generator().manual_seed(0)).to(device)
    first, again = training.batch_statistics(z), training.batch_statistics(z)
    assert all(one.equal(two) for one, two in zip(first, again, strict=True))


def test_the_rung_validates(device):
    report = validate(RUNG.candidate, training.SMALL, mode="train", device=device)
    assert report.ok, str(report)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("offset > 0;", "offset > 1;"),
        ("image += slices", "image += slices + 1"),
        ("+ distance * distance * a.count * share}", "}"),
        ("warp < WARPS", "warp < WARPS - 1"),
        ("moments.squares += distance * (value - moments.mean)", "moments.squares += distance * distance"),
    ],
)
def test_a_planted_bug_is_refused(device, plant, right, wrong):
    plant("11_batch_statistics.cu", right, wrong)
    z = whole(4, 2, 9, 33, device=device)
    mean, var = training.batch_statistics(z, 2)
    right_mean, right_var = expected(z)
    assert not (torch.allclose(mean.double(), right_mean, 1e-4, 1e-4) and torch.allclose(var.double(), right_var, 1e-4))


@needs_emulator
@pytest.mark.parametrize("seed", [0, 1])
def test_memory_requests(seed):
    """Read z once, in whole sectors, without a bank conflict; the order of the threads changes no bit."""
    from fusedref.emulator import watch

    z = torch.randn(*SHAPE, generator=torch.Generator().manual_seed(0))
    with watch(seed) as seen:
        statistics = training.batch_statistics(z, 2)
    assert seen.findings == []
    counters = seen.counters["batch_statistics"]
    assert counters.global_load_requests == z.numel() / 32
    assert counters.global_load_sectors == z.numel() / 8
    assert counters.global_store_requests == 3 * 3 * 2
    assert counters.barriers == 3 * 2
    assert counters.bank_conflicts == 0
    assert counters.shared_store_requests == 3 * 2 * 8 * 3
    assert counters.shared_load_requests == 3 * 2 * 7 * 3
    assert all(one.equal(two) for one, two in zip(statistics, training.batch_statistics(z, 2), strict=True))


@needs_emulator
def test_a_missing_barrier_is_a_race(plant):
    from fusedref.emulator import watch

    plant("11_batch_statistics.cu", "__syncthreads();", "")
    with watch() as seen:
        training.batch_statistics(whole(*SHAPE))
    assert "race" in {finding.kind for finding in seen.findings}


def test_agrees_with_torch(device):
    z = torch.randn(3, 4, 9, 10, generator=torch.Generator().manual_seed(1)).to(device)
    mean, var = training.batch_statistics(z)
    ours = F.batch_norm(z, mean, var)
    torch.testing.assert_close(ours, F.batch_norm(z, None, None, training=True), rtol=1e-5, atol=1e-5)
