"""Exercises of lesson 05: BatchNorm and scale as one multiply-add."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lessons.exercises import Exercise, Wrong, parts
from lessons.exercises.kernels import told_apart


def fold_answer(bias, running_mean, running_var, gamma, beta, scaling_factor, eps):
    a = scaling_factor * gamma / torch.sqrt(running_var + eps)
    b = scaling_factor * beta + a * (bias - running_mean)
    return a, b


def _folded_wrongly(bias, running_mean, running_var, gamma, beta, scaling_factor, eps):
    """Return what usual mistakes give for a and for b, each with what to say."""
    a, _ = fold_answer(bias, running_mean, running_var, gamma, beta, scaling_factor, eps)
    return {
        "a": [
            ("eps belongs under the root.", scaling_factor * gamma / (torch.sqrt(running_var) + eps)),
            ("eps is missing.", scaling_factor * gamma / torch.sqrt(running_var)),
            ("scaling_factor is missing: it multiplies everything.", a / scaling_factor),
            ("A negative gamma should stay negative.", a.abs()),
        ],
        "b": [
            ("beta is multiplied by scaling_factor, too.", beta + a * (bias - running_mean)),
            ("The bias goes through BatchNorm as well: where is it?", scaling_factor * beta - a * running_mean),
            (
                "The bias is added before the mean is subtracted: both are multiplied by a.",
                scaling_factor * beta + a * bias - running_mean,
            ),
            ("The bias is added after BatchNorm; it belongs before.", scaling_factor * beta - a * running_mean + bias),
        ],
    }


def _judge_fold(answer: Callable[..., Any]) -> str:
    draw = torch.Generator().manual_seed(5)
    for title, change in (
        ("ordinary channels", {}),
        ("a negative gamma", {"gamma": -1.5}),
        ("gamma zero", {"gamma": 0.0}),
        ("a variance far below eps", {"running_var": 1e-9}),
        ("a variance of zero", {"running_var": 0.0}),
        ("a large mean", {"running_mean": 40.0}),
        ("a negative scale", {"scaling_factor": -3.0}),
        ("a large eps", {"eps": 0.5}),
    ):
        values = {
            "bias": torch.randn(6, generator=draw, dtype=torch.float64),
            "running_mean": torch.randn(6, generator=draw, dtype=torch.float64),
            "running_var": 0.5 + torch.rand(6, generator=draw, dtype=torch.float64),
            "gamma": torch.randn(6, generator=draw, dtype=torch.float64),
            "beta": torch.randn(6, generator=draw, dtype=torch.float64),
            "scaling_factor": 2.0,
            "eps": 1e-5,
        }
        for name, value in change.items():
            if isinstance(values[name], float):
                values[name] = value
            else:
                values[name][:3] = value
        given = parts(answer(**values), "(a, b)")
        for name, value, right in zip("ab", given, fold_answer(**values), strict=True):
            value = torch.as_tensor(value, dtype=torch.float64)
            if value.shape != right.shape:
                raise Wrong(f"{name} should have one number for each channel; it has the shape {list(value.shape)}.")
            wrong = ~torch.isclose(value, right, rtol=1e-6, atol=1e-9)
            if wrong.any():
                channel = int(wrong.nonzero()[0])
                for why, mistaken in _folded_wrongly(**values)[name]:
                    if torch.allclose(value, mistaken, rtol=1e-9, atol=1e-12):
                        raise Wrong(f"With {title}, {name} is wrong. {why}")
                raise Wrong(
                    f"With {title}, {name}[{channel}] is {told_apart(float(value[channel]), float(right[channel]))}."
                )
    return "Five numbers a channel have become two, and the GPU needs only these two."


fold = Exercise(
    _judge_fold,
    [
        "Write the whole formula with z for the convolution without its bias, and multiply it out.",
        "What stands before z is a. What is left when z is zero is b.",
        "The bias goes through BatchNorm like everything else: it is multiplied by a too.",
    ],
    fold_answer,
)


def fold_into_convolution_answer(conv, bn, scaling_factor):
    folded = copy.deepcopy(conv)
    with torch.no_grad():
        a = scaling_factor * bn.weight / torch.sqrt(bn.running_var + bn.eps)
        bias = torch.zeros_like(bn.running_mean) if conv.bias is None else conv.bias
        folded.weight.mul_(a.reshape(-1, 1, 1, 1))
        folded.bias = nn.Parameter(scaling_factor * bn.bias + a * (bias - bn.running_mean))
    return folded


def _with_eps(bn: nn.BatchNorm2d, eps: float) -> nn.BatchNorm2d:
    changed = copy.deepcopy(bn)
    changed.eps = eps
    return changed


def _judge_fold_into_convolution(answer: Callable[..., Any]) -> str:
    for seed, (title, arguments) in enumerate(
        (
            ("5 -> 7 channels", {"in_channels": 5, "out_channels": 7, "kernel_size": 3}),
            (
                "4 -> 4 channels, kernel 4 (sizes that broadcast when they should not)",
                {"in_channels": 4, "out_channels": 4, "kernel_size": 4},
            ),
            ("no bias", {"in_channels": 3, "out_channels": 6, "kernel_size": 3, "bias": False}),
            ("stride 2, padding 1", {"in_channels": 3, "out_channels": 6, "kernel_size": 3, "stride": 2, "padding": 1}),
            ("two groups", {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "groups": 2}),
            ("dilation 2", {"in_channels": 3, "out_channels": 5, "kernel_size": 3, "dilation": 2}),
            (
                "reflected padding",
                {"in_channels": 2, "out_channels": 5, "kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
            ),
        )
    ):
        torch.manual_seed(seed)
        conv = nn.Conv2d(**arguments)
        bn = nn.BatchNorm2d(conv.out_channels, eps=(1e-5, 0.3, 1e-2)[seed % 3]).eval()
        title += f", eps {bn.eps:g}"
        with torch.no_grad():
            for tensor in (bn.running_mean, bn.weight, bn.bias):
                tensor.normal_()
            bn.running_var.uniform_(0.1, 2)
        x = torch.randn(2, conv.in_channels, 9, 11)
        before = [*conv.state_dict().values(), *bn.state_dict().values()]
        before = [tensor.clone() for tensor in before]
        with torch.no_grad():
            expected = bn(conv(x)) * -1.75
            folded = answer(conv, bn, -1.75)
            if not isinstance(folded, nn.Conv2d):
                raise Wrong(f"It should return a Conv2d; it returned {type(folded).__name__}.")
            after = [*conv.state_dict().values(), *bn.state_dict().values()]
            if len(after) != len(before) or not all(map(torch.equal, before, after)):
                raise Wrong(f"With {title}: it changed the modules it was given. Work on a copy.")
            y = folded.float()(x)
        if y.shape != expected.shape:
            raise Wrong(
                f"With {title}: the output has the shape {list(y.shape)} and should have {list(expected.shape)}."
            )
        if not torch.allclose(y, expected, rtol=1e-4, atol=1e-4):
            with torch.no_grad():
                fixed = fold_into_convolution_answer(conv, _with_eps(bn, 1e-5), -1.75)(x)
            if bn.eps != 1e-5 and torch.allclose(y, fixed, rtol=1e-4, atol=1e-4):
                raise Wrong(f"With {title}: you took 1e-5 for it. The module knows its own: `bn.eps`.")
            raise Wrong(
                f"With {title}: the largest error is {(y - expected).abs().max():.3g}, "
                f"in outputs of about {expected.abs().mean():.3g}."
            )
    return "One library convolution, no BatchNorm, no scale: only different weights remain."


fold_into_convolution = Exercise(
    _judge_fold_into_convolution,
    [
        "a * conv(x, weight) is the same as conv(x, a * weight): an output channel is linear in its own filter.",
        "weight is [out_channels, in_channels / groups, kernel, kernel]. Along which of the four does a run?",
        "copy.deepcopy(conv) keeps stride, padding and groups. A convolution without bias needs one now.",
    ],
    fold_into_convolution_answer,
)


def commutes_answer(scaling_factor):
    return scaling_factor >= 0


def _judge_commutes(answer: Callable[..., Any]) -> str:
    z = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0])
    for scaling_factor in (2.0, 0.25, -1.0, -0.001, 0.0):
        right = torch.equal(torch.relu(z) * scaling_factor, torch.relu(z * scaling_factor))
        if bool(answer(scaling_factor)) != right:
            raise Wrong(
                f"With scaling_factor {scaling_factor}: relu(z) * s is {(torch.relu(z) * scaling_factor).tolist()}, "
                f"relu(z * s) is {torch.relu(z * scaling_factor).tolist()}, for z {z.tolist()}."
            )
    return "Folding needs linear operators. A ReLU is linear only on each side of zero."


commutes = Exercise(
    _judge_commutes,
    ["Try z = 1 and z = -1 with s = 2 and with s = -2.", "For which s does s * z have the same sign as z?"],
    commutes_answer,
)
