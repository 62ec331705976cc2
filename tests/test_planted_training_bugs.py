"""Candidates of training and of gradients with one bug each: the validator must refuse them all and name the bug.

Each is the right function, or a module's right forward, with one change.
"""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F

from fusedref import Problem, validate
from fusedref.validation import by_autograd

PROBLEM = Problem(2, 3, 4, 9, 8, 3)
PADDED = Problem(2, 3, 4, 9, 8, 3, padding=1)
ALL = (0, 2, 3)
PADDING = {PROBLEM: 0, PADDED: 1}


def vector(values):
    return values.view(1, -1, 1, 1)


def statistics_of(z, axes=ALL, unbiased=False):
    if z.numel() == z.shape[1]:
        raise ValueError("Expected more than 1 value per channel when training")
    mean = z.mean(axes, keepdim=True)
    var = (z - mean).square().mean(axes, keepdim=True)
    if unbiased:
        var = var * (z.numel() / z.shape[1]) / (z.numel() / z.shape[1] - 1)
    return mean, var


def trained(
    axes=ALL,
    unbiased=False,
    running_unbiased=True,
    momentum_of=lambda momentum: momentum,
    running_axes=ALL,
    eps_of=lambda eps: eps,
    by_running=False,
    changed=lambda x: x,
    stored=lambda z: z,
):
    """Return a candidate of mode "train": right without arguments."""

    def candidate(x, weight, bias, running_mean, running_var, gamma, beta, s, eps, momentum):
        z = stored(F.conv2d(changed(x), changed(weight), bias))
        mean, var = statistics_of(z, axes, unbiased)
        if by_running:
            mean, var = vector(running_mean), vector(running_var)
        y = ((z - mean) * torch.rsqrt(var + eps_of(eps)) * vector(gamma) + vector(beta)) * s
        new_mean, new_var = (value.expand_as(z).mean(ALL) for value in statistics_of(z, running_axes, running_unbiased))
        for old, new in ((running_mean, new_mean), (running_var, new_var)):
            old.lerp_(new, momentum_of(momentum))
        return y

    return candidate


