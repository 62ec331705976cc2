"""Rung 02: BatchNorm in evaluation mode, one thread per number."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedref import validate
from fusedref.problem import SMALL_73
from kernels import ladder
from tests.whole_numbers import EPS, variances, whole


def expected(x, mean, var, gamma, beta):
    def channels(vector):
        return vector.double().view(-1, 1, 1)

    root = (channels(var) + EPS).sqrt()
    return ((x.double() - channels(mean)) / root * channels(gamma) + channels(beta)).float()


@given(st.tuples(*[st.integers(1, 4)] * 2, *[st.integers(1, 20)] * 2))
@settings(max_examples=20, deadline=None)
def test_is_batch_norm(device, shape):
    x, channels = whole(*shape, device=device), shape[1]
    mean, gamma, beta = (whole(channels, seed=seed, device=device) for seed in (1, 2, 3))
    var = variances(channels, device)
    assert ladder.batch_norm(x, mean, var, gamma, beta, EPS).equal(expected(x, mean, var, gamma, beta))


def test_without_gamma_and_beta(device):
    x, mean, var = whole(2, 3, 5, 7, device=device), whole(3, device=device), variances(3, device)
    y = expected(x, mean, var, mean.new_ones(3), mean.new_zeros(3))
    assert ladder.batch_norm(x, mean, var, None, None, EPS).equal(y)


def test_the_rung_validates(device):
    report = validate(ladder.LADDER[1].candidate, SMALL_73, device=device)
    assert report.ok, str(report)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("index / plane % channels", "index % channels"),
        (" + eps)", ")"),
        ("sqrtf(running_var[channel] + eps)", "sqrtf(running_var[channel]) + eps"),
        ("- running_mean[channel]", ""),
        (" * gamma[channel]", ""),
        (" + beta[channel]", ""),
        ("index >= batch * channels * plane", "index >= batch * channels * plane - 1"),
    ],
)
def test_a_planted_bug_is_refused(device, plant, right, wrong):
    plant("02_batch_norm.cu", right, wrong)
    assert not validate(ladder.LADDER[1].candidate, SMALL_73, device=device).ok
