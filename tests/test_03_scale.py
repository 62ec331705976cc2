"""Rung 03: the scale, and BatchNorm and scale in one kernel."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_02_batch_norm import expected

from fusedref import validate
from fusedref.problem import SMALL_73
from kernels import ladder
from tests.whole_numbers import EPS, variances, whole

SHAPES = st.tuples(*[st.integers(1, 4)] * 2, *[st.integers(1, 20)] * 2)
THREE_KERNELS, BN_SCALE = ladder.LADDER[2], ladder.LADDER[3]


@given(SHAPES, st.sampled_from([2.0, -0.5, 0.0, 3.0]))
@settings(max_examples=20, deadline=None)
def test_is_the_scale(device, shape, scaling_factor):
    x = whole(*shape, device=device)
    assert ladder.scale(x, scaling_factor).equal(x * scaling_factor)


@given(SHAPES)
@settings(max_examples=20, deadline=None)
def test_bn_scale_is_both(device, shape):
    x, channels = whole(*shape, device=device), shape[1]
    mean, gamma, beta = (whole(channels, seed=seed, device=device) for seed in (1, 2, 3))
    var = variances(channels, device)
    assert ladder.bn_scale(x, mean, var, gamma, beta, 2.0, EPS).equal(2 * expected(x, mean, var, gamma, beta))


@pytest.mark.parametrize("rung", [THREE_KERNELS, BN_SCALE], ids=lambda rung: rung.name)
def test_the_rung_validates(device, rung):
    report = validate(rung.candidate, SMALL_73, device=device)
    assert report.ok, str(report)


@pytest.mark.parametrize(
    ("rung", "right", "wrong"),
    [
        (THREE_KERNELS, "x[index] * scaling_factor", "x[index] * 2.0f"),
        (THREE_KERNELS, "index >= size", "index > size - 2"),
        (BN_SCALE, "+ beta[channel]) * scaling_factor", ") * scaling_factor + beta[channel]"),
        (BN_SCALE, "sqrtf(running_var[channel] + eps)", "(running_var[channel] + eps)"),
        (BN_SCALE, "index / plane % channels", "index / plane / channels"),
    ],
)
def test_a_planted_bug_is_refused(device, plant, rung, right, wrong):
    plant("03_scale.cu", right, wrong)
    assert not validate(rung.candidate, SMALL_73, device=device).ok