TRAINING = {
    "biased for unbiased": (trained(running_unbiased=False), "running_var is what comes out where the biased variance"),
    "unbiased for biased": (trained(unbiased=True), "y is what comes out where the variance is the unbiased one"),
    "wrong momentum": (trained(momentum_of=lambda _: 0.1), "running_mean is what comes out where momentum is 0.1"),
    "momentum swapped": (
        trained(momentum_of=lambda momentum: 1 - momentum),
        "running_var is what comes out where momentum and 1 - momentum are swapped",
    ),
    "no momentum": (trained(momentum_of=lambda _: 1.0), "running_mean is what comes out where momentum is left out"),
    "statistics not updated": (trained(momentum_of=lambda _: 0.0), "running_mean is what comes out where it is not up"),
    "mean of each image": (trained(axes=(2, 3)), "y is what comes out where the statistics are taken of each image"),
    "mean over images": (
        trained(axes=(0,)),
        "y is what comes out where the statistics are taken over the images",
    ),
    "mean over channels": (
        trained(axes=(1, 2, 3)),
        "y is what comes out where the statistics are taken over the channels of each image together",
    ),
    "running mean of all channels": (
        trained(running_axes=(0, 1, 2, 3)),
        "running_var is what comes out where the statistics are taken over all channels together",
    ),
    "running statistics": (trained(by_running=True), "y is what comes out where the running statistics are used"),
    "no eps": (trained(eps_of=lambda _: 0.0), "y is what comes out where eps is left out"),
    "tf32": (
        trained(changed=lambda t: ((t.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)),
        "y: ",
    ),
}


def reasons_of(report, case):
    return next(found.reasons for found in report.cases if found.name == case)


def test_right_training_candidate():
    report = validate(trained(), PROBLEM, mode="train", device="cpu")
    assert report.ok, str(report)
    assert str(report).startswith("right to float32 rounding (fp32, cpu, seed 0)")
    assert len(report.cases) == 15
    assert {compared.name for case in report.cases for compared in case.tensors} == {
        "y", "running_mean", "running_var",
    }  # fmt: skip


def by_raw_moments(x, weight, bias, running_mean, running_var, gamma, beta, s, eps, momentum):
    """Take the variance as a mean of squares less the square of the mean, in float32."""
    z = F.conv2d(x, weight, bias)
    mean, _ = statistics_of(z)
    var = (z.square().mean(ALL, keepdim=True) - mean.square()).clamp(min=0)
    y = ((z - mean) * torch.rsqrt(var + eps) * vector(gamma) + vector(beta)) * s
    pixels = z.numel() / z.shape[1]
    running_mean.lerp_(mean.flatten(), momentum)
    running_var.lerp_(var.flatten() * pixels / (pixels - 1), momentum)
    return y


def by_moments_of_x(x, weight, bias, running_mean, running_var, gamma, beta, s, eps, momentum):
    """Take the variance from the covariance of the patches, in float32."""
    z = F.conv2d(x, weight, bias)
    mean, _ = statistics_of(z)
    patches = F.unfold(x, weight.shape[2:]).transpose(0, 1).flatten(1)
    patches = patches - patches.mean(1, keepdim=True)
    covariance = patches @ patches.T / patches.shape[1]
    filters = weight.flatten(1)
    var = vector(((filters @ covariance) * filters).sum(1).clamp(min=0))
    y = ((z - mean) * torch.rsqrt(var + eps) * vector(gamma) + vector(beta)) * s
    running_mean.lerp_(mean.flatten(), momentum)
    running_var.lerp_(var.flatten() * patches.shape[1] / (patches.shape[1] - 1), momentum)
    return y


def with_x(change):
    """Return a candidate of mode "train" that is right for x changed by ``change``."""
    return lambda x, *rest: trained()(change(x), *rest)


def scaled_to_one(x):
    size = x.square().mean().sqrt()  # 0 where the squares underflow
    return x / size * size


def with_dy(change):
    """Return a candidate of mode "backward" that is right for dy changed by ``change``."""
    return lambda dy, *rest: differentiated()(change(dy), *rest)


def in_two_halves(dy):
    high = dy.half()
    return high.float() + (dy - high.float()).half().float()


HARD = {
    "raw moments": (by_raw_moments, "train", {"mean 100"}),
    "moments of x": (by_moments_of_x, "train", {"smooth, Laplacian"}),
    "scaled to one": (with_x(scaled_to_one), "train", {"subnormal"}),
    "NaN swallowed": (with_x(torch.nan_to_num), "train", {"NaN in x"}),
    "dy in two fp16 numbers": (with_dy(in_two_halves), "backward", {"small dy"}),
    "NaN in dy swallowed": (with_dy(torch.nan_to_num), "backward", {"NaN in dy"}),
    "dy cut off": (
        with_dy(lambda dy: dy.clamp(*(dy.abs().median() * torch.tensor([-20, 20])))),
        "backward",
        {"outliers"},
    ),
}


@pytest.mark.parametrize("name", HARD)
def test_what_a_family_of_data_is_for(name):
    candidate, mode, families = HARD[name]
    report = validate(candidate, PROBLEM, mode=mode, device="cpu")
    assert {case.name for case in report.cases if not case.ok} >= families, str(report)
    assert all(case.ok for case in report.cases[:5]), str(report)  # random numbers do not show it


@pytest.mark.parametrize("name", TRAINING)
def test_wrong_training(name):
    candidate, words = TRAINING[name]
    report = validate(candidate, PROBLEM, mode="train", device="cpu")
    assert not report.ok
    assert any(words in reason for reason in reasons_of(report, "the problem")), str(report)


def differentiated(
    c1=True, c2=True, axes=ALL, scale=True, gamma_in=True, unbiased=False, normalised=True, border=True, shuffled=False,
    changed=lambda x: x, padding=0,
):  # fmt: skip
    """Return a candidate of mode "backward": right without arguments; where shuffled, calls add in turns of order."""
    calls = itertools.count()

    def candidate(dy, x, weight, bias, gamma, beta, s, eps):
        z = F.conv2d(x, weight, bias, padding=padding)
        mean, var = statistics_of(z, unbiased=unbiased)
        inverse = torch.rsqrt(var + eps)
        zhat = (z - mean) * inverse
        a = inverse * (s if scale else 1.0) * (vector(gamma) if gamma_in else 1.0)
        mean_dy, mean_dyz = dy.mean(axes, keepdim=True), (dy * zhat).mean(axes, keepdim=True)
        dz = a * (dy - c1 * mean_dy - c2 * mean_dyz * zhat)
        dx = torch.nn.grad.conv2d_input(x.shape, changed(weight), changed(dz), padding=padding)
        if not border:  # as if there were outputs beside the image, too
            wide = (F.conv2d(x, weight, bias, padding=2) - mean) * inverse
            first = torch.nn.grad.conv2d_input(x.shape, weight, a * dy, padding=padding)
            dx = first - F.conv_transpose2d(a * (mean_dy + mean_dyz * wide), weight, padding=2)
        dweight = torch.nn.grad.conv2d_weight(changed(x), weight.shape, changed(dz), padding=padding)
        dgamma = s * (dy * (zhat if normalised else z - mean)).sum(ALL)
        rows = list(dy.sum((0, 3)).unbind(1))
        if shuffled:
            rows = rows if next(calls) % 2 else rows[::-1]
        dbeta = s * functools.reduce(torch.add, rows)
        return dx, dweight, None if bias is None else dz.sum(ALL), dgamma, dbeta

    return candidate


BACKWARD = {
    "no c1": (differentiated(c1=False), "dx is what comes out where c1, the mean of dy, is forgotten"),
    "no c2": (differentiated(c2=False), "dweight is what comes out where c2 zhat, with c2 the mean of dy zhat, is for"),
    "neither": (
        differentiated(c1=False, c2=False),
        "dweight is what comes out where c1 and c2 are forgotten, as if the statistics did not depend on x",
    ),
    "means of each image": (
        differentiated(axes=(2, 3)),
        "dx is what comes out where c1 and c2 are taken of each image apart",
    ),
    "not scaled": (differentiated(scale=False), "dx is what comes out where scaling_factor is left out"),
    "without gamma": (differentiated(gamma_in=False), "dweight is what comes out where gamma is left out"),
    "unbiased": (differentiated(unbiased=True), "dgamma is what comes out where the variance is the unbiased one"),
    "dgamma not normalised": (
        differentiated(normalised=False),
        "dgamma is what comes out where zhat's normalisation is missing",
    ),
    "no border class": (
        differentiated(border=False),
        "dx: the border is wrong: exactly the pixels that fewer taps reach than the others",
    ),
    "sums in any order": (
        differentiated(shuffled=True),
        "two calls with the same inputs differ in dbeta: a sum must be taken in the same order in every run",
    ),
    "tf32": (
        differentiated(changed=lambda t: ((t.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)),
        "dweight: ",
    ),
}


@pytest.mark.parametrize("problem", [PROBLEM, PADDED], ids=["no padding", "padding 1"])
def test_right_gradients(problem):
    report = validate(differentiated(padding=PADDING[problem]), problem, mode="backward", device="cpu")
    assert report.ok, str(report)
    assert len(report.cases) == 17
    assert not validate(differentiated(padding=PADDING[problem], border=False), problem, mode="backward").ok


@pytest.mark.parametrize("name", BACKWARD)
def test_wrong_gradients(name):
    candidate, words = BACKWARD[name]
    report = validate(candidate, PROBLEM, mode="backward", device="cpu")
    assert not report.ok
    assert any(words in reason for reason in reasons_of(report, "the problem")), str(report)


def test_gradients_by_autograd():
    assert validate(by_autograd(trained()), PROBLEM, mode="backward", device="cpu").ok
    assert not validate(by_autograd(trained(unbiased=True)), PROBLEM, mode="backward", device="cpu").ok
